"""Parameters that transformers makes from several tensors of a checkpoint.

Mirrors transformers' ``conversion_mapping``: a mixture's experts are stored one by one and
computed with as one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from blockzoo.execution.tensors import Build, TensorSource
from blockzoo.tensors import TensorInfo, TensorRef, bytes_digest


@dataclass(frozen=True)
class Fused:
    """A parameter and how it is made.

    Parameters
    ----------
    key : str
        The operation and a digest over the parts' digests: two models with the same experts
        share one fused tensor.
    parts : tuple of TensorRef
    build : callable
        The parts' tensors to the parameter.
    info : TensorInfo
        Of the parameter, as it would be stored: floats are computed with in another dtype.
    """

    key: str
    parts: tuple[TensorRef, ...]
    build: Build
    info: TensorInfo

    def get(self, source: TensorSource) -> torch.Tensor:
        return source.derived(self.key, self.parts, self.build)


def derived_key(operation: str, parts: Sequence[TensorRef]) -> str:
    """A name for what an operation makes of some tensors."""
    return f"{operation}:{bytes_digest(''.join(p.digest for p in parts).encode())}"


def fused_parameter(
    name: str, tensors: Mapping[str, TensorRef], prefixes: Sequence[str]
) -> Fused | None:
    """How the parameter ``name`` is made from a block's tensors, or None.

    Parameters
    ----------
    name : str
        The parameter's local name, such as ``"mlp.experts.gate_up_proj"``.
    tensors : mapping
        The block's, by local name.
    prefixes : sequence of str
        What checkpoints call the module, with a dot: ``"block_sparse_moe."``, ``"mlp."``.
    """
    recipe = _RECIPES.get(name)
    if recipe is None:
        return None
    weights, build = recipe
    for prefix in prefixes:
        parts: list[TensorRef] = []
        expert = 0
        while all(f"{prefix}experts.{expert}.{w}.weight" in tensors for w in weights):
            parts += [tensors[f"{prefix}experts.{expert}.{w}.weight"] for w in weights]
            expert += 1
        if parts:
            like = build([torch.empty(part.shape, device="meta") for part in parts])
            info = TensorInfo(parts[0].dtype, tuple(like.shape))
            return Fused(derived_key(name, parts), tuple(parts), build, info)
    return None


def _gate_up(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """(E, 2·inner, width) from w1 and w3, each (inner, width), alternating by expert."""
    return torch.stack([torch.cat(pair) for pair in zip(parts[::2], parts[1::2], strict=True)])


def _down(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """(E, width, inner) from w2, each (width, inner)."""
    return torch.stack(list(parts))


_RECIPES: dict[str, tuple[tuple[str, ...], Callable[[Sequence[torch.Tensor]], torch.Tensor]]] = {
    "mlp.experts.gate_up_proj": (("w1", "w3"), _gate_up),
    "mlp.experts.down_proj": (("w2",), _down),
}
