"""Figures of the KV cache."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KVStats:
    """What the KV cache holds, and has saved so far.

    Parameters
    ----------
    pages_in_use, pages_cached : int
        Those of sequences; and those of none, kept for another. Of all groups together.
    bytes_in_use, bytes_cached : int
    slots_filled : int
        Slots of pages in use that hold KV; a shared page's count once.
    waste : float
        Share of the slots of pages in use that hold nothing.
    slots_reused : tuple of int
        By group: slots that sequences found computed.
    lookups : int
        Sequences that looked for a prefix.
    evictions : int
        Cached pages that made room.
    """

    pages_in_use: int
    pages_cached: int
    bytes_in_use: int
    bytes_cached: int
    slots_filled: int
    waste: float
    slots_reused: tuple[int, ...]
    lookups: int
    evictions: int
