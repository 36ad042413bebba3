"""The rows of a step in one lane, and which of their new tokens each hop group computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from blockzoo_runtime.kv.pages import Pages
from blockzoo_runtime.kv.spans import Span, places
from blockzoo_runtime.upload import upload

if TYPE_CHECKING:
    from blockzoo_runtime.tenant import Tenant


@dataclass
class Work:
    """One row of a step.

    Parameters
    ----------
    tenant : Tenant
        Resident.
    pages : Pages
        With room up to ``end``.
    slots : sequence of int
        The row's tokens so far: virtual ones (negative), prompt, generated.
    end : int
        Up to where to compute.
    outputs : int
        The logits of how many last slots before ``end`` are wanted.
    """

    tenant: Tenant
    pages: Pages
    slots: Sequence[int]
    end: int
    outputs: int = 1


@dataclass
class Row:
    """A work with where it begins in each group: at its end where all stands already."""

    work: Work
    starts: list[int]

    @property
    def new(self) -> int:
        """Slots that are new in the deepest group, where the most are."""
        return self.work.end - self.starts[-1]


class Joined:
    """Which of the new slots each group computes, all of them or some.

    Parameters
    ----------
    rows : sequence of Row
    groups : int
    device : torch.device

    Attributes
    ----------
    counts : list of list of int
        For each group, each row's new tokens.
    spans : list of list of Span
    """

    def __init__(self, rows: Sequence[Row], groups: int, device: torch.device) -> None:
        self.counts: list[list[int]] = []
        self.spans: list[list[Span]] = []
        self._rows = rows
        self._device = device
        self._index: list[torch.Tensor | None] = []
        total = sum(row.new for row in rows)
        for group in range(groups):
            first, counts, spans = 0, [], []
            for row in rows:
                start, end = row.starts[group], row.work.end
                counts.append(end - start)
                if start < end:
                    spans.append(Span(first, start, end, row.work.pages.tables[group]))
                first += end - start
            self.counts.append(counts)
            self.spans.append(spans)
            self._index.append(self._within(group) if first < total else None)

    def _within(self, group: int) -> torch.Tensor:
        """Where a group's tokens are among all new ones."""
        index: list[int] = []
        first = 0
        for row in self._rows:
            skipped = row.starts[group] - row.starts[-1]
            index += range(first + skipped, first + row.new)
            first += row.new
        return upload([index], self._device)[0]

    def differs(self, group: int) -> bool:
        """Whether tokens join at a group."""
        return self.counts[group] != self.counts[group - 1]

    def take(self, value: Any, group: int) -> Any:
        """A group's part of what there is for every new slot."""
        index = self._index[group]
        if index is None:
            return value
        if isinstance(value, tuple):
            return tuple(self.take(each, group) for each in value)
        if isinstance(value, torch.Tensor) and value.dim() > 1:
            return value.index_select(1, index)
        return value

    def merge(self, hidden: torch.Tensor, group: int, kept: torch.Tensor) -> torch.Tensor:
        """A group's input: the group before's output, and kept states of those that join."""
        whole = kept.new_empty(1, sum(row.new for row in self._rows), kept.shape[1])
        before = self._index[group - 1]
        assert before is not None
        if hidden.shape[1]:  # nothing has the width of the group before it
            whole.index_copy_(1, before, hidden)
        first = 0
        for row in self._rows:
            start, joined = row.starts[group], row.starts[group - 1]
            if start < joined:
                table = row.work.pages.tables[group - 1]
                [index] = upload([places(table, range(start, joined))], self._device)
                begin = first + start - row.starts[-1]
                whole[0, begin : begin + joined - start] = kept.index_select(0, index)
            first += row.new
        result: torch.Tensor = self.take(whole, group)
        return result


def by_tenant(owners: Sequence[int], counts: Sequence[int], tenants: int) -> list[int]:
    """How many tokens each tenant has."""
    each = [0] * tenants
    for owner, count in zip(owners, counts, strict=True):
        each[owner] += count
    return each


def calls(rows: Sequence[Row], owners: Sequence[int]) -> Iterator[tuple[list[Row], list[int]]]:
    """Rows embedded together; those whose rotary embedding depends on their length alone."""
    part: list[Row] = []
    own: list[int] = []
    for row, owner in zip(rows, owners, strict=True):
        if row.work.tenant.whole:
            if part:
                yield part, own
            yield [row], [owner]
            part, own = [], []
        else:
            part.append(row)
            own.append(owner)
    if part:
        yield part, own
