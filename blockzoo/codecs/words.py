"""Tensors as unsigned integers: where a dtype has its sign and exponent, and how the values of
one dtype look in another.

All of it is integer arithmetic, so what is decoded never depends on a machine's floating point.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockzoo.codecs.scratch import scratch
from blockzoo.tensors import DTYPE_BITS, TensorInfo

Words = NDArray[Any]  # uint8, uint16, uint32 or uint64


@dataclass(frozen=True)
class Layout:
    """How a dtype's elements are read.

    Parameters
    ----------
    size : int
        Bytes of one word.
    shift, bits : int
        Where the exponent begins and how wide it is; no bits where there is none.
    """

    size: int
    shift: int = 0
    bits: int = 0

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(f"<u{self.size}")

    @property
    def halves(self) -> Any:
        """A word with 128 in every byte but the highest."""
        return self.dtype.type(int.from_bytes(b"\x80" * (self.size - 1), "little"))

    @property
    def signed(self) -> np.dtype[Any]:
        return np.dtype(f"<i{self.size}")


_FLOATS = {
    "BF16": Layout(2, 7, 8),
    "F16": Layout(2, 10, 5),
    "F32": Layout(4, 23, 8),
    "C64": Layout(4, 23, 8),
    "F64": Layout(8, 52, 11),
    "F8_E4M3": Layout(1, 3, 4),
    "F8_E4M3FNUZ": Layout(1, 3, 4),
    "F8_E5M2": Layout(1, 2, 5),
    "F8_E5M2FNUZ": Layout(1, 2, 5),
}
_CONVERTIBLE = frozenset({"BF16", "F16", "F32"})


def layout(dtype: str) -> Layout:
    """How elements of this dtype are read; sub-byte ones by the byte."""
    return _FLOATS.get(dtype) or Layout(max(1, DTYPE_BITS[dtype] // 8))


def count_words(info: TensorInfo) -> int:
    """How many words a tensor has."""
    return info.nbytes // layout(info.dtype).size


def words(info: TensorInfo, data: memoryview | bytes) -> Words:
    """A tensor's bytes as words, without a copy; shape (words,)."""
    return np.frombuffer(data, layout(info.dtype).dtype, count=count_words(info))


def comparable(dtype: str, reference: str) -> bool:
    """Whether a tensor of one dtype can be kept as a difference from one of another."""
    return dtype == reference or {dtype, reference} <= _CONVERTIBLE


def convert(values: Words, source: str, target: str) -> Words:
    """The bit patterns of `values` in another dtype, rounded to nearest, ties to even."""
    if source == target:
        return values
    if source == "F32":
        return _narrow(values, target)
    if target == "F32":
        return _widen(values, source)
    return np.asarray(_table(source, target)[values])


@cache
def _table(source: str, target: str) -> Words:
    return _narrow(_widen(np.arange(1 << 16, dtype="<u2"), source), target)


def _widen(values: Words, source: str) -> Words:
    """16-bit patterns to those of float32."""
    wide = values.astype("<u4")
    if source == "BF16":
        return np.asarray(wide << 16)
    sign, rest = (wide & 0x8000) << 16, wide & 0x7FFF
    normal = (rest << 13) + (112 << 23)
    # a subnormal m·2⁻²⁴ has the exponent of its leading bit
    lead = np.zeros_like(rest)
    for bit in range(1, 10):
        lead[rest >= 1 << bit] = bit
    small = ((lead + 103) << 23) | ((rest << (23 - lead)) & 0x7FFFFF)
    special = (rest << 13) | 0x7F800000
    result = np.where(rest >= 0x7C00, special, np.where(rest >= 0x400, normal, small))
    return np.asarray(sign | np.where(rest == 0, 0, result), "<u4")


def _narrow(values: Words, target: str) -> Words:
    """Patterns of float32 to 16-bit ones."""
    rest = values & 0x7FFFFFFF
    if target == "BF16":
        rounded = (values + (0x7FFF + ((values >> 16) & 1))) >> 16
        return np.where(rest > 0x7F800000, (values >> 16) & 0x8000 | 0x7FC0, rounded).astype("<u2")
    sign = (values >> 16) & 0x8000
    normal = np.minimum((rest - (112 << 23) + 0xFFF + ((rest >> 13) & 1)) >> 13, 0x7C00)
    mantissa = (rest & 0x7FFFFF) | 0x800000
    shift = np.clip(126 - (rest >> 23).astype(np.int64), 1, 31).astype(np.uint32)
    half = (np.uint32(1) << (shift - 1)) - 1 + ((mantissa >> shift) & 1)
    small = (mantissa + half) >> shift
    result = np.where(rest >= 113 << 23, normal, small)
    return (sign | np.where(rest > 0x7F800000, 0x7E00, result)).astype("<u2")


def difference(kind: Layout, values: Words, predicted: Words) -> Words:
    """The difference of two arrays of words in the order of their values, in scratch memory.

    Floats are ordered by folding the sign, so that −0 and the smallest positive value are
    neighbours; the difference wraps.
    """
    result = _fold(kind, values, scratch("moved", len(values), kind.dtype))
    result -= _fold(kind, predicted, scratch("folded", len(values), kind.dtype))
    return result


def restore(kind: Layout, moved: Words, predicted: Words, out: Words) -> None:
    """Undo `difference`; `moved` is overwritten."""
    moved += _fold(kind, predicted, scratch("folded", len(moved), kind.dtype))
    _fold(kind, moved, out)


def small_in_low_byte(kind: Layout, moved: Words) -> None:
    """Put differences, in place, so that small ones of either sign have zeros above one byte."""
    moved += kind.halves
    moved ^= kind.halves


def undo_small_in_low_byte(kind: Layout, moved: Words) -> None:
    """Undo `small_in_low_byte`, in place."""
    moved ^= kind.halves
    moved -= kind.halves


def bytes_at(values: Words, place: int) -> NDArray[np.uint8]:
    """The same byte of every word, the lowest at place 0."""
    return np.asarray((values >> (8 * place) if place else values).astype(np.uint8))


def put_bytes(out: Words, place: int, values: NDArray[np.uint8]) -> None:
    """Undo `bytes_at`; to be called for place 0 first, and bits not yet put are zero."""
    if place == 0:
        out[:] = values
    else:
        wide = values.astype(out.dtype)
        wide <<= 8 * place
        out |= wide


def _fold(kind: Layout, values: Words, out: Words) -> Words:
    """Negative floats' order turned round, into `out`; its own inverse."""
    if not kind.bits:
        return np.asarray(np.add(values, 0, out=out, dtype=kind.dtype))
    mask = scratch("mask", len(values), kind.signed)
    np.right_shift(values.view(kind.signed), 8 * kind.size - 1, out=mask)
    words = mask.view(kind.dtype)
    words >>= 1
    return np.asarray(np.bitwise_xor(values, words, out=out))
