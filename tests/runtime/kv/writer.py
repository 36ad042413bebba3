"""A stand-in for a model: it writes into pages what the tokens and all before them determine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import torch
from blockzoo_runtime.kv.cache import KVCache
from blockzoo_runtime.kv.layout import PAGE, Layout
from blockzoo_runtime.kv.pages import Pages

LAYOUT = Layout.of((1, 2, 1), heads=1, key_width=1, value_width=1, hidden=1, dtype=torch.float64)


def upstream(blocks: Sequence[int]) -> tuple[str, ...]:
    """For each group, all blocks up to it."""
    return tuple(str(tuple(blocks[: group + 1])) for group in range(len(blocks)))


def right(kind: str, above: str, slots: Sequence[int]) -> float:
    """What belongs into the last of these slots."""
    return float(crc32(repr((kind, above, list(slots))).encode()))


@dataclass(eq=False)
class Row:
    """A sequence."""

    upstream: tuple[str, ...]
    slots: list[int]
    pages: Pages

    def place(self, group: int, slot: int) -> int:
        return self.pages.tables[group][slot // PAGE] * PAGE + slot % PAGE


def compute(kv: KVCache, row: Row, end: int) -> None:
    """A step of one row, up to slot ``end``, for which there are pages."""
    for group, above in enumerate(row.upstream):
        pool = kv.pool(LAYOUT, group)
        for slot in range(row.pages.starts[group], end):
            if group and slot < row.pages.starts[group - 1]:
                check_hidden(kv, row, group - 1, slot)
            text = row.slots[: slot + 1]
            pool.keys[:, row.place(group, slot)] = right("key", above, text)
            pool.values[:, row.place(group, slot)] = right("value", above, text)
            if pool.hidden is not None:
                pool.hidden[row.place(group, slot)] = right("hidden", above, text)
    kv.computed(row.pages, row.upstream, row.slots, end)


def check_hidden(kv: KVCache, row: Row, group: int, slot: int) -> None:
    """The input of the group after, which this group will not compute, must be at hand."""
    hidden = kv.pool(LAYOUT, group).hidden
    assert hidden is not None
    text = row.slots[: slot + 1]
    assert hidden[row.place(group, slot)] == right("hidden", row.upstream[group], text)


def check(kv: KVCache, row: Row) -> None:
    """Every slot that is said to stand holds what belongs into it."""
    starts = row.pages.starts
    assert starts == sorted(starts, reverse=True)
    for group, above in enumerate(row.upstream):
        pool = kv.pool(LAYOUT, group)
        for slot in range(starts[group]):
            text = row.slots[: slot + 1]
            place = row.place(group, slot)
            assert (pool.keys[:, place] == right("key", above, text)).all()
            assert (pool.values[:, place] == right("value", above, text)).all()
    for group in range(1, len(starts)):
        for slot in range(starts[group], starts[group - 1]):
            check_hidden(kv, row, group - 1, slot)
