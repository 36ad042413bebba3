"""Making a lossless plan: sketches find what is near what, `choose` picks the references."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from blockzoo.codecs import PACKED, raw
from blockzoo.dedupe import choose
from blockzoo.dedupe.plan import Level, Plan, Step, names_of
from blockzoo.dedupe.repack import packed_file
from blockzoo.progress import Progress, silent
from blockzoo.similarity.neighbours import FARTHEST, clusters, fold
from blockzoo.similarity.sketch import bucket as bucket_of
from blockzoo.similarity.sketches import Bucket, Sketches
from blockzoo.store.objects import Objects, size_on_disk
from blockzoo.store.reach import reach, roots
from blockzoo.tensors import TensorInfo, TensorRef

if TYPE_CHECKING:
    from blockzoo.zoo import Zoo

#: bytes; below this a packed file's own header eats what it saves
SMALLEST = 4096
_SAMPLE = 1 << 17  # elements coded to estimate a step's result
_WORTHWHILE = 0.97  # of raw
_MANY = 8  # tensors; a reference that so many need stays raw, since it is read so often
_LARGEST_CLUSTER = 2048  # tensors whose distances are all taken


@dataclass(frozen=True)
class _Found:
    """A tensor with the reference chosen for it (None: by itself) and the distance."""

    ref: TensorRef
    reference: TensorRef | None
    distance: float

    @property
    def codec(self) -> str:
        if self.reference is None:
            return ".planes"
        return ".delta" if self.ref.shape == self.reference.shape else ".rows"

    @property
    def expected_share(self) -> float:
        """Of raw; a guess from the distance."""
        if self.reference is None:
            return choose.ALONE.get(self.ref.dtype, 1.0)
        return float(choose.expected_share(self.ref.dtype, np.array(self.distance)))


@dataclass(frozen=True)
class Kept:
    """How a tensor is kept: a suffix in `codecs.PACKED`, and the reference's digest or ""."""

    codec: str
    reference: str


def make_plan(
    zoo: Zoo,
    *,
    level: Level = "small",
    keep_raw: Iterable[str] = (),
    only: Iterable[str] | None = None,
    alone: bool = True,
    sample: bool = True,
    progress: Progress = silent,
) -> Plan:
    """Find near-copies and what keeping them as differences saves.

    Parameters
    ----------
    level : {"fast", "small"}
        ``fast`` for what is loaded often: quicker coding, and every reference stays raw; at
        ``small`` those that few need become planes.
    keep_raw : iterable of str
        Names of models whose tensors stay raw, or become raw again.
    only : iterable of str, optional
        Names of models whose tensors are looked at; the others' still serve as references.
    alone : bool
        Whether a tensor that is near no other is kept as planes.
    sample : bool
        Whether a piece of each tensor is coded to tell what it will take; else it is guessed
        from the distance, which is enough for a plan that nobody looks at.
    """
    named = roots(zoo.refs)
    found = reach(zoo.objects, named)
    for error in found.unread.values():
        raise error
    refs = {ref.digest: ref for b in found.blocks.values() for ref in b.tensors.values()}
    places = names_of(zoo, named)
    hot = _tensors_of(zoo, keep_raw)
    wanted = set(refs) if only is None else _tensors_of(zoo, only)
    used = set(found.references.values())
    candidates, alone_already = _candidates(zoo.objects, refs, found.references)
    packed = {d for d in refs if _is_packed(zoo.objects, d)}
    pinned = hot | used | alone_already | (refs.keys() - wanted)
    chosen: list[_Found] = []
    for bucket in Sketches(zoo.objects).buckets(candidates, progress):
        chosen += _choose(bucket, pinned, alone, level)
    steps = [step for item in chosen if (step := _step(zoo.objects, item, places, level, sample))]
    back = [_unpack_step(zoo.objects, refs[d], places) for d in sorted(packed & hot)]
    steps = sorted([*back, *steps], key=lambda step: (step.reference, step.name))
    touched = {step.tensor for step in steps}
    untouched = sum(_size(zoo.objects, d) for d in refs if d not in touched)
    references = len({step.reference for step in steps if step.reference} | used)
    return Plan(zoo, level, tuple(steps), references, untouched)


def kept_for(
    zoo: Zoo, sketches: Sketches, new: Mapping[str, TensorRef], level: Level
) -> dict[str, Kept]:
    """How tensors that are not in the zoo yet are best kept, references in the zoo included.

    Parameters
    ----------
    sketches : Sketches
        It knows those of the new tensors.
    new : dict of str to TensorRef
        By digest.

    Returns
    -------
    dict of str to Kept
        By digest; those that are not in it stay raw.
    """
    found = reach(zoo.objects, roots(zoo.refs))
    for error in found.unread.values():
        raise error
    buckets = {bucket_of(ref) for ref in new.values()}
    refs = {ref.digest: ref for b in found.blocks.values() for ref in b.tensors.values()}
    near = {d: ref for d, ref in refs.items() if d not in new and bucket_of(ref) in buckets}
    candidates, _ = _candidates(zoo.objects, near, found.references)
    pinned, result = set(near), {}
    for bucket in sketches.buckets([*candidates, *new.values()]):
        for item in _choose(bucket, pinned, True, level):
            if item.expected_share < _WORTHWHILE:
                digest = item.reference.digest if item.reference else ""
                result[item.ref.digest] = Kept(item.codec, digest)
    return result


