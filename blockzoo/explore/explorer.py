"""What `Zoo.explore` offers: pictures and rankings of a whole zoo, for a notebook."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from blockzoo.explore.dendrogram import Drawing
from blockzoo.explore.families import FamilyTree
from blockzoo.explore.table import Table

if TYPE_CHECKING:
    from blockzoo.zoo import Zoo


@dataclass(frozen=True, repr=False)
class Explorer:
    """Ways to look at a zoo.

    Parameters
    ----------
    zoo : Zoo
    """

    zoo: Zoo

    def families(self) -> FamilyTree:
        """Which models descend from which."""
        return self.zoo.families()

    def dendrogram(self) -> Drawing:
        """The family tree drawn to scale."""
        return self.families().dendrogram()

    def similar(self, what: str, top_k: int = 10) -> Table:
        """What is nearest to a model or a block."""
        return self.zoo.similar(what, top_k=top_k)

    def __repr__(self) -> str:
        return "Explorer: .families(), .dendrogram(), .similar(name)"
