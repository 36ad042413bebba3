"""How far blocks are from blocks, and what is nearest to one model or one block.

From sketches it is one against all, so linear in them; from the tensors it is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from blockzoo.progress import Progress, silent
from blockzoo.records import Block
from blockzoo.similarity.kinship import Kinship, Tensors, measure
from blockzoo.similarity.sketch import Sketch, distance
from blockzoo.similarity.sketches import Sketches
from blockzoo.similarity.weights import relative_distance
from blockzoo.store.objects import Objects


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
    others = [b for b in blocks.values() if b.digest != block.digest and comparable(block, b)]
    found = block_sketches(sketches, [block, *others], progress)
    likenesses = [likeness(block, other, found) for other in others]
    return sorted(likenesses, key=lambda like: (like.largest, like.mean, like.digest))


def block_sketches(
    sketches: Sketches, blocks: Iterable[Block], progress: Progress = silent
) -> dict[str, Sketch]:
    """The sketches of blocks' tensors, by the tensor's digest."""
    refs = [ref for block in blocks for ref in block.tensors.values()]
    return {
        ref.digest: bucket.sketch(number)
        for bucket in sketches.buckets(refs, progress)
        for number, ref in enumerate(bucket.refs)
    }


def comparable(block: Block, other: Block) -> bool:
    """Whether two blocks have tensors of the same names and shapes."""
    return _shapes(block) == _shapes(other)


def likeness(block: Block, other: Block, found: Mapping[str, Sketch]) -> Likeness:
    """How far a block is from another of the same tensors, told from their sketches."""
    apart = {}
    for name, ref in block.tensors.items():
        own, its = found.get(ref.digest), found.get(other.tensors[name].digest)
        if ref.digest == other.tensors[name].digest:
            apart[name] = 0.0
        else:
            told = distance(own, its) if own and its else math.inf
            apart[name] = math.inf if math.isnan(told) else told
    return _likeness(block, other, apart)


def exact_likeness(objects: Objects, block: Block, other: Block) -> Likeness:
    """The same from the tensors themselves, every element of them."""
    apart = {}
    for name, ref in block.tensors.items():
        its = other.tensors[name]
        apart[name] = 0.0
        if its.digest != ref.digest:
            try:
                two = objects.tensor(ref.digest), objects.tensor(its.digest)
                apart[name] = relative_distance(*two)
            except TypeError:  # elements that do not fill bytes
                apart[name] = math.inf
    return _likeness(block, other, apart)


def _likeness(block: Block, other: Block, apart: Mapping[str, float]) -> Likeness:
    farthest = max(apart, key=lambda name: apart[name], default="")
    largest = apart.get(farthest, 0.0)
    sizes = np.array([block.tensors[name].elements for name in apart], np.float64)
    squares = np.array(list(apart.values())) ** 2
    mean = math.sqrt(float(squares @ sizes) / max(float(sizes.sum()), 1.0))
    return Likeness(other.digest, largest, farthest if largest else "", mean)


def _shapes(block: Block) -> dict[str, tuple[int, ...]]:
    return {name: ref.shape for name, ref in block.tensors.items()}
