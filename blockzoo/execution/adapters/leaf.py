"""A leaf that an adapter sits on, and what the adapter knows of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from blockzoo.errors import UnservableError
from blockzoo.execution.binding import Source
from blockzoo.records import Block
from blockzoo.tensors import TensorRef

Forward = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Target:
    """One leaf and one adapter.

    Parameters
    ----------
    path : str
        The leaf's local name, such as ``"self_attn.q_proj"``.
    leaf : nn.Module
    base : callable
        Computes the leaf without this adapter.
    facts : mapping
        What the adapter's spec says of this module (rank, alpha, feedforward).
    config : mapping
        What it says of all.
    adapter : Block
    parameters : mapping
        What the hop's slots are bound to.
    """

    path: str
    leaf: nn.Module
    base: Forward
    facts: Mapping[str, Any]
    config: Mapping[str, Any]
    adapter: Block
    parameters: Mapping[str, Source]

    @property
    def stored_transposed(self) -> bool:
        """Whether the leaf keeps its weight as (in, out), as GPT-2's Conv1D does."""
        from transformers.pytorch_utils import Conv1D

        return isinstance(self.leaf, Conv1D)

    def check_linear(self) -> None:
        """Refuse leaves that PEFT would treat otherwise, or not at all."""
        if not isinstance(self.leaf, nn.Linear) and not self.stored_transposed:
            raise UnservableError(
                f"the adapter is on {self.path}, a {type(self.leaf).__name__}, "
                "which is neither linear nor an embedding"
            )

    def is_lookup(self) -> bool:
        """Whether the leaf is an embedding; it is linear otherwise.

        Raises
        ------
        UnservableError
            Where it is neither, or an embedding that does more than look up.
        """
        if not isinstance(self.leaf, nn.Embedding):
            self.check_linear()
            return False
        forward = type(self.leaf).forward
        if forward is not nn.Embedding.forward and not hasattr(self.leaf, "embed_scale"):
            # OPT's position table shifts its input, and PEFT's lookup would not
            raise UnservableError(f"the adapter is on {self.path}, which is no plain embedding")
        return True

    def optional(self, *suffixes: str) -> TensorRef | None:
        """The adapter's tensor of the first of these names that it has."""
        for suffix in suffixes:
            if ref := self.adapter.tensors.get(f"{self.path}.{suffix}"):
                return ref
        return None

    def tensor(self, *suffixes: str) -> TensorRef:
        """As `optional`, and there must be one."""
        ref = self.optional(*suffixes)
        if ref is None:
            raise UnservableError(f"the adapter has no {self.path}.{suffixes[0]}")
        return ref

    def weight(self) -> TensorRef:
        """The leaf's own weight."""
        weight = self.parameters[f"{self.path}.weight"]
        if not isinstance(weight, TensorRef):
            raise UnservableError(f"the adapter is on {self.path}, whose weight is fused")
        return weight
