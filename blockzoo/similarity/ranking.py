"""What is nearest to one model or one block, from sketches: one against all, so linear in them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from blockzoo.progress import Progress, silent
from blockzoo.records import Block
from blockzoo.similarity.kinship import Kinship, Tensors, measure
from blockzoo.similarity.sketch import distance
from blockzoo.similarity.sketches import Sketches


@dataclass(frozen=True)
class Likeness:
    """How far a block is from another of the same tensors.

    Parameters
    ----------
    digest : str
        The other block's.
    largest : float
        The largest relative distance over the tensors; a mean would hide one that is changed.
    tensor : str
        Local name of the one that is farthest; empty where all are equal.
    mean : float
        The root mean square, each tensor weighted by its number of elements.
    """

    digest: str
    largest: float
    tensor: str
    mean: float


def nearest_models(
    sketches: Sketches, digest: str, models: Mapping[str, Tensors], progress: Progress = silent
) -> list[Kinship]:
    """One model and every other that has a tensor name in common, the nearest first.

    In each `Kinship` the model asked about is the first.
    """
    names = set(models[digest])
    others = {d: own for d, own in models.items() if d != digest and names & set(own)}
    asked = {digest: models[digest], **others}
    pairs = [(0, number) for number in range(1, len(asked))]
    found = measure(sketches, asked, pairs, progress)
    return sorted(found, key=lambda kin: (kin.distance, kin.second))


def nearest_blocks(
    sketches: Sketches, block: Block, blocks: Mapping[str, Block], progress: Progress = silent
) -> list[Likeness]:
    """A block and every other with tensors of the same names and shapes, the nearest first."""
    shapes = _shapes(block)
    others = [b for b in blocks.values() if b.digest != block.digest and _shapes(b) == shapes]
    refs = [ref for one in (block, *others) for ref in one.tensors.values()]
    found = {
        ref.digest: bucket.sketch(number)
        for bucket in sketches.buckets(refs, progress)
        for number, ref in enumerate(bucket.refs)
    }
    likenesses = []
    for other in others:
        apart = {}
        for name, ref in block.tensors.items():
            own, its = found.get(ref.digest), found.get(other.tensors[name].digest)
            if ref.digest == other.tensors[name].digest:
                apart[name] = 0.0
            else:
                told = distance(own, its) if own and its else math.inf
                apart[name] = math.inf if math.isnan(told) else told
        farthest = max(apart, key=lambda name: apart[name], default="")
        largest = apart.get(farthest, 0.0)
        sizes = np.array([block.tensors[name].elements for name in apart], np.float64)
        squares = np.array(list(apart.values())) ** 2
        mean = math.sqrt(float(squares @ sizes) / max(float(sizes.sum()), 1.0))
        likenesses.append(Likeness(other.digest, largest, farthest if largest else "", mean))
    return sorted(likenesses, key=lambda like: (like.largest, like.mean, like.digest))


def _shapes(block: Block) -> dict[str, tuple[int, ...]]:
    return {name: ref.shape for name, ref in block.tensors.items()}
