"""One chunk of a tensor against what the reference predicts, as bytes and back.

Two forms. *Escaped*, for 16-bit floats at level ``fast``: the difference of the bit patterns in
one byte where it fits, else a mark, and those values apart; little more than an addition to
decode. *Grouped*: the difference in the order of values, its words grouped by the reference's
exponent (level ``small``) or left as they stand, each byte of each group coded apart.
"""

from __future__ import annotations

import numpy as np

from blockzoo.codecs import runs, streams
from blockzoo.codecs.grouping import Grouping, Groups, groups
from blockzoo.codecs.words import Layout, Words, bytes_at, put_bytes, residual, restore
from blockzoo.errors import DamagedError

_MARK = 128  # the byte that stands for a difference too large for one
_LARGEST_SHARE = 0.25  # of marks; with more, bytes apart are shorter


def encode_chunk(
    kind: Layout, values: Words, predicted: Words, level: str, start: int, grouping: Grouping | None
) -> bytes:
    """Code a chunk's words, (n,), against the predicted ones, (n,)."""
    if level == "fast":
        if kind.size == 2 and kind.bits and (coded := _encode_escaped(values, predicted)):
            return b"\1" + coded
        found = Groups(None, (len(values),))
    elif grouping is not None:
        found = grouping.chunk(kind, start, predicted)
    else:
        found = groups(kind, predicted)
    difference = residual(kind, values, predicted)
    if found.order is not None:
        difference = difference[found.order.astype(np.intp)]
    packed, begin = [], 0
    for end in found.ends:
        for place in range(kind.size):
            packed.append(streams.pack(bytes_at(difference[begin:end], place), level))
        begin = end
    form = b"\0" if level == "fast" else b"\2"
    return form + runs.join(packed)


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
    form = coded[0] if len(coded) else 255
    if form == 1 and kind.size == 2:
        _decode_escaped(coded[1:], predicted, out)
        return
    if form not in (0, 2):
        raise DamagedError("a chunk is in no known form")
    if form == 0:
        found = Groups(None, (len(out),))
    elif grouping is not None:
        found = grouping.chunk(kind, start, predicted)
    else:
        found = groups(kind, predicted)
    difference = np.empty(len(out), kind.dtype)
    parts = iter(runs.split(coded[1:], len(found.ends) * kind.size))
    begin = 0
    for end in found.ends:
        part = difference[begin:end]
        for place in range(kind.size):
            entry, run = next(parts)
            plane = streams.unpack(entry, run, end - begin)
            if plane is not None:
                put_bytes(part, place, plane)
            elif place == 0:
                part.fill(0)
        begin = end
    if found.order is not None:
        grouped, difference = difference, np.empty_like(difference)
        difference[found.order.astype(np.intp)] = grouped
    restore(kind, difference, predicted, out)


def _encode_escaped(values: Words, predicted: Words) -> bytes | None:
    difference = values - predicted
    symbols = difference.astype(np.uint8)
    large = symbols.view(np.int8).astype(np.int16).view(np.uint16) != difference
    large |= symbols == _MARK
    symbols[large] = _MARK
    rest = difference[large]
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
