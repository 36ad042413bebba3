"""How far whole models are apart, from the sketches of their tensors.

Two models are as far apart as their tensors of the same name in the chain: the root mean square
of the relative Frobenius distances (over the larger norm), each weighted by its number of
elements; a tensor that only one of the two has counts as a distance of 1.

Not all models are compared with all. A model has a sketch of its own, the sum of its tensors'
sketches, each divided by its norm and turned by an offset that its name gives; what is near by
this measure (`neighbours.nearest`) is then measured tensor by tensor. Tensors are read only
where a grown one has rows that its origin lacks, and then these rows alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from blockzoo.progress import Progress, silent
from blockzoo.records import Block, Model
from blockzoo.similarity.neighbours import nearest
from blockzoo.similarity.sketch import SIZE, sketch_rows
from blockzoo.similarity.sketches import Bucket, Sketches
from blockzoo.tensors import TensorRef, bytes_digest

#: a model's tensors: by full name the hop that each is in, and which it is
Tensors = Mapping[str, tuple[str, TensorRef]]

_COUNT = 16  # models that each is measured against at most
_ROWS = 1024  # pairs of tensors whose sketches are in memory at a time
_FLOOR = 1e-6  # of the norm; what float32 leaves of a difference of equals
_FEW_ROWS = 0.25  # of a tensor; a tensor that grew by more is compared as it is

Numbers = NDArray[np.intp]


@dataclass(frozen=True)
class Kinship:
    """Two models that are near each other.

    Parameters
    ----------
    first, second : str
        Digests.
    distance : float
        See the module. Rows that only one has are left out.
    hops : mapping of str to float
        The same for each hop in which they differ.
    rows_added : int
        By how many rows the second one's tensors are longer, at most; negative where shorter.
    """

    first: str
    second: str
    distance: float
    hops: Mapping[str, float] = field(default_factory=dict)
    rows_added: int = 0

    def turned(self) -> Kinship:
        """The same with first and second exchanged."""
        return replace(self, first=self.second, second=self.first, rows_added=-self.rows_added)


def own_tensors(model: Model, blocks: Mapping[str, Block]) -> dict[str, tuple[str, TensorRef]]:
    """A model's tensors by full name, with the hop each is in; an adapter's without its base's."""
    found = {}
    for hop in model.chain:
        for digest in hop.adapters if model.kind == "adapter" else [hop.block]:
            for name, ref in blocks[digest].tensors.items():
                found[hop.prefix + name] = hop.name, ref
    return found


def kinships(
    sketches: Sketches, models: Mapping[str, Tensors], farthest: float, progress: Progress = silent
) -> list[Kinship]:
    """Each model with those nearest to it.

    Parameters
    ----------
    sketches : Sketches
    models : mapping of str to Tensors
        By digest.
    farthest : float
        What is farther apart is left out.
    progress : Progress
        Of the sketches that have to be made.
    """
    digests = list(models)
    values, sizes = _sum_up(sketches, digests, models, progress)
    found = nearest(values, np.sqrt(sizes), count=_COUNT, farthest=farthest)
    pairs = {
        (min(i, j), max(i, j))
        for i, row in enumerate(found.numbers.tolist())
        for j in row
        if j >= 0
    }
    return [kin for kin in measure(sketches, models, sorted(pairs)) if kin.distance < farthest]


def measure(
    sketches: Sketches,
    models: Mapping[str, Tensors],
    pairs: Sequence[tuple[int, int]],
    progress: Progress = silent,
) -> list[Kinship]:
    """The distances of chosen pairs of models, which go by their places in `models`."""
    digests = list(models)
    measured = _Measured(np.array(pairs, np.intp).reshape(-1, 2), digests, models)
    for bucket in sketches.buckets(_refs(models), progress):
        measured.add(sketches, bucket)
    return list(measured.results())


