"""What a leaf's weight differs by from the base's, in codes of few bits or of low rank.

How it is kept is told in `partition.compact`, and how codes lie in bytes in `packing`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.nn.functional import linear

from blockzoo.errors import UnservableError
from blockzoo.execution.adapters.leaf import Forward, Target
from blockzoo.execution.adapters.lora import attach_lora
from blockzoo.execution.binding import Attachment, Source
from blockzoo.execution.packing import unpack
from blockzoo.execution.tensors import TensorSource


def attach_compact(target: Target) -> Attachment:
    """The attachment for one leaf of a compact adapter."""
    lookup = target.is_lookup()
    if bool(target.facts.get("transposed")) != target.stored_transposed:
        raise UnservableError(f"the difference of {target.path} lies otherwise than the weight")
    if target.facts["method"] == "lowrank":
        return attach_lora(target)
    return CompactEmbedding(target) if lookup else CompactLinear(target)


class _Coded:
    """What both kinds of leaf share.

    Attributes
    ----------
    codes, scale : TensorRef
        (rows, run length) uint8, and (rows,).
    bits, columns : int
    """

    def __init__(self, target: Target) -> None:
        self._base: Forward = target.base
        self.codes, self.scale = target.tensor("codes"), target.tensor("scale")
        self.bits: int = target.facts["bits"]
        self.columns: int = target.facts["columns"]

    def sources(self) -> Iterable[Source]:
        return (self.codes, self.scale)

    def load(self, source: TensorSource) -> None:
        self._source = source

    def _values(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return unpack(codes, self.bits, self.columns, scale.dtype) * scale[..., None]


class CompactLinear(_Coded):
    """``base(x) + x Δᵀ``; a runtime multiplies with the codes instead, by many tenants' rows."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        tensor = self._source.tensor
        return self._base(x) + linear(x, self._values(tensor(self.codes), tensor(self.scale)))


class CompactEmbedding(_Coded):
    """The same for a table: the rows that are looked up are unpacked."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        # Gemma's embeddings scale their output, and so must the difference be
        self._embed_scale: torch.Tensor | None = getattr(target.leaf, "embed_scale", None)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        tensor = self._source.tensor
        update = self._values(tensor(self.codes)[x], tensor(self.scale)[x])
        if self._embed_scale is not None:
            update = update * self._embed_scale.to(update.dtype)
        return self._base(x) + update
