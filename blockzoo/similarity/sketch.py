"""A linear sketch of a tensor: 1,024 numbers that tell how far it is from any other.

CountSketch (Charikar, Chen, Farach-Colton 2002): each element is added, with a sign, to one of
`SIZE` sums. Signs and sums are drawn once from a fixed seed and depend on the element's flat
position only, so the sketch is linear: the sketch of a difference is the difference of the
sketches, and ``‖sketch(a) − sketch(b)‖`` estimates ``‖a − b‖``. The estimate of the square is
unbiased; its standard error is √(2/1024), so 2.2% of the distance itself, however small
that is, down to about 1e-7 of the norm, where the float32 in which sketches are kept ends.

**In one pass and fast**: the tensor is cut into pieces of `PIECE` elements. A piece is multiplied
by fixed signs, turned by an offset of its own, and added with a sign of its own to a buffer in
float64; only the buffer goes through the hash. Two elements of different pieces still meet with
probability 1/1024, and their signs are independent, which is all the estimate needs.

**Grown rows**: positions are flat and count from the start, so the rows that a tensor and its
grown copy share fall on the same sums. The sketch of rows from `first` on may be taken by itself
(`sketch_rows`), and subtracted.

**Short vectors** (up to 1,024 elements in one dimension) are their own sketch: exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from blockzoo.codecs.scratch import scratch
from blockzoo.similarity.weights import Floats, as_float
from blockzoo.tensors import DTYPE_BITS, TensorInfo

#: numbers in a sketch
SIZE = 1024
#: elements that are added to the buffer at a time; 256 KiB in float32 stay in the cache
PIECE = 1 << 16
#: the seed and layout of the hash; sketches of other versions cannot be compared
VERSION = 1

_SEED = 0x5EED
_SAFE = 1e-20  # a sum of squares in float32 that no vanishing square can have spoiled

Values = NDArray[np.float32]


@dataclass(frozen=True)
class Sketch:
    """A tensor's sketch.

    Parameters
    ----------
    values : numpy.ndarray
        float32, shape (1024,).
    norm : float
        The Frobenius norm of the tensor itself. NaN and infinite elements count as zero.
    """

    values: Values
    norm: float


def bucket(info: TensorInfo) -> str | None:
    """The name under which tensors that can be compared are kept together.

    Tensors of one class of dtypes (all floats are one: a bf16 copy of a float32 tensor is near
    it) that differ at most in their number of rows. A vector's length must be the same.

    Returns
    -------
    str or None
        Fit for a file's name. None for a tensor that has no sketch: empty, or with elements
        smaller than a byte.
    """
    if DTYPE_BITS[info.dtype] < 8 or not info.elements:
        return None
    kind = "float" if info.dtype[0] == "F" or info.dtype == "BF16" else info.dtype.lower()
    if len(info.shape) < 2:
        return f"{kind}-{info.elements}"
    return "-".join([kind, "n", *map(str, info.shape[1:])])


def sketch(info: TensorInfo, data: memoryview | bytes) -> Sketch:
    """The sketch of a tensor.

    Parameters
    ----------
    info : TensorInfo
    data : memoryview or bytes
        Its bytes, read once and in order.

    Raises
    ------
    TypeError
        For dtypes whose elements do not fill bytes.
    """
    return _sketch(info, data, 0)


def sketch_rows(info: TensorInfo, data: memoryview | bytes, first: int) -> Sketch:
    """The sketch of a tensor with the rows before `first` set to zero; reads only the others.

    What a grown tensor has beyond its origin's rows: ``sketch(grown) − sketch_rows(grown, n)``
    is the sketch of its first ``n`` rows.
    """
    row = math.prod(info.shape[1:])
    rest = TensorInfo(info.dtype, (info.shape[0] - first, *info.shape[1:]))
    start = info.nbytes - rest.nbytes
    return _sketch(rest, memoryview(data).cast("B")[start:] if rest.nbytes else b"", first * row)


def distance(a: Sketch, b: Sketch) -> float:
    """The estimate of ‖a−b‖/‖a‖; infinite where ``a`` is zero and ``b`` is not."""
    apart = _norm(a.values.astype(np.float64) - b.values)
    return 0.0 if apart == 0.0 else apart / a.norm if a.norm else math.inf


def _sketch(info: TensorInfo, data: memoryview | bytes, position: int) -> Sketch:
    width = 2 if info.dtype == "C64" else 1  # complex elements are two numbers each
    if len(info.shape) < 2 and info.elements * width <= SIZE:
        flat = np.concatenate([np.zeros(0), *_finite(as_float(info, data))])
        return Sketch(np.pad(flat, (0, SIZE - len(flat))).astype(np.float32), _norm(flat))
    with np.errstate(over="ignore", invalid="ignore"):
        buffer, squares = _fold(_pieces(info, data), position * width)
        if not (np.isfinite(buffer).all() and _SAFE < squares < math.inf):
            # rare, so nothing is checked element by element before it is known to be needed
            pieces = _finite(as_float(info, data, PIECE))
            buffer, squares = _fold(pieces, position * width)
        return Sketch(_hash(buffer).astype(np.float32), math.sqrt(squares))


def _norm(values: NDArray[np.float64]) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.linalg.norm(values))


def _pieces(info: TensorInfo, data: memoryview | bytes) -> Iterator[Floats]:
    """A tensor's values, `PIECE` at a time; each piece holds until the next."""
    if info.dtype != "BF16":
        yield from as_float(info, data, PIECE)
        return
    words = np.frombuffer(data, "<u2", info.elements)
    for start in range(0, len(words), PIECE):
        part = words[start : start + PIECE]
        wide = scratch("piece", len(part), np.uint32)
        wide[:] = part
        wide <<= 16
        yield wide.view(np.float32)


