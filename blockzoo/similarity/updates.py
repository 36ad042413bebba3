"""How far a LoRA adapter moves its base, without merging it.

The norm of an update ``scale · B A`` follows from two small matrices, ``BᵀB`` and ``AAᵀ``, so the
distance at the edge to an adapter is exact, costs nothing, and can be compared with that of a
full fine-tune or a merged LoRA. For what is no plain LoRA (DoRA, IA³, prompts, trained copies of
whole modules) the update depends on the base's values or is none, and no distance is told.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from blockzoo.progress import Progress, silent
from blockzoo.records import Block, Model
from blockzoo.similarity.kinship import own_tensors
from blockzoo.similarity.sketches import Sketches
from blockzoo.similarity.weights import as_float
from blockzoo.store.objects import Objects
from blockzoo.tensors import TensorRef

#: PEFT's names of the two factors, of a linear layer and of an embedding
_FACTORS = (
    ("lora_A.weight", "lora_B.weight"),
    ("lora_embedding_A", "lora_embedding_B"),
)
#: options of the spec that make it more than scale · B A
_MORE = ("use_dora", "bias", "lora_bias", "use_qalora", "alora_invocation_tokens")


def update_distances(
    sketches: Sketches,
    adapters: Iterable[tuple[Model, Model]],
    blocks: Mapping[str, Block],
    progress: Progress = silent,
) -> dict[str, tuple[float, dict[str, float]]]:
    """The distances of plain LoRA adapters from their bases.

    Parameters
    ----------
    sketches : Sketches
        For the norms of the bases' tensors.
    adapters : iterable of (Model, Model)
        An adapter and its base.
    blocks : mapping of str to Block
        Of all of them.
    progress : Progress
        Of the sketches that have to be made.

    Returns
    -------
    dict of str to (float, dict of str to float)
        By the adapter's digest, the distance as in `kinship`, whole and for each hop.
    """
    moved: dict[str, dict[str, float]] = {}
    bases: dict[str, dict[str, tuple[str, TensorRef]]] = {}
    for adapter, base in adapters:
        own = own_tensors(base, blocks)
        norms = _update_norms(sketches.objects, adapter, blocks)
        if norms is not None and norms.keys() <= own.keys():
            moved[adapter.digest], bases[adapter.digest] = norms, own
    refs = {bases[digest][name][1] for digest, norms in moved.items() for name in norms}
    known = {
        ref.digest: float(norm)
        for bucket in sketches.buckets(refs, progress)
        for ref, norm in zip(bucket.refs, bucket.norms, strict=True)
    }
    return {
        digest: found
        for digest, norms in moved.items()
        if (found := _relative(norms, bases[digest], known)) is not None
    }


def _relative(
    moved: Mapping[str, float],
    base: Mapping[str, tuple[str, TensorRef]],
    norms: Mapping[str, float],
) -> tuple[float, dict[str, float]] | None:
    squares: dict[str, float] = {}
    elements: dict[str, int] = {}
    for name, (hop, ref) in base.items():
        elements[hop] = elements.get(hop, 0) + ref.elements
        if moved.get(name):
            norm = norms.get(ref.digest, 0.0)
            if not norm or not math.isfinite(norm):
                return None
            squares[hop] = squares.get(hop, 0.0) + ref.elements * (moved[name] / norm) ** 2
    hops = {hop: math.sqrt(square / elements[hop]) for hop, square in squares.items()}
    return math.sqrt(sum(squares.values()) / sum(elements.values())), hops


def _update_norms(
    objects: Objects, adapter: Model, blocks: Mapping[str, Block]
) -> dict[str, float] | None:
    """‖scale · B A‖ by the name of the tensor that it is added to; None for no plain LoRA."""
    found: dict[str, float] = {}
    for hop in adapter.chain:
        for block in (blocks[digest] for digest in hop.adapters):
            spec, config = block.spec, block.spec["config"]
            odd = any(config.get(option) not in (None, False, "none") for option in _MORE)
            if spec["type"] != "lora" or odd or spec.get("replaces"):
                return None
            for module, facts in spec.get("modules", {}).items():
                pair = _factors(block, module)
                if pair is None:
                    return None
                root = math.sqrt(facts["rank"]) if config.get("use_rslora") else facts["rank"]
                a, b = (_matrix(objects, ref) for ref in pair)
                gram = np.einsum("ij,ij->", b.T @ b, a @ a.T)
                norm = abs(facts["alpha"]) / root * math.sqrt(max(float(gram), 0.0))
                found[f"{hop.prefix}{module}.weight"] = norm
    return found


def _factors(block: Block, module: str) -> tuple[TensorRef, TensorRef] | None:
    for first, second in _FACTORS:
        a, b = block.tensors.get(f"{module}.{first}"), block.tensors.get(f"{module}.{second}")
        if a and b and len(a.shape) == len(b.shape) == 2 and a.shape[0] == b.shape[1]:
            return a, b
    return None


def _matrix(objects: Objects, ref: TensorRef) -> NDArray[np.float64]:
    values = np.concatenate([np.zeros(0), *as_float(*objects.tensor(ref.digest))])
    return values.reshape(ref.shape)