def _candidates(
    objects: Objects, refs: Mapping[str, TensorRef], references: Mapping[str, str]
) -> tuple[list[TensorRef], set[str]]:
    """What can be a reference or become a difference, and what of it is packed by itself."""
    large = [ref for d, ref in refs.items() if ref.nbytes >= SMALLEST and d not in references]
    return large, {ref.digest for ref in large if _is_packed(objects, ref.digest)}


def undo_plan(zoo: Zoo) -> Plan:
    """Everything raw again."""
    named = roots(zoo.refs)
    found = reach(zoo.objects, named)
    refs = {ref.digest: ref for b in found.blocks.values() for ref in b.tensors.values()}
    places = names_of(zoo, named)
    kept = {d for d in refs if packed_file(zoo.objects, d)}
    steps = tuple(_unpack_step(zoo.objects, refs[d], places) for d in sorted(kept))
    untouched = sum(_size(zoo.objects, d) for d in refs if d not in kept)
    return Plan(zoo, "fast", steps, 0, untouched)


def _tensors_of(zoo: Zoo, names: Iterable[str]) -> set[str]:
    blocks = [b for name in names for b in zoo.blocks_of(zoo.model(name)).values()]
    return {ref.digest for block in blocks for ref in block.tensors.values()}


def _is_packed(objects: Objects, digest: str) -> bool:
    path = objects.find("tensors", digest)
    return path is not None and path.suffix in PACKED


def _size(objects: Objects, digest: str) -> int:
    path = objects.find("tensors", digest)
    return size_on_disk(path) if path else 0


def _choose(bucket: Bucket, pinned: set[str], alone: bool, level: Level) -> list[_Found]:
    sound = np.isfinite(bucket.values).all(axis=1) & np.isfinite(bucket.norms)
    members = np.flatnonzero(sound)
    result: list[_Found] = []
    for cluster in clusters(fold(bucket.values), bucket.norms, members, FARTHEST):
        for start in range(0, len(cluster), _LARGEST_CLUSTER):
            part = cluster[start : start + _LARGEST_CLUSTER]
            refs = [bucket.refs[i] for i in part.tolist()]
            apart = _distances(bucket, part)
            hold = np.array([ref.digest in pinned for ref in refs])
            sizes = np.array([ref.nbytes for ref in refs], np.int64)
            widths = np.array([ref.nbytes // max(1, ref.elements) for ref in refs])
            # a wider dtype cannot come from a narrower one at a saving
            apart[widths[:, None] > widths[None, :]] = np.inf
            raw_references = level == "fast" or not alone
            picked = choose.choose(refs[0].dtype, sizes, apart, hold, alone, raw_references)
            users = np.bincount(picked[picked >= 0], minlength=len(refs))
            most = 0 if raw_references else _MANY - 1
            for i, reference in enumerate(picked.tolist()):
                if reference >= 0:
                    result.append(_Found(refs[i], refs[reference], float(apart[i, reference])))
                elif alone and not hold[i] and users[i] <= most:
                    result.append(_Found(refs[i], None, 0.0))
    return result


def _distances(bucket: Bucket, part: np.ndarray) -> np.ndarray:
    """Estimated ‖row−column‖/‖row‖, shape (n, n), from the sketches' inner products."""
    values = bucket.values[part].astype(np.float64)
    squares = np.einsum("ij,ij->i", values, values)
    apart = np.maximum(squares[:, None] + squares[None, :] - 2 * values @ values.T, 0.0)
    norms = bucket.norms[part]
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.sqrt(apart) / norms[:, None]
    result: np.ndarray = np.nan_to_num(relative, nan=np.inf, posinf=np.inf)
    return result


def _step(
    objects: Objects, item: _Found, places: dict[str, str], level: Level, sample: bool
) -> Step | None:
    """What becomes of a tensor; None where coding a piece of it shows that nothing is saved."""
    ref, reference = item.ref, item.reference
    share = _measured_share(objects, item, level) if sample else item.expected_share
    if share >= _WORTHWHILE:
        return None
    before = raw.size(ref)
    name = places.get(ref.digest, ref.digest[:12])
    reference_digest = reference.digest if reference else ""
    after = int(before * share)
    return Step(ref.digest, name, item.codec, reference_digest, item.distance, before, after)


def _measured_share(objects: Objects, item: _Found, level: Level) -> float:
    """Code a piece from the middle of what a tensor shares with its reference, or of itself."""
    ref, reference = item.ref, item.reference
    common = min(ref.elements, reference.elements) if reference else ref.elements
    count = min(_SAMPLE, common)
    start = (common - count) // 2

    def piece(of: TensorRef, data: memoryview) -> tuple[TensorInfo, memoryview]:
        width = of.nbytes // of.elements
        return TensorInfo(of.dtype, (count,)), data[start * width : (start + count) * width]

    info, data = piece(ref, objects.tensor(ref.digest)[1])
    base = None
    if reference is not None:
        base = (reference.digest, *piece(reference, objects.reference(reference.digest)[1]))
    codec = PACKED[".planes" if reference is None else ".delta"]
    coded = codec.encode(info, data, base, level=level)
    return 1.0 if coded is None else len(coded) / len(data)


def _unpack_step(objects: Objects, ref: TensorRef, places: dict[str, str]) -> Step:
    name = places.get(ref.digest, ref.digest[:12])
    before = _size(objects, ref.digest)
    return Step(ref.digest, name, raw.SUFFIX, "", 0.0, before, raw.size(ref))
