"""A chunk of bf16 against a reference: a code table for each range of the reference's exponents.

A weight half as large has a last place half as wide, so the same movement is a difference twice
as large. Words are sorted by the reference's exponent, and runs of exponents get a table each;
the encoder finds where a further table saves more than it takes. A difference is one byte.
Where it does not fit one, and below the exponent where the reference tells little of the value
any more, the value itself is kept (its sign relative to the reference's), exponent and mantissa
in a plane each.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from blockzoo.codecs import runs, streams
from blockzoo.codecs.grouping import Groups
from blockzoo.codecs.words import Words
from blockzoo.errors import DamagedError

_MARK = 128  # the byte that stands for a value kept itself
_VALUE = 10.3  # bits that one takes, about
_TABLE = 12.0, 0.5  # bytes that a code table takes, and for each symbol more

Counts = NDArray[np.int64]


def encode(moved: Words, values: Words, found: Groups) -> bytes:
    """Code a chunk.

    Parameters
    ----------
    moved : (n,) uint16
        Ordered differences from the reference, sorted by its exponent; they wrap.
    values : (n,) uint16
        The values, their sign bit set where it is not the reference's, sorted likewise.
    found : Groups
        Where each exponent's words end.
    """
    symbols = moved.astype(np.uint8)
    symbols[symbols.view(np.int8).astype(np.int16).view(np.uint16) != moved] = _MARK
    cuts = _cuts(symbols, found)
    tail = found.ends[cuts[-1]]
    symbols[tail:] = _MARK
    rest = _turn_left(values[symbols == _MARK])
    packed, begin = [], 0
    for cut in cuts:
        end = found.ends[cut]
        packed.append(streams.pack(symbols[begin:end]))
        begin = end
    packed.append(streams.pack(rest.astype(np.uint8)))
    packed.append(streams.pack((rest >> 8).astype(np.uint8)))
    return bytes([len(cuts), *cuts]) + runs.join(packed)


def decode(coded: memoryview, found: Groups) -> tuple[Words, NDArray[np.intp], Words]:
    """Undo `encode`.

    Returns
    -------
    moved : (n,) uint16
        Without meaning at `places`.
    places : (m,) intp
    values : (m,) uint16
        Those kept themselves, and where they stand.

    Raises
    ------
    DamagedError
    """
    cuts = list(coded[1 : 1 + coded[0]]) if len(coded) else []
    if not cuts or cuts != sorted(set(cuts)) or cuts[-1] >= len(found.ends):
        raise DamagedError("a chunk's groups are out of order")
    parts = runs.split(coded[1 + len(cuts) :], len(cuts) + 2)
    count, begin = found.ends[-1], 0
    symbols = np.empty(count, np.uint8)
    for cut, part in zip(cuts, parts, strict=False):
        end = found.ends[cut]
        plane = streams.unpack(*part, end - begin)
        symbols[begin:end] = 0 if plane is None else plane
        begin = end
    symbols[begin:] = _MARK
    places = np.flatnonzero(symbols == _MARK)
    values = np.zeros(len(places), np.uint16)
    for shift, part in zip((0, 8), parts[len(cuts) :], strict=True):
        plane = streams.unpack(*part, len(places))
        if plane is not None:
            values |= plane.astype(np.uint16) << shift
    moved = symbols.view(np.int8).astype(np.int16).view(np.uint16)
    return moved, places, _turn_right(values)


def _turn_left(values: Words) -> Words:
    """The exponent to the high byte, the sign below the mantissa."""
    return np.asarray((values << 1) | (values >> 15))


def _turn_right(values: Words) -> Words:
    return np.asarray((values >> 1) | (values << 15))


def _cuts(symbols: NDArray[np.uint8], found: Groups) -> list[int]:
    """The exponents after which a new table begins, counted from the largest; values follow
    after the last.
    """
    cuts: list[int] = []
    begin, current, cost = 0, np.zeros(256, np.int64), 0.0
    for group, end in enumerate(found.ends):
        if end == begin:
            continue
        counts = np.bincount(symbols[begin:end], minlength=256)
        alone, joined = _cost(counts), _cost(current + counts)
        values = (end - begin) * _VALUE / 8
        if min(alone, joined - cost) > values and cuts and 2 * end > found.ends[-1]:
            break
        if not cuts or alone + cost < joined:
            cuts.append(group)
            current, cost = counts, alone
        else:
            cuts[-1] = group
            current, cost = current + counts, joined
        begin = end
    return cuts


def _cost(counts: Counts) -> float:
    """Bytes that words with these counts of symbols take, a table and marked values included."""
    some = counts[counts > 0]
    bits = float(some @ (np.log2(some.sum()) - np.log2(some))) + float(counts[_MARK]) * _VALUE
    return bits / 8 + _TABLE[0] + _TABLE[1] * len(some)
