"""One chunk of a tensor by itself: byte planes, the exponents in one of them where there are any.

A float's bits are turned round by one, so that the sign, which is noise, leaves the exponents'
byte and joins the mantissa.
"""

from __future__ import annotations

import numpy as np

from blockzoo.codecs import runs, streams
from blockzoo.codecs.words import Layout, Words, bytes_at, put_bytes
from blockzoo.errors import DamagedError

_FORM = 3
_REPEATS = {"fast": 3, "small": 9}  # in integers (masks, ids, tables); weights hold none


def encode_chunk(kind: Layout, values: Words, level: str) -> bytes:
    """Code a chunk's words, (n,)."""
    if kind.bits:
        values = (values << 1) | (values >> (8 * kind.size - 1))
    repeats = 0 if kind.bits else _REPEATS[level]
    planes = (bytes_at(values, place) for place in range(kind.size))
    packed = [streams.pack(plane, repeats=repeats) for plane in planes]
    return bytes([_FORM]) + runs.join(packed)


def decode_chunk(kind: Layout, coded: memoryview, out: Words) -> None:
    """Decode a chunk into `out`, (n,).

    Raises
    ------
    DamagedError
    """
    if not len(coded) or coded[0] != _FORM:
        raise DamagedError("a chunk is in no known form")
    for place, (entry, run) in enumerate(runs.split(coded[1:], kind.size)):
        plane = streams.unpack(entry, run, len(out))
        if plane is not None:
            put_bytes(out, place, plane)
        elif place == 0:
            out.fill(0)
    if kind.bits:
        top = out << (8 * kind.size - 1)
        np.right_shift(out, 1, out=out)
        out |= top
