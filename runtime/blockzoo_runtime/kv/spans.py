"""A step's rows in one hop group: which packed tokens are whose and where they are kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from blockzoo_runtime.kv.layout import PAGE


@dataclass(frozen=True)
class Span:
    """A row's new tokens in one group.

    Parameters
    ----------
    first : int
        Where they begin among the packed tokens.
    start, end : int
        The slots they fill.
    table : sequence of int
        The row's pages in this group.
    """

    first: int
    start: int
    end: int
    table: Sequence[int]

    @property
    def pages(self) -> Sequence[int]:
        """The pages up to the end."""
        return self.table[: -(-self.end // PAGE)]


def places(table: Sequence[int], slots: Iterable[int]) -> list[int]:
    """Where slots of a row are in a group's pool."""
    return [table[slot // PAGE] * PAGE + slot % PAGE for slot in slots]


def new_slots(spans: Sequence[Span]) -> list[int]:
    """Where each packed token's keys and values go."""
    return [place for span in spans for place in places(span.table, range(span.start, span.end))]


def blank_slots(spans: Sequence[Span]) -> list[int]:
    """Slots of new pages that this step does not fill.

    They must hold numbers: what is masked is multiplied by nought.
    """
    return [
        place
        for span in spans
        if span.start <= (span.end - 1) // PAGE * PAGE
        for place in places(span.table, range(span.end, -(-span.end // PAGE) * PAGE))
    ]
