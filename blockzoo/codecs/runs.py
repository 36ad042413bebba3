"""Words as byte planes: the same byte of every word together, each plane coded by itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from blockzoo.codecs import streams
from blockzoo.errors import DamagedError


def join(packed: Sequence[tuple[int, bytes]]) -> bytes:
    """Put coded runs together, the table of their entries first."""
    entries = np.array([entry for entry, _ in packed], streams.ENTRY)
    return entries.tobytes() + b"".join(coded for _, coded in packed)


def split(coded: memoryview, count: int) -> list[tuple[int, memoryview]]:
    """Cut `count` coded runs apart, each with its entry.

    Raises
    ------
    DamagedError
        Where they do not fill `coded`.
    """
    place = count * streams.ENTRY.itemsize
    if len(coded) < place:
        raise DamagedError("a chunk is cut short")
    found = []
    for entry in np.frombuffer(coded[:place], streams.ENTRY).tolist():
        size = streams.length(entry)
        found.append((entry, coded[place : place + size]))
        place += size
    if place != len(coded):
        raise DamagedError("a chunk's runs do not fill it")
    return found