def _sum_up(
    sketches: Sketches,
    digests: list[str],
    models: Mapping[str, Tensors],
    progress: Progress,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Each model's own sketch and the number of its elements."""
    values = np.zeros((len(digests), SIZE), np.float32)
    sizes = np.zeros(len(digests))
    for bucket in sketches.buckets(_refs(models), progress):
        for name, rows in _places(bucket, digests, models):
            which = np.flatnonzero(rows >= 0)
            rows = rows[which]
            elements = np.array([bucket.refs[row].elements for row in rows])
            sizes[which] += elements
            scale = _inverse(bucket.norms[rows]) * np.sqrt(elements)
            hashed = int(bytes_digest(f"{bucket.name} {name}".encode())[:8], 16)
            scale = -scale if hashed & 1 else scale
            own = np.where(scale[:, None] != 0, bucket.values[rows] * scale[:, None], 0)
            values[which] += np.roll(own.astype(np.float32), hashed >> 1, axis=1)
    return values, sizes


def _refs(models: Mapping[str, Tensors]) -> list[TensorRef]:
    return [ref for own in models.values() for _, ref in own.values()]


def _places(
    bucket: Bucket, digests: list[str], models: Mapping[str, Tensors]
) -> Iterator[tuple[str, Numbers]]:
    """Each name in a bucket, and for each model the place of its tensor, or −1."""
    place = {ref.digest: i for i, ref in enumerate(bucket.refs)}
    found: dict[str, Numbers] = {}
    for number, digest in enumerate(digests):
        for name, (_, ref) in models[digest].items():
            row = place.get(ref.digest)
            if row is None:
                continue
            if name not in found:
                found[name] = np.full(len(digests), -1, np.intp)
            found[name][number] = row
    yield from found.items()


def _inverse(norms: NDArray[np.float64]) -> NDArray[np.float64]:
    """1/norm; 0 for tensors of zeros and for those beyond float32."""
    usable = np.isfinite(norms) & (norms > 0)
    return np.divide(1.0, norms, out=np.zeros_like(norms), where=usable)


class _Measured:
    """Distances of chosen pairs of models, added up bucket by bucket."""

    def __init__(self, pairs: Numbers, digests: list[str], models: Mapping[str, Tensors]) -> None:
        self.pairs, self.digests, self.models = pairs, digests, models
        # in the order of the first model of each kind, which is that of its chain
        hops = {hop: None for own in models.values() for hop, _ in own.values()}
        self.hops = {hop: number for number, hop in enumerate(hops)}
        self.squares = np.zeros((len(pairs), len(self.hops)))
        self.elements = np.zeros((len(pairs), len(self.hops)))
        self.rows_added = np.zeros(len(pairs), np.intp)

    def add(self, sketches: Sketches, bucket: Bucket) -> None:
        counts = np.array([ref.elements for ref in bucket.refs], np.float64)
        rows_of = np.array([ref.shape[0] if ref.shape else 1 for ref in bucket.refs])
        for name, place in _places(bucket, self.digests, self.models):
            owner = int(np.flatnonzero(place >= 0)[0])
            hop = self.hops[self.models[self.digests[owner]][name][0]]
            a, b = place[self.pairs[:, 0]], place[self.pairs[:, 1]]
            both = (a >= 0) & (b >= 0)
            alone = (a >= 0) ^ (b >= 0)
            single = counts[np.maximum(a, b)[alone]]
            self.squares[alone, hop] += single
            self.elements[alone, hop] += single
            self.elements[both, hop] += np.minimum(counts[a[both]], counts[b[both]])
            changed = both & (a != b)
            grown = changed & (rows_of[a] != rows_of[b])
            for pair in np.flatnonzero(grown).tolist():
                self._grown(sketches, bucket, pair, hop, int(a[pair]), int(b[pair]))
            moved = np.flatnonzero(changed & ~grown)
            for start in range(0, len(moved), _ROWS):
                some = moved[start : start + _ROWS]
                self.squares[some, hop] += _squared(bucket, a[some], b[some]) * counts[a[some]]

    def _grown(
        self, sketches: Sketches, bucket: Bucket, pair: int, hop: int, a: int, b: int
    ) -> None:
        """Add a distance over the rows that both have; those of one alone are read and left out."""
        first, second = bucket.refs[a], bucket.refs[b]
        added = second.shape[0] - first.shape[0]
        if abs(added) > abs(self.rows_added[pair]):
            self.rows_added[pair] = added
        short, tall = (a, b) if added > 0 else (b, a)
        rows = bucket.refs[short].shape[0]
        squared = float(_squared(bucket, np.array([a]), np.array([b]))[0])
        if abs(added) <= _FEW_ROWS * rows:
            extra = sketch_rows(*sketches.objects.tensor(bucket.refs[tall].digest), rows)
            shared = bucket.values[tall].astype(np.float64) - extra.values
            apart = float(np.linalg.norm(shared - bucket.values[short]))
            norm = bucket.norms[short]
            if math.isfinite(apart) and norm:
                squared = (apart / norm) ** 2 if apart > _FLOOR * norm else 0.0
        self.squares[pair, hop] += squared * bucket.refs[short].elements

    def results(self) -> Iterator[Kinship]:
        names = list(self.hops)
        for number, (i, j) in enumerate(self.pairs.tolist()):
            squares, elements = self.squares[number], self.elements[number]
            hops = {
                names[hop]: math.sqrt(squares[hop] / elements[hop])
                for hop in np.flatnonzero(squares > 0).tolist()
            }
            total = elements.sum()
            distance = math.sqrt(squares.sum() / total) if total else math.inf
            added = int(self.rows_added[number])
            yield Kinship(self.digests[i], self.digests[j], distance, hops, added)


def _squared(bucket: Bucket, a: Numbers, b: Numbers) -> NDArray[np.float64]:
    """Squares of the relative distances between tensors; 1 where one cannot be told."""
    with np.errstate(invalid="ignore", over="ignore"):
        apart = bucket.values[a].astype(np.float64) - bucket.values[b]
        squared = np.einsum("ij,ij->i", apart, apart)
        squared *= _inverse(np.maximum(bucket.norms[a], bucket.norms[b])) ** 2
    return np.where(np.isfinite(squared), squared, 1.0)
