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
from blockzoo.codecs.scratch import scratch
from blockzoo.codecs.words import Words
from blockzoo.errors import DamagedError

_MARK = 128  # the byte that stands for a value kept itself
_SIGN = np.uint16(0x8000)
_VALUE = 10.3  # bits that one takes, about
_TABLE = 12.0, 0.5  # bytes that a code table takes, and for each symbol more
_SAMPLE = 2048  # words that tell enough of a group to find where tables part
_RARE = 1024  # words; fewer join the group before them unasked

Counts = NDArray[np.float64]


def encode(moved: Words, values: Words, predicted: Words, found: Groups) -> bytes:
    """Code a chunk.

    Parameters
    ----------
    moved : (n,) uint16
        Ordered differences from the reference; they wrap. Overwritten.
    values, predicted : (n,) uint16
    found : Groups
    """
    count = len(moved)
    order = found.index()
    symbols = in_a_byte(moved)
    grouped = scratch("grouped", count, np.uint8)
    np.take(symbols, order, out=grouped, mode="wrap")  # the one mode that takes no copy of `out`
    cuts = _cuts(grouped, found)
    grouped[found.ends[cuts[-1]] :] = _MARK
    places = order[np.flatnonzero(grouped == _MARK)]
    rest = _turn_left(values[places] ^ (predicted[places] & _SIGN))
    packed, begin = [], 0
    for cut in cuts:
        end = found.ends[cut]
        packed.append(streams.pack(grouped[begin:end]))
        begin = end
    packed.append(streams.pack(rest.astype(np.uint8)))
    packed.append(streams.pack((rest >> 8).astype(np.uint8)))
    return bytes([len(cuts), *cuts]) + runs.join(packed)


def decode(
    coded: memoryview, predicted: Words, found: Groups
) -> tuple[Words, NDArray[np.intp], Words]:
    """Undo `encode`.

    Returns
    -------
    moved : (n,) uint16
        Without meaning at `places`; scratch memory.
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
    grouped = scratch("grouped", count, np.uint8)
    for cut, part in zip(cuts, parts, strict=False):
        end = found.ends[cut]
        plane = streams.unpack(*part, end - begin)
        grouped[begin:end] = 0 if plane is None else plane
        begin = end
    grouped[begin:] = _MARK
    order = found.index()
    places = order[np.flatnonzero(grouped == _MARK)]
    values = np.zeros(len(places), np.uint16)
    for shift, part in zip((0, 8), parts[len(cuts) :], strict=True):
        plane = streams.unpack(*part, len(places))
        if plane is not None:
            values |= plane.astype(np.uint16) << shift
    symbols, moved = scratch("symbols", count, np.int8), scratch("moved", count, np.uint16)
    symbols.view(np.uint8)[order] = grouped
    moved.view(np.int16)[:] = symbols
    return moved, places, _turn_right(values) ^ (predicted[places] & _SIGN)


def in_a_byte(moved: Words) -> NDArray[np.uint8]:
    """Differences of -127 to 127 as signed bytes, all others marked; scratch memory."""
    symbols = scratch("symbols", len(moved), np.uint8)
    moved += 127
    np.minimum(moved, 255, out=moved)
    symbols[:] = moved
    symbols -= 127  # 255 becomes the mark
    return symbols


def _turn_left(values: Words) -> Words:
    """The exponent to the high byte, the sign below the mantissa."""
    return np.asarray((values << 1) | (values >> 15))


def _turn_right(values: Words) -> Words:
    return np.asarray((values >> 1) | (values << 15))


def _cuts(grouped: NDArray[np.uint8], found: Groups) -> list[int]:
    """The exponents after which a new table begins, counted from the largest; values follow
    after the last.
    """
    cuts: list[int] = []
    begin, current, cost = 0, np.zeros(256), 0.0
    for group, end in enumerate(found.ends):
        if end == begin or (cuts and end - begin < _RARE and end < len(grouped)):
            continue
        step = -(-(end - begin) // _SAMPLE)
        counts = np.bincount(grouped[begin:end:step], minlength=256).astype(np.float64)
        counts *= (end - begin) / counts.sum()
        alone, joined = _cost(counts), _cost(current + counts)
        values = (end - begin) * _VALUE / 8
        if min(alone, joined - cost) > values and cuts and 2 * end > len(grouped):
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
    total = float(counts.sum())
    bits = total * float(np.log2(total)) - float(counts @ np.log2(np.maximum(counts, 1)))
    bits += float(counts[_MARK]) * _VALUE
    return bits / 8 + _TABLE[0] + _TABLE[1] * int(np.count_nonzero(counts))
