"""Which tensors are kept whole and which as differences from which, for the smallest total.

Within a group of tensors of like shape, references are picked one after another, each time the
one that saves most over the whole group (the greedy solution of facility location), until none
saves more than it costs to keep it raw. So a base that all its fine-tunes are near is found
whatever the order of arrival, and a difference is never more than one step deep.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from blockzoo.tensors import DTYPE_BITS

Floats = NDArray[np.float64]

_MANTISSA = {"BF16": 7, "F16": 10, "F32": 23}
#: by dtype, the share of raw that planes take, which need no reference
ALONE = {"BF16": 0.68, "F16": 0.86, "F32": 0.86}
_WORTHWHILE = 0.95  # of what a tensor costs otherwise


def expected_share(dtype: str, distance: Floats) -> Floats:
    """What a difference takes, as a share of raw, by relative distance.

    A residual of relative size ``d`` is some ``d · 2^(mantissa + ½)`` units in the last place
    wide; the entropy of a normal of that width is log2(width · √(2πe)), and some bits more since
    weights of one tensor differ in size. It ranks references; what a plan prints is measured.
    """
    width = distance * 2 ** (_MANTISSA.get(dtype, 7) + 0.5)
    bits = np.log2(1 + width * 4.13) + 1.1 * np.minimum(1, 4 * width)
    return np.clip(bits / DTYPE_BITS[dtype], 0.002, 1.0)


def choose(
    dtype: str,
    sizes: NDArray[np.int64],
    distances: Floats,
    pinned: NDArray[np.bool_],
    alone: bool,
    raw_references: bool,
) -> NDArray[np.int64]:
    """Pick references for a group of tensors.

    Parameters
    ----------
    dtype : str
    sizes : (n,) int64
        Bytes of each tensor.
    distances : (n, n) float64
        Estimated ‖row−column‖/‖row‖; infinite where two cannot be compared.
    pinned : (n,) bool
        Those that are kept raw whatever it costs.
    alone : bool
        Whether tensors without a reference are kept as planes.
    raw_references : bool
        Whether tensors that are references are kept raw all the same.

    Returns
    -------
    (n,) int64
        The index of each tensor's reference; -1 where it has none.
    """
    count = len(sizes)
    raw = sizes.astype(np.float64)
    lonely = np.where(pinned, raw, raw * (ALONE.get(dtype, 1.0) if alone else 1.0))
    cost = raw[:, None] * expected_share(dtype, distances)
    cost[~np.isfinite(distances)] = np.inf
    cost[pinned, :] = np.inf  # never a difference
    np.fill_diagonal(cost, np.inf)
    now = lonely.copy()
    reference = np.full(count, -1, np.int64)
    is_reference = np.zeros(count, bool)
    standing = raw if raw_references else lonely
    while True:
        useful = np.where(cost < _WORTHWHILE * now[:, None], now[:, None] - cost, 0.0)
        useful[is_reference, :] = 0.0
        gain = useful.sum(axis=0) - (standing - now)  # it stands on its own from now on
        gain[is_reference] = -np.inf
        best = int(np.argmax(gain)) if count else -1
        if best < 0 or gain[best] <= 0:
            return reference
        takes = useful[:, best] > 0
        takes[best] = False
        reference[takes] = best
        now[takes] = cost[takes, best]
        is_reference[best], reference[best], now[best] = True, -1, standing[best]
        cost[best, :] = np.inf
