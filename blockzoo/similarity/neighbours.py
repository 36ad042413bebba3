"""The nearest tensors of each tensor, from sketches alone.

Called by the planner of ``dedupe``, which looks for references, and by ``similar``.

Comparing all with all would be quadratic. Near-copies come in **clusters**, far from each other:
the versions of one tensor of one base. So a bucket is first cut into clusters by leaders, each
tensor going to the first leader within reach, on sketches folded to 64 numbers; the work is
tensors × leaders, and leaders are as many as there are *unrelated* tensors, not models. A large
cluster is cut into **cells** around members drawn from it, each tensor going to its two
nearest, and scikit-learn searches each cell. The middle of a cluster, most often the base or
nearest to it, is offered to all of its members. Distances are then taken on the whole sketches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blockzoo.progress import Progress, silent
from blockzoo.similarity.sketch import SIZE
from blockzoo.similarity.sketches import Sketches
from blockzoo.tensors import TensorRef

#: neighbours of a tensor that are found by default
COUNT = 8
#: relative distance beyond which a tensor is no near-copy: at 0.6 a delta saves nothing
FARTHEST = 0.6

_FOLDED = 64  # numbers; the distance of two folds is off by 9%, good enough to choose cells
_SLACK = 1.4  # what a fold may be off, times over
_CELL = 512  # members of a cluster from which on it is cut into cells
_HOMES = 2  # cells that each of them is in
_ROWS = 2048  # tensors whose distances to all leaders are in memory at a time
_SEED = 0

Floats = NDArray[np.float32]
Numbers = NDArray[np.intp]


@dataclass(frozen=True)
class Neighbours:
    """For each of n sketches its nearest ones, nearest first.

    Parameters
    ----------
    numbers : numpy.ndarray
        Shape (n, count): which of the n; −1 where there are fewer.
    distances : numpy.ndarray
        float64, shape (n, count): estimates of ‖a−b‖ over the larger norm of the two; infinite
        where there are fewer.
    """

    numbers: Numbers
    distances: NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """Two tensors that are near each other.

    Parameters
    ----------
    first, second : TensorRef
        `second` is among the nearest of `first`.
    distance : float
        The estimate of ‖a−b‖ over the larger norm of the two, rows that only one has counted as
        a difference; its standard error is 2.2% of itself.
    """

    first: TensorRef
    second: TensorRef
    distance: float


def pairs(
    sketches: Sketches,
    refs: Iterable[TensorRef],
    *,
    count: int = COUNT,
    farthest: float = FARTHEST,
    progress: Progress = silent,
) -> Iterator[Pair]:
    """For each of some tensors those of its nearest that are near-copies, nearest first.

    Parameters
    ----------
    sketches : Sketches
    refs : iterable of TensorRef
        Searched among themselves; equal ones count once.
    count : int
        Neighbours of each at most.
    farthest : float
        Relative distance.
    progress : Progress
        Of the sketches that have to be made.
    """
    for bucket in sketches.buckets(refs, progress):
        found = nearest(bucket.values, bucket.norms, count=count, farthest=farthest)
        for i, (numbers, distances) in enumerate(
            zip(found.numbers.tolist(), found.distances.tolist(), strict=True)
        ):
            for j, apart in zip(numbers, distances, strict=True):
                if j >= 0:
                    yield Pair(bucket.refs[i], bucket.refs[j], apart)


def nearest(
    values: Floats,
    norms: NDArray[np.float64],
    *,
    count: int = COUNT,
    farthest: float = FARTHEST,
) -> Neighbours:
    """The nearest of each sketch among those within `farthest`.

    Parameters
    ----------
    values : numpy.ndarray
        float32, shape (n, 1024). Rows that are not finite, or of norm 0, have no neighbours.
    norms : numpy.ndarray
        float64, shape (n,): of what was sketched.
    count : int
        Neighbours of each at most.
    farthest : float
        Relative distance.
    """
    numbers = np.full((len(values), count), -1, np.intp)
    distances = np.full((len(values), count), math.inf)
    sound = np.isfinite(values).all(axis=1) & np.isfinite(norms) & (norms > 0)
    folded = fold(values)
    for cluster in clusters(folded, norms, np.flatnonzero(sound), farthest):
        if len(cluster) > 1:
            candidates = _candidates(folded, cluster, count)
            _measure(values, norms, cluster, candidates, farthest, numbers, distances)
    return Neighbours(numbers, distances)


def fold(values: Floats) -> Floats:
    """Sketches of 64 numbers from those of 1,024: shape (n, 64)."""
    bits = np.random.PCG64(_SEED).random_raw(SIZE)
    signs = 1 - 2 * (bits & np.uint64(1)).astype(np.float32)
    folded = np.zeros((len(values), _FOLDED), np.float32)
    for start in range(0, SIZE, _FOLDED):
        folded += values[:, start : start + _FOLDED] * signs[start : start + _FOLDED]
    return folded


def clusters(
    folded: Floats, norms: NDArray[np.float64], members: Numbers, reach: float
) -> Iterator[Numbers]:
    """Cut tensors into groups around leaders; what is far from each other need not be compared.

    A tensor goes to the leader nearest to it, if that is within `reach` of the larger norm (with
    slack for what folding blurs), and leads a cluster of its own otherwise.
    """
    leaders = np.empty(0, np.intp)
    found: list[list[int]] = []
    limit = (reach * _SLACK) ** 2
    for start in range(0, len(members), _ROWS):
        waiting, fresh = members[start : start + _ROWS], leaders
        while len(waiting):
            first = len(leaders) - len(fresh)
            near, closest = _assign(folded, norms, waiting, fresh, limit)
            for member, leader in zip(waiting[near].tolist(), closest[near].tolist(), strict=True):
                found[first + leader].append(member)
            waiting = waiting[~near]
            # a few new leaders at a time, far from each other, so that no loop is over tensors
            fresh = _leaders(folded, norms, waiting, limit)
            leaders = np.concatenate([leaders, fresh])
            found.extend([] for _ in fresh)
    yield from (np.array(group, np.intp) for group in found)


def _leaders(folded: Floats, norms: NDArray[np.float64], waiting: Numbers, limit: float) -> Numbers:
    chosen: list[int] = []
    for candidate in waiting[:_FOLDED].tolist():
        apart = folded[chosen] - folded[candidate]
        size = np.maximum(norms[chosen], norms[candidate]) ** 2
        if not (np.einsum("ij,ij->i", apart, apart) <= limit * size).any():
            chosen.append(candidate)
    return np.array(chosen, np.intp)


def _assign(
    folded: Floats,
    norms: NDArray[np.float64],
    rows: Numbers,
    leaders: Numbers,
    limit: float,
) -> tuple[NDArray[np.bool_], Numbers]:
    """Which rows are within reach of their nearest leader, and which that is."""
    if not len(leaders):
        return np.zeros(len(rows), bool), np.zeros(len(rows), np.intp)
    points = folded[leaders]
    # ‖row‖² is the same for all leaders, and does not change which is nearest
    closest = np.argmin((points * points).sum(axis=1) - 2 * folded[rows] @ points.T, axis=1)
    chosen = leaders[closest]
    apart = folded[rows].astype(np.float64) - folded[chosen]
    size = np.maximum(norms[rows], norms[chosen]) ** 2
    return np.einsum("ij,ij->i", apart, apart) <= limit * size, closest


def _candidates(folded: Floats, cluster: Numbers, count: int) -> Numbers:
    """Places of likely neighbours for each member of a cluster, shape (n, some); −1 for none."""
    points = folded[cluster]
    # centred: float32 has few digits for small differences of large numbers
    points = points - points.mean(axis=0)
    middle = int(np.argmin(np.einsum("ij,ij->i", points, points)))
    wanted = 2 * count  # folding mixes up the order; the whole sketches tell it
    if len(cluster) <= _CELL:
        inside = _search(points, np.arange(len(cluster)), wanted)
        return cluster[_with(inside, middle)]
    random = np.random.default_rng(_SEED)
    cells = max(2, len(cluster) // (_CELL // 2))
    centres = random.choice(len(cluster), cells, replace=False)
    best = np.full((len(cluster), _HOMES, wanted + 1), -1, np.intp)
    homes = _search_in(points, centres, _HOMES - 1).reshape(-1)
    order = np.argsort(homes, kind="stable")
    borders = np.searchsorted(homes[order], np.arange(cells + 1))
    for cell in range(cells):
        member, rank = np.divmod(order[borders[cell] : borders[cell + 1]], _HOMES)
        if len(member):
            found = _search(points, member, wanted)
            best[member, rank, : found.shape[1]] = found
    found = _with(best.reshape(len(cluster), -1), middle)
    return np.where(found >= 0, cluster[found], -1)


def _search(points: Floats, among: Numbers, count: int) -> Numbers:
    return among[_search_in(points, among, count, among)]


def _search_in(points: Floats, among: Numbers, count: int, rows: Numbers | None = None) -> Numbers:
    """For each row (all by default) the nearest of `among`, as places in `among`."""
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=min(count + 1, len(among)), algorithm="brute")
    index.fit(points[among])
    asked = points if rows is None else points[rows]
    return np.asarray(index.kneighbors(asked, return_distance=False), np.intp)


def _with(found: Numbers, extra: int) -> Numbers:
    return np.concatenate([found, np.full((len(found), 1), extra, np.intp)], axis=1)


def _measure(
    values: Floats,
    norms: NDArray[np.float64],
    cluster: Numbers,
    candidates: Numbers,
    farthest: float,
    numbers: Numbers,
    distances: NDArray[np.float64],
) -> None:
    """Take the distances on the whole sketches and keep the nearest."""
    count = numbers.shape[1]
    step = max(1, (1 << 22) // (SIZE * candidates.shape[1]))
    for start in range(0, len(cluster), step):
        rows = cluster[start : start + step]
        other = np.sort(candidates[start : start + step], axis=1)
        apart = values[other] - values[rows][:, None, :]
        squared = np.einsum("ijk,ijk->ij", apart, apart, dtype=np.float64)
        larger = np.maximum(norms[other], norms[rows][:, None])
        relative = np.sqrt(squared) / larger
        twice = np.zeros(other.shape, bool)
        twice[:, 1:] = other[:, 1:] == other[:, :-1]
        out = twice | (other < 0) | (other == rows[:, None]) | (relative > farthest)
        relative[out] = math.inf
        order = np.argsort(relative, axis=1, kind="stable")[:, :count]
        kept = np.take_along_axis(relative, order, axis=1)
        numbers[rows, : order.shape[1]] = np.where(
            np.isfinite(kept), np.take_along_axis(other, order, axis=1), -1
        )
        distances[rows, : order.shape[1]] = kept
