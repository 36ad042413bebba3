"""One chunk of a tensor against what the reference predicts, as bytes and back.

Three forms. *Escaped*, for 16-bit floats at level ``fast``: the difference of the bit patterns in
one byte where it fits, else a mark, and those values apart; little more than an addition to
decode. *Scaled*, for 16-bit floats at level ``small`` (see `scaled`). *Grouped*, for the others:
the difference in the order of values, its words grouped by the reference's exponent at level
``small``, each byte of each group coded apart.
"""

from __future__ import annotations

import numpy as np

from blockzoo.codecs import runs, scaled, streams
from blockzoo.codecs.grouping import Grouping, Groups, groups
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

_PLAIN, _ESCAPED, _GROUPED, _SCALED = 0, 1, 2, 4  # 3 is a chunk without reference
_MARK = 128  # the byte that stands for a difference too large for one
_LARGEST_SHARE = 0.25  # of marks; with more, bytes apart are shorter


def encode_chunk(
    kind: Layout, values: Words, predicted: Words, level: str, start: int, grouping: Grouping | None
) -> bytes:
    """Code a chunk's words, (n,), against the predicted ones, (n,)."""
    narrow = kind.size == 2 and kind.bits > 0
    if level == "fast":
        if narrow and (coded := _encode_escaped(values, predicted)):
            return bytes([_ESCAPED]) + coded
        form, found = _PLAIN, Groups(None, (len(values),))
    else:
        found = _groups(kind, predicted, start, grouping)
        form = _SCALED if narrow and found.order is not None else _GROUPED
    moved = difference(kind, values, predicted)
    if form != _SCALED:
        small_in_low_byte(kind, moved)
    if found.order is not None:
        moved = moved[found.order.astype(np.intp)]
    if form == _SCALED:
        return bytes([form]) + scaled.encode(moved, found)
    packed, begin = [], 0
    for end in found.merged():
        for place in range(kind.size):
            packed.append(streams.pack(bytes_at(moved[begin:end], place), level))
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
    form = coded[0] if len(coded) else None
    narrow = kind.size == 2 and kind.bits > 0
    if form == _ESCAPED and narrow:
        _decode_escaped(coded[1:], predicted, out)
        return
    if form == _PLAIN:
        found = Groups(None, (len(out),))
    elif form == _GROUPED or (form == _SCALED and narrow):
        found = _groups(kind, predicted, start, grouping)
    else:
        raise DamagedError("a chunk is in no known form")
    if form == _SCALED:
        moved = scaled.decode(coded[1:], found)
    else:
        moved = _decode_planes(kind, coded[1:], found)
    if found.order is not None:
        grouped, moved = moved, np.empty_like(moved)
        moved[found.order.astype(np.intp)] = grouped
    if form != _SCALED:
        undo_small_in_low_byte(kind, moved)
    restore(kind, moved, predicted, out)


def _groups(kind: Layout, predicted: Words, start: int, grouping: Grouping | None) -> Groups:
    if grouping is not None:
        return grouping.chunk(kind, start, predicted)
    return groups(kind, predicted)


def _decode_planes(kind: Layout, coded: memoryview, found: Groups) -> Words:
    moved, ends = np.empty(found.ends[-1], kind.dtype), found.merged()
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
    return moved


def _encode_escaped(values: Words, predicted: Words) -> bytes | None:
    moved = values - predicted
    symbols = moved.astype(np.uint8)
    large = symbols.view(np.int8).astype(np.int16).view(np.uint16) != moved
    large |= symbols == _MARK
    symbols[large] = _MARK
    rest = moved[large]
    if len(rest) > len(values) * _LARGEST_SHARE:
        return None
    planes = symbols, rest.astype(np.uint8), (rest >> 8).astype(np.uint8)
    return runs.join([streams.pack(plane, "fast") for plane in planes])


def _decode_escaped(coded: memoryview, predicted: Words, out: Words) -> None:
    (entry, run), *others = runs.split(coded, 3)
    symbols = streams.unpack(entry, run, len(out))
    if symbols is None:
        out[:] = predicted
        return
    np.add(predicted, symbols.view(np.int8).astype(np.int16).view(np.uint16), out=out)
    places = np.flatnonzero(symbols == _MARK)
    low, high = (streams.unpack(entry, run, len(places)) for entry, run in others)
    rest = predicted[places]
    if low is not None:
        rest += low
    if high is not None:
        rest += high.astype(np.uint16) << 8
    out[places] = rest
