"""A chunk of 16-bit floats against a reference, brought to one scale by the reference's exponent.

A weight half as large has a last place half as wide, so the same movement is a difference twice
as large. Words are grouped by the reference's exponent. Down to an *anchor* exponent each group
has a code table of its own; below it, a difference loses one more low bit for each halving, which
gives all of them the same distribution and thus one table. The bits lost are noise and are kept
as they are, a plane each: since words are sorted by exponent, those that have lost more than so
many bits are the last ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from blockzoo.codecs import runs, streams
from blockzoo.codecs.grouping import Groups
from blockzoo.codecs.words import Words
from blockzoo.errors import DamagedError

_MARK = -128  # stands for what does not fit a byte even so
_MOST_BITS = 12  # that a difference may lose
_WIDTH = 48  # median of a difference, in last places, from which on groups share a table
_SAMPLE = 2048  # words of a group that its median is taken of


def encode(difference: Words, found: Groups) -> bytes:
    """Code differences, (n,) uint16 in grouped order (they wrap at 2¹⁶)."""
    signed = difference.view(np.int16)
    anchor = _anchor(signed, found)
    shifts = _shifts(anchor, found)
    symbols = np.empty(len(signed), np.int8)
    for begin, end, shift in shifts:
        short = signed[begin:end] >> shift
        part = short.astype(np.int8)
        part[part != short] = _MARK
        symbols[begin:end] = part
    rest = difference[symbols == _MARK]
    packed = [
        streams.pack(symbols[begin:end].view(np.uint8), "small")
        for begin, end in _tables(anchor, found)
    ]
    packed.append(streams.pack(rest.astype(np.uint8), "small"))
    packed.append(streams.pack((rest >> 8).astype(np.uint8), "small"))
    for bit, begin in _planes(shifts):
        plane = (difference[begin:] >> bit).astype(np.uint8) & 1
        packed.append(streams.pack(np.packbits(plane), "stored"))
    return anchor.to_bytes(2, "little") + runs.join(packed)


def decode(coded: memoryview, found: Groups) -> Words:
    """Undo `encode`: differences, (n,) uint16 in grouped order.

    Raises
    ------
    DamagedError
    """
    anchor = int.from_bytes(coded[:2], "little")
    if not 0 < anchor <= len(found.ends) + _MOST_BITS:
        raise DamagedError("a chunk's scale is out of range")
    shifts, tables = _shifts(anchor, found), _tables(anchor, found)
    planes, count = _planes(shifts), found.ends[-1]
    low, high = len(tables), len(tables) + 1
    parts = runs.split(coded[2:], high + 1 + len(planes))
    symbols = np.empty(count, np.int8)
    for (begin, end), part in zip(tables, parts, strict=False):
        symbols[begin:end] = _unpack(part, end - begin).view(np.int8)
    difference = symbols.astype(np.int16).view(np.uint16)
    for begin, end, shift in shifts:
        if shift:
            difference[begin:end] <<= shift
    for (bit, begin), part in zip(planes, parts[high + 1 :], strict=True):
        plane = np.unpackbits(_unpack(part, -((begin - count) // 8)), count=count - begin)
        wide = plane.astype(np.uint16)
        wide <<= bit
        difference[begin:] |= wide
    places = np.flatnonzero(symbols == _MARK)
    rest = _unpack(parts[low], len(places)).astype(np.uint16)
    rest |= _unpack(parts[high], len(places)).astype(np.uint16) << 8
    difference[places] = rest
    return difference


def _unpack(part: tuple[int, memoryview], count: int) -> NDArray[np.uint8]:
    plane = streams.unpack(*part, count)
    return np.zeros(count, np.uint8) if plane is None else plane


def _anchor(signed: NDArray[np.int16], found: Groups) -> int:
    """The group, counted from the largest exponent's, whose differences have a good width.

    It is counted from `_MOST_BITS`, as it may lie before the first where all are wide.
    """
    begin = 0
    for group, end in enumerate(found.ends):
        if end - begin >= min(_SAMPLE // 4, found.ends[-1] // 4):
            sample = np.sort(np.abs(signed[begin:end][:_SAMPLE].astype(np.int32)))
            median = int(sample[len(sample) // 2])
            if median >= _WIDTH:
                wide = (median // _WIDTH).bit_length() - 1
                return max(1, group + _MOST_BITS - wide)
        begin = end
    return len(found.ends) + _MOST_BITS


def _shifts(anchor: int, found: Groups) -> list[tuple[int, int, int]]:
    """How many bits the differences of each group lose, as (begin, end, bits)."""
    begin, result = 0, []
    for group, end in enumerate(found.ends):
        if end > begin:
            bits = min(max(0, group + _MOST_BITS - anchor), _MOST_BITS)
            result.append((begin, end, bits))
        begin = end
    return result


def _tables(anchor: int, found: Groups) -> list[tuple[int, int]]:
    """The words that share a code table, as (begin, end): the last begin at the anchor."""
    group = anchor - _MOST_BITS
    ends = found.merged(max(0, min(group, len(found.ends) - 1)))
    return list(zip((0, *ends), ends, strict=False))


def _planes(shifts: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """The bits lost, as (bit, first word that has lost it)."""
    planes: dict[int, int] = {}
    for begin, _, bits in shifts:
        for bit in range(bits):
            planes.setdefault(bit, begin)
    return sorted(planes.items())