def _finite(pieces: Iterator[Floats]) -> Iterator[Floats]:
    for piece in pieces:
        yield np.where(np.isfinite(piece), piece, 0).astype(np.float64)


def _fold(pieces: Iterator[Floats], position: int) -> tuple[NDArray[np.float64], float]:
    """Add all pieces to one buffer, the first element standing at a flat position."""
    buffer = scratch("buffer", PIECE, np.float64)
    buffer.fill(0)
    squares = 0.0
    for values in pieces:
        squares += float(np.einsum("i,i->", values, values))
        # where elements do not start at a piece's border, they fall on two pieces
        cut = PIECE - position % PIECE
        for part in (values[:cut], values[cut:]):
            if len(part):
                _add(buffer, part, *divmod(position, PIECE))
                position += len(part)
    return buffer, squares


def _add(buffer: NDArray[np.float64], values: Floats, piece: int, start: int) -> None:
    signs, _, _ = _tables()
    turn, negative = _turn(piece)
    signed = scratch("signed", len(values), values.dtype)
    np.multiply(values, signs[start : start + len(values)], out=signed)
    combine = np.subtract if negative else np.add
    place = (start + turn) % PIECE
    first = min(len(signed), PIECE - place)
    for target, part in ((place, signed[:first]), (0, signed[first:])):
        if len(part):
            held = buffer[target : target + len(part)]
            combine(held, part, out=held)


def _hash(buffer: NDArray[np.float64]) -> NDArray[np.float64]:
    _, signs, sums = _tables()
    signed = np.multiply(buffer, signs, out=scratch("signed", PIECE, np.float64))
    return np.bincount(sums, signed, SIZE).astype(np.float64, copy=False)


def _turn(piece: int) -> tuple[int, bool]:
    """By how much a piece is turned and whether it is subtracted: a mix of its number's bits."""
    # splitmix64's finalizer: any piece at once, without a table of them all
    mask = (1 << 64) - 1
    z = (piece * 0x9E3779B97F4A7C15 + _SEED) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    z ^= z >> 31
    return z % PIECE, bool(z >> 63)


@cache
def _tables() -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.intp]]:
    """Signs within a piece, and the signs and sums of the buffer's places."""
    # raw bits of a generator whose stream NumPy promises never to change
    bits = np.random.PCG64(_SEED).random_raw(PIECE)
    one = np.uint64(1)
    signs = 1 - 2 * (bits & one).astype(np.float32)
    hashed = 1 - 2 * ((bits >> one) & one).astype(np.float64)
    sums = ((bits >> np.uint64(20)) % np.uint64(SIZE)).astype(np.intp)
    return signs, hashed, sums
