"""LoRA on linear layers and embeddings, and DoRA (arXiv 2402.09353), as PEFT computes them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from blockzoo.execution.adapters.leaf import Forward, Target
from blockzoo.execution.binding import Attachment, Source
from blockzoo.execution.fused import Fused, derived_key
from blockzoo.execution.tensors import TensorSource
from blockzoo.tensors import TensorInfo


def attach_lora(target: Target) -> Attachment:
    """The attachment for one leaf of a LoRA adapter."""
    rank, alpha = target.facts["rank"], target.facts["alpha"]
    scaling = alpha / math.sqrt(rank) if target.config.get("use_rslora") else alpha / rank
    return EmbeddingLora(target, scaling) if target.is_lookup() else LinearLora(target, scaling)


class _Lora:
    """What both kinds of leaf share: the tensors, and DoRA's ratio of magnitudes.

    Attributes
    ----------
    scaling : float
    a, b : TensorRef
    ratio : Fused or None
        DoRA's factor for each output; None for plain LoRA.
    """

    def __init__(self, target: Target, scaling: float, names: tuple[str, str]) -> None:
        self._base: Forward = target.base
        self.scaling = scaling
        self.a, self.b = (target.tensor(name) for name in names)
        self.ratio: Fused | None = None
        if target.config.get("use_dora"):
            magnitude = target.tensor("lora_magnitude_vector.weight", "lora_magnitude_vector")
            parts = (target.weight(), self.a, self.b, magnitude)
            transposed = target.stored_transposed or isinstance(target.leaf, nn.Embedding)
            build = _Ratio(scaling, transposed)
            key = derived_key(f"dora:{scaling!r}:{transposed}", parts)
            info = TensorInfo(magnitude.dtype, (magnitude.elements,))
            self.ratio = Fused(key, parts, build, info)

    def sources(self) -> Iterable[Source]:
        return [self.a, self.b, *([self.ratio] if self.ratio is not None else [])]

    def load(self, source: TensorSource) -> None:
        self._source = source

    def _factor(self) -> torch.Tensor | None:
        """DoRA's factor for each output, (width,); None for plain LoRA."""
        return self.ratio.get(self._source) if self.ratio is not None else None


class LinearLora(_Lora):
    """``base(x) + B A x · scaling``; with DoRA the rows of W + BA get learned lengths."""

    def __init__(self, target: Target, scaling: float) -> None:
        super().__init__(target, scaling, ("lora_A.weight", "lora_B.weight"))
        self.bias = target.optional("lora_B.bias")
        self._leaf: Any = target.leaf

    def sources(self) -> Iterable[Source]:
        return [*super().sources(), *([self.bias] if self.bias is not None else [])]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        result = self._base(x)
        tensor = self._source.tensor
        low = functional.linear(x, tensor(self.a))
        own_bias = tensor(self.bias) if self.bias is not None else None
        update = functional.linear(low, tensor(self.b), own_bias)
        ratio = self._factor()
        if ratio is None:
            return result + update * self.scaling
        bias: torch.Tensor | None = self._leaf.bias
        plain = result if bias is None else result - bias
        update = (ratio - 1) * plain + ratio * update * self.scaling
        return result + update


class EmbeddingLora(_Lora):
    """The same for a table: A (rank, rows) is looked up, B (width, rank) widens."""

    def __init__(self, target: Target, scaling: float) -> None:
        super().__init__(target, scaling, ("lora_embedding_A", "lora_embedding_B"))
        # Gemma's embeddings scale their output, and so must the update be
        self._scale: torch.Tensor | None = getattr(target.leaf, "embed_scale", None)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        result = self._base(x)
        tensor = self._source.tensor
        # rows first, then transposed: a lookup in A.T would copy all of it at every call
        low = tensor(self.a)[:, x].movedim(0, -1)
        update = low @ tensor(self.b).T
        ratio = self._factor()
        if ratio is not None:
            result, update = ratio * result, ratio * update
        update = update * self.scaling
        if self._scale is not None:
            update = update * self._scale.to(update.dtype)
        return result + update


class _Ratio:
    """DoRA's learned lengths over the lengths that W + scaling·BA has."""

    def __init__(self, scaling: float, transposed: bool) -> None:
        self._scaling = scaling
        self._transposed = transposed

    def __call__(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        weight, a, b, magnitude = parts
        if self._transposed:
            weight = weight.T
        norm: torch.Tensor = torch.linalg.norm(weight + self._scaling * (b @ a), dim=1)
        return magnitude.flatten() / norm
