"""How far two tensors are apart, from their bytes.

Works on bytes and NumPy, a chunk at a time: comparing two tensors of any size takes a few
megabytes. Called by ``diff`` and by the search for near-copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockzoo.tensors import DTYPE_BITS, TensorInfo

#: elements in a chunk
CHUNK = 1 << 20

_NATIVE: dict[str, str] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I8": "i1",
    "U8": "u1",
    "I16": "<i2",
    "U16": "<u2",
    "I32": "<i4",
    "U32": "<u4",
    "I64": "<i8",
    "U64": "<u8",
    "BOOL": "?",
}

#: exponent bits, mantissa bits, bias, and the codes that are no numbers
_FLOAT8: dict[str, tuple[int, int, int, str]] = {
    "F8_E4M3": (4, 3, 7, "all ones"),
    "F8_E5M2": (5, 2, 15, "ieee"),
    "F8_E4M3FNUZ": (4, 3, 8, "negative zero"),
    "F8_E5M2FNUZ": (5, 2, 16, "negative zero"),
}

Floats = NDArray[np.float32] | NDArray[np.float64]


def as_float(info: TensorInfo, data: memoryview | bytes, chunk: int = CHUNK) -> Iterator[Floats]:
    """A tensor's values as floating point, chunk by chunk, flat and in order.

    Parameters
    ----------
    info : TensorInfo
    data : memoryview or bytes
        Its bytes, ``info.nbytes`` of them.
    chunk : int
        Elements at a time.

    Yields
    ------
    numpy.ndarray
        float32 where that holds every value exactly (bf16, fp16, fp8, 8 and 16 bit integers,
        booleans), float64 otherwise (exact but for integers beyond 2⁵³); 1-D, read-only or fresh.
        C64 values come as real and imaginary parts in turn.

    Raises
    ------
    TypeError
        For dtypes whose elements do not fill bytes.
    """
    convert, width = _converter(info.dtype)
    step = chunk * width
    view = memoryview(data).cast("B") if info.nbytes else memoryview(b"")
    for start in range(0, info.nbytes, step):
        yield convert(view[start : start + step])


@dataclass(frozen=True)
class Difference:
    """What `compare` found.

    Parameters
    ----------
    relative : float
        ‖a−b‖/‖a‖ in the Frobenius norm, over the rows that both have; infinite where ``a`` is
        zero and ``b`` is not. Places where both are NaN, or the same infinity, count as equal;
        where one alone is, the distance is infinite.
    bits_changed : float
        Share of the bits that differ, from 0 to 1; NaN where the dtypes differ.
    rows_added : int
        Rows that ``b`` has beyond ``a``'s; negative where it has fewer.
    """

    relative: float
    bits_changed: float
    rows_added: int = 0


def compare(
    a: tuple[TensorInfo, memoryview | bytes], b: tuple[TensorInfo, memoryview | bytes]
) -> Difference | None:
    """Two tensors, one perhaps grown by rows (added tokens).

    Parameters
    ----------
    a, b : (TensorInfo, bytes)
        Of any dtypes; the shapes may differ in the first dimension.

    Returns
    -------
    Difference or None
        None where the shapes cannot be compared.
    """
    (info, data), (other, more) = a, b
    if info.shape != other.shape:
        grown = len(info.shape) == len(other.shape) > 0 and info.shape[1:] == other.shape[1:]
        if not grown:
            return None
        rows = min(info.shape[0], other.shape[0])
        added = other.shape[0] - info.shape[0]
        info, data = _first_rows(info, data, rows)
        other, more = _first_rows(other, more, rows)
    else:
        added = 0
    same = info.dtype == other.dtype
    share = bits_changed((info, data), (other, more)) if same else math.nan
    distance = 0.0 if share == 0.0 else relative_distance((info, data), (other, more))
    return Difference(distance, share, added)


def relative_distance(
    a: tuple[TensorInfo, memoryview | bytes], b: tuple[TensorInfo, memoryview | bytes]
) -> float:
    """‖a−b‖/‖a‖ in the Frobenius norm, summed in float64.

    Parameters
    ----------
    a, b : (TensorInfo, bytes)
        Of the same shape; dtypes may differ.

    Returns
    -------
    float
        0 for equal values, infinity where ``a`` is zero and ``b`` is not. Places where both are
        NaN, or the same infinity, count as equal and are left out; where only one is, or they
        are other infinities, the distance is infinite.

    Raises
    ------
    ValueError
        Where the shapes differ.
    """
    if a[0].shape != b[0].shape:
        raise ValueError(f"shapes {list(a[0].shape)} and {list(b[0].shape)} differ")
    apart = size = 0.0
    for x, y in zip(as_float(*a), as_float(*b), strict=True):
        left, right = x.astype(np.float64), y.astype(np.float64)
        finite = np.isfinite(left) & np.isfinite(right)
        if not finite.all():
            odd = ~finite
            same = (left[odd] == right[odd]) | (np.isnan(left[odd]) & np.isnan(right[odd]))
            if not same.all():
                return math.inf
            left, right = left[finite], right[finite]
        # scaled, so that squares of float64 extremes neither overflow nor vanish
        with np.errstate(over="ignore"):
            apart = math.hypot(apart, _norm(left - right))
            size = math.hypot(size, _norm(left))
    if apart == 0.0:
        return 0.0
    return apart / size if size else math.inf


def bits_changed(
    a: tuple[TensorInfo, memoryview | bytes], b: tuple[TensorInfo, memoryview | bytes]
) -> float:
    """The share of bits that differ, from 0 (same bytes) to 1; 0 for empty tensors.

    Raises
    ------
    ValueError
        Where dtypes or shapes differ.
    """
    if (a[0].dtype, a[0].shape) != (b[0].dtype, b[0].shape):
        raise ValueError(f"{a[0]} and {b[0]} have no bits in common")
    total = a[0].nbytes
    if not total:
        return 0.0
    left = np.frombuffer(a[1], np.uint8)
    right = np.frombuffer(b[1], np.uint8)
    changed = 0
    step = CHUNK * 4
    for start in range(0, total, step):
        differing = left[start : start + step] ^ right[start : start + step]
        if differing.any():
            changed += int(np.bitwise_count(differing).sum(dtype=np.int64))
    return changed / (8 * total)


def _norm(values: NDArray[np.float64]) -> float:
    largest = float(np.max(np.abs(values), initial=0.0))
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    # a power of two, so that scaling rounds nothing
    scale = math.ldexp(1.0, -math.frexp(largest)[1] + 1) if not 1e-100 < largest < 1e100 else 1.0
    scaled = values * scale if scale != 1.0 else values
    return math.sqrt(float(np.dot(scaled, scaled))) / scale


def _first_rows(
    info: TensorInfo, data: memoryview | bytes, rows: int
) -> tuple[TensorInfo, memoryview | bytes]:
    part = TensorInfo(info.dtype, (rows, *info.shape[1:]))
    return part, memoryview(data).cast("B")[: part.nbytes] if part.nbytes else b""


def _converter(dtype: str) -> tuple[Callable[[memoryview], Any], int]:
    """How bytes of a dtype become floats, and how many bytes an element has."""
    width = DTYPE_BITS[dtype] // 8
    if dtype == "BF16":
        return _from_bfloat16, width
    if dtype in _FLOAT8 or dtype == "F8_E8M0":
        table = _table(dtype)
        return lambda view: table[np.frombuffer(view, np.uint8)], width
    if dtype == "C64":
        return lambda view: np.frombuffer(view, "<f4"), width
    if dtype not in _NATIVE:
        raise TypeError(f"elements of {dtype} cannot be taken apart")
    native = np.dtype(_NATIVE[dtype])
    wide = dtype in ("F64", "I32", "U32", "I64", "U64")
    target = np.float64 if wide else np.float32
    return lambda view: np.frombuffer(view, native).astype(target, copy=False), width


def _from_bfloat16(view: memoryview) -> NDArray[np.float32]:
    wide = np.frombuffer(view, "<u2").astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


@cache
def _table(dtype: str) -> NDArray[np.float32]:
    """The value of each of the 256 codes of an 8-bit float."""
    codes = np.arange(256)
    if dtype == "F8_E8M0":
        values = np.ldexp(1.0, codes - 127)
        values[255] = np.nan
        return values.astype(np.float32)
    exponent_bits, mantissa_bits, bias, odd = _FLOAT8[dtype]
    mantissa = codes & ((1 << mantissa_bits) - 1)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    normal = np.ldexp(1.0 + mantissa / (1 << mantissa_bits), exponent - bias)
    subnormal = np.ldexp(mantissa / (1 << mantissa_bits), 1 - bias)
    values = np.where(exponent > 0, normal, subnormal)
    values = np.where(codes >= 128, -values, values)
    if odd == "all ones":
        values[[0x7F, 0xFF]] = np.nan
    elif odd == "negative zero":
        values[0x80] = np.nan
    else:
        largest = exponent == (1 << exponent_bits) - 1
        values[largest & (mantissa == 0) & (codes < 128)] = np.inf
        values[largest & (mantissa == 0) & (codes >= 128)] = -np.inf
        values[largest & (mantissa > 0)] = np.nan
    return values.astype(np.float32)
