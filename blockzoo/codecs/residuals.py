"""One chunk of a tensor against what the reference predicts, as bytes and back.

Escaped, for bf16 at level ``fast``: the difference of the bit patterns in one byte where it fits,
else a mark, and those values apart; little more than an addition to decode. By exponent, for
bf16 at level ``small`` (see `by_exponent`). Planes, for other dtypes: the difference in the order
of values, its words grouped by the reference's exponent (level ``small``) or left as they stand,
each byte of each group coded apart.
"""

from __future__ import annotations

import numpy as np

from blockzoo.codecs import by_exponent, runs, streams
from blockzoo.codecs.grouping import Grouping, Groups, groups
from blockzoo.codecs.scratch import scratch
from blockzoo.codecs.words import (
    Layout,
    Words,
    bytes_at,
    difference,
    put_bytes,
    restore,
    small_in_low_byte,
    undo_small_in_low_byte,
)
from blockzoo.errors import DamagedError

_PLAIN, _ESCAPED, _GROUPED, _BY_EXPONENT = 0, 1, 2, 4  # 3 is a chunk without reference
_MARK = 128  # the byte that stands for a difference too large for one
_LARGEST_SHARE = 0.25  # of marks; with more, bytes apart are shorter


def encode_chunk(
    kind: Layout, values: Words, predicted: Words, level: str, start: int, grouping: Grouping | None
) -> bytes:
    """Code a chunk's words, (n,), against the predicted ones, (n,)."""
    bf16 = (kind.size, kind.bits) == (2, 8)
    if level == "fast":
        if bf16 and (coded := _encode_escaped(values, predicted)):
            return bytes([_ESCAPED]) + coded
        form, found = _PLAIN, Groups(None, (len(values),))
    else:
        form, found = _GROUPED, _groups(kind, predicted, start, grouping)
    moved = difference(kind, values, predicted)
    if bf16 and found.order is not None:
        return bytes([_BY_EXPONENT]) + by_exponent.encode(moved, values, predicted, found)
    small_in_low_byte(kind, moved)
    if found.order is not None:
        moved = moved[found.index()]
    packed, begin = [], 0
    for end in found.merged():
        for place in range(kind.size):
            packed.append(streams.pack(bytes_at(moved[begin:end], place)))
        begin = end
    return bytes([form]) + runs.join(packed)


def decode_chunk(
    kind: Layout,
    coded: memoryview,
    predicted: Words,
    out: Words,
    start: int,
    grouping: Grouping | None,
) -> None:
    """Decode a chunk into `out`, (n,).

    Raises
    ------
    DamagedError
    """
    form, bf16 = coded[0] if len(coded) else None, (kind.size, kind.bits) == (2, 8)
    if form == _ESCAPED and bf16:
        _decode_escaped(coded[1:], predicted, out)
    elif form == _BY_EXPONENT and bf16:
        found = _groups(kind, predicted, start, grouping)
        _decode_by_exponent(kind, coded[1:], predicted, out, found)
    elif form == _GROUPED:
        found = _groups(kind, predicted, start, grouping)
        _decode_planes(kind, coded[1:], predicted, out, found)
    elif form == _PLAIN:
        _decode_planes(kind, coded[1:], predicted, out, Groups(None, (len(out),)))
    else:
        raise DamagedError("a chunk is in no known form")


def _groups(kind: Layout, predicted: Words, start: int, grouping: Grouping | None) -> Groups:
    if grouping is not None:
        return grouping.chunk(kind, start, predicted)
    return groups(kind, predicted, lasting=False)


def _decode_by_exponent(
    kind: Layout, coded: memoryview, predicted: Words, out: Words, found: Groups
) -> None:
    if found.order is None:
        raise DamagedError("a chunk is grouped that is too short to be")
    moved, places, values = by_exponent.decode(coded, predicted, found)
    restore(kind, moved, predicted, out)
    out[places] = values


def _decode_planes(
    kind: Layout, coded: memoryview, predicted: Words, out: Words, found: Groups
) -> None:
    moved, ends = scratch("moved", found.ends[-1], kind.dtype), found.merged()
    parts = iter(runs.split(coded, len(ends) * kind.size))
    begin = 0
    for end in ends:
        part = moved[begin:end]
        for place in range(kind.size):
            plane = streams.unpack(*next(parts), end - begin)
            if plane is not None:
                put_bytes(part, place, plane)
            elif place == 0:
                part.fill(0)
        begin = end
    if found.order is not None:
        grouped, moved = moved, scratch("placed", len(moved), kind.dtype)
        moved[found.index()] = grouped
    undo_small_in_low_byte(kind, moved)
    restore(kind, moved, predicted, out)


def _encode_escaped(values: Words, predicted: Words) -> bytes | None:
    moved = np.subtract(values, predicted, out=scratch("moved", len(values), np.uint16))
    symbols = by_exponent.in_a_byte(moved)
    places = np.flatnonzero(symbols == _MARK)
    if len(places) > len(values) * _LARGEST_SHARE:
        return None
    rest = values[places] - predicted[places]
    planes = symbols, rest.astype(np.uint8), (rest >> 8).astype(np.uint8)
    return runs.join([streams.pack(plane) for plane in planes])


def _decode_escaped(coded: memoryview, predicted: Words, out: Words) -> None:
    (entry, run), *others = runs.split(coded, 3)
    symbols = streams.unpack(entry, run, len(out))
    if symbols is None:
        out[:] = predicted
        return
    moved = scratch("moved", len(out), np.uint16)
    moved.view(np.int16)[:] = symbols.view(np.int8)
    np.add(predicted, moved, out=out)
    places = np.flatnonzero(symbols == _MARK)
    low, high = (streams.unpack(entry, run, len(places)) for entry, run in others)
    rest = predicted[places]
    if low is not None:
        rest += low
    if high is not None:
        rest += high.astype(np.uint16) << 8
    out[places] = rest
