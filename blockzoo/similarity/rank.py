"""The rank of the difference of two matrices: is a fine-tune a merged LoRA?

A merged low-rank update is no longer of low rank bit for bit: rounding the sum to bf16 adds noise
in every direction. But how strong that noise is follows from the dtype, and singular values above
it are the update's own. The bound is that of Bandeira and van Handel (2016) for independent
errors of unequal size: largest row norm plus largest column norm of their standard deviations,
where rounding errors are uniform over a unit in the last place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blockzoo.similarity.weights import as_float
from blockzoo.tensors import TensorInfo

#: the shorter side up to which all singular values are computed
EXACT_SIDE = 2048
#: above it, so many of them by random projection
PROJECTED = 256
#: elements beyond which a difference is not decomposed: 1 GiB in float32
LARGEST = 1 << 28

#: bits of the mantissa that are stored
_MANTISSA = {
    "F64": 52,
    "F32": 23,
    "F16": 10,
    "BF16": 7,
    "F8_E4M3": 3,
    "F8_E4M3FNUZ": 3,
    "F8_E5M2": 2,
    "F8_E5M2FNUZ": 2,
}
_SLACK = 1.1  # the bound holds up to a factor near 1
_SEED = 0

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Rank:
    """The rank of a difference b − a.

    Parameters
    ----------
    numerical : int
        Singular values above what rounding to b's dtype gives by itself.
    at_least : bool
        Whether it is only a lower bound: a large matrix, and all values computed are above.
    effective : float
        The exponential of the entropy of the squared singular values (Roy and Vetterli 2007, on
        squares): how many directions carry the change. A lower bound where only some values were
        computed.
    full : int
        The shorter side.
    """

    numerical: int
    at_least: bool
    effective: float
    full: int


def difference_rank(
    a: tuple[TensorInfo, memoryview | bytes], b: tuple[TensorInfo, memoryview | bytes]
) -> Rank | None:
    """The rank of b − a, over the rows that both have.

    Costs rows × columns × the shorter side (up to `EXACT_SIDE`), and the matrix in float32.

    Returns
    -------
    Rank or None
        None for what is no floating-point matrix of two or more dimensions (further ones are
        taken together), differs in more than rows, is larger than `LARGEST`, or has values that
        are no finite numbers.
    """
    (info, _), (other, _) = a, b
    if len(info.shape) < 2 or info.shape[1:] != other.shape[1:] or other.dtype not in _MANTISSA:
        return None
    rows, columns = min(info.shape[0], other.shape[0]), math.prod(info.shape[1:])
    if info.dtype not in _MANTISSA or not 0 < rows * columns <= LARGEST:
        return None
    read = _difference(a, b, rows, columns)
    if read is None:
        return None
    apart, noise = read
    full = min(rows, columns)
    exact = full <= EXACT_SIDE
    squares = _exact(apart) if exact else _projected(apart)
    total = float(np.einsum("ij,ij->", apart, apart, dtype=np.float64))
    if not total:
        return Rank(0, False, 0.0, full)
    above = int(np.count_nonzero(squares > (noise * _SLACK) ** 2))
    return Rank(above, not exact and above == len(squares), _effective(squares, total), full)


def _difference(
    a: tuple[TensorInfo, memoryview | bytes],
    b: tuple[TensorInfo, memoryview | bytes],
    rows: int,
    columns: int,
) -> tuple[Matrix, float] | None:
    """The difference b − a, and the largest singular value that rounding alone gives."""
    apart = np.empty(rows * columns, np.float32)
    variance = np.empty(rows * columns, np.float32)
    mantissa = _MANTISSA[b[0].dtype]
    start = 0
    for x, y in zip(as_float(*a), as_float(*b), strict=False):
        count = min(len(x), len(y), len(apart) - start)
        wide = y[:count].astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            apart[start : start + count] = wide - x[:count]
            _, exponent = np.frexp(wide)
            units = np.ldexp(1.0, exponent - 1 - mantissa)
            variance[start : start + count] = np.where(wide != 0, units**2 / 12, 0.0)
        start += count
    if not np.isfinite(apart).all():
        return None
    errors = variance.reshape(rows, columns)
    largest = [float(errors.sum(axis=axis, dtype=np.float64).max()) for axis in (0, 1)]
    return apart.reshape(rows, columns), sum(math.sqrt(value) for value in largest)


def _exact(apart: Matrix) -> NDArray[np.float64]:
    """Squares of all singular values, from the Gram matrix of the shorter side."""
    tall = apart if apart.shape[0] >= apart.shape[1] else apart.T
    gram = np.zeros((tall.shape[1],) * 2)
    step = max(1, (1 << 22) // tall.shape[1])
    for start in range(0, len(tall), step):
        part = tall[start : start + step].astype(np.float64)
        gram += part.T @ part
    return np.asarray(np.maximum(np.linalg.eigvalsh(gram), 0.0), np.float64)


def _projected(apart: Matrix) -> NDArray[np.float64]:
    """Squares of the largest singular values (Halko, Martinsson, Tropp 2011)."""
    from sklearn.utils.extmath import randomized_svd

    _, values, _ = randomized_svd(apart, PROJECTED, n_iter=2, random_state=_SEED)
    return np.asarray(values, np.float64) ** 2


def _effective(squares: NDArray[np.float64], total: float) -> float:
    share = squares[squares > 0] / total
    return float(np.exp(-np.sum(share * np.log(share))))
