"""The pages of one sequence."""

from __future__ import annotations

from dataclasses import dataclass, field

from blockzoo_runtime.kv.layout import Layout


@dataclass(eq=False)
class Pages:
    """Where one sequence's KV lies; `KVCache` makes and changes it.

    Parameters
    ----------
    layout : Layout
    tables : list of list of int
        For each group, the pages of slots 0 … in order: slot ``s`` of group ``g`` is slot
        ``tables[g][s // PAGE] * PAGE + s % PAGE`` of the group's pool.
    starts : list of int
        For each group, how many first slots stand already. Never rises from group to group;
        where it falls, the hidden states between are in the pages of the group before.
    chain : list of bytes
        Digests of the full pages so far, as in `content`.
    published : int
        Full pages that have been made findable in every group.
    """

    layout: Layout
    tables: list[list[int]]
    starts: list[int]
    chain: list[bytes] = field(default_factory=list)
    published: int = 0
