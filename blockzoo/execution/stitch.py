"""What runs a stitch: an affine map between the hidden states of two models.

A stitch takes hidden states after some layer of one model to what a layer of another, of another
width perhaps, expects. Within a model the residual stream keeps its directions from layer to
layer and mostly changes its scale and mean, so one matrix is shared by all positions, and each
position has its own scale and offset on either side: the source's depth picks those of the
input, the target's those of the output. So one block serves every pair of the depths that it
was fitted for, and where it stands is told by the hop (`records.Hop.at`), not by the block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from blockzoo.errors import UnservableError

#: the kind of blocks and hops
KIND = "stitch"


class ByDepth(nn.Module):
    """A scale and an offset for each of some depths.

    Parameters
    ----------
    depths, width : int
    row : int
        The depth, by its place among them, whose are used.
    """

    def __init__(self, depths: int, width: int, row: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(depths, width))
        self.bias = nn.Parameter(torch.zeros(depths, width))
        self.row = row

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(…, width) to (…, width)."""
        return torch.addcmul(self.bias[self.row], hidden, self.weight[self.row])


class Stitch(nn.Module):
    """Scale and offset by the source's depth, a matrix, scale and offset by the target's.

    Parameters
    ----------
    sources, targets : sequence of int
        The depths that it can stand at: after so many layers, before the layer of that number.
    width_in, width_out : int

    Attributes
    ----------
    enter, leave : ByDepth
    map : nn.Linear
        (width_out, width_in), without bias.
    """

    def __init__(
        self, sources: Sequence[int], targets: Sequence[int], width_in: int, width_out: int
    ) -> None:
        super().__init__()
        self.sources, self.targets = tuple(sources), tuple(targets)
        self.enter = ByDepth(len(self.sources), width_in)
        self.map = nn.Linear(width_in, width_out, bias=False)
        self.leave = ByDepth(len(self.targets), width_out)

    @classmethod
    def of_spec(cls, spec: Mapping[str, Any]) -> Stitch:
        """The module that a stitch block's spec describes; see `spec`."""
        made = spec["stitch"]
        return cls(made["sources"], made["targets"], *made["widths"])

    def spec(self, family: str) -> dict[str, Any]:
        """The spec of its block; the family is that of the models on both sides."""
        widths = [self.map.in_features, self.map.out_features]
        made = {"sources": list(self.sources), "targets": list(self.targets), "widths": widths}
        return {"family": family, "stitch": made}

    def stand(self, at: Sequence[int]) -> Stitch:
        """Have it stand somewhere.

        Raises
        ------
        UnservableError
            Where it was not fitted for such a position.
        """
        source, target = at
        if source not in self.sources or target not in self.targets:
            sources, targets = (", ".join(map(str, own)) for own in (self.sources, self.targets))
            raise UnservableError(
                f"the stitch was not fitted for {source}:{target}: it goes from {sources} "
                f"to {targets}",
                hint="fit one that does, with --also FROM:TO",
            )
        self.enter.row, self.leave.row = self.sources.index(source), self.targets.index(target)
        return self

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states (…, width_in) to (…, width_out)."""
        out: torch.Tensor = self.leave(self.map(self.enter(hidden)))
        return out
