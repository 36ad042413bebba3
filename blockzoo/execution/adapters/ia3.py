"""(IA)³: a leaf's output, or input where it is feed-forward, scaled by a learned vector."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from blockzoo.execution.adapters.leaf import Forward, Target
from blockzoo.execution.binding import Attachment, Source
from blockzoo.execution.tensors import TensorSource
from blockzoo.tensors import TensorRef


class Scale:
    """Scales before or after the leaf.

    Attributes
    ----------
    vector : TensorRef
    before : bool
    """

    def __init__(self, base: Forward, vector: TensorRef, before: bool) -> None:
        self._base = base
        self.vector = vector
        self.before = before

    def sources(self) -> Iterable[Source]:
        return (self.vector,)

    def load(self, source: TensorSource) -> None:
        self._source = source

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        vector = self._source.tensor(self.vector).flatten()
        return self._base(x * vector) if self.before else self._base(x) * vector


def attach_ia3(target: Target) -> Attachment:
    """As PEFT's ``ia3.Linear``."""
    target.check_linear()
    vector = target.tensor("ia3_l")
    return Scale(target.base, vector, bool(target.facts.get("feedforward")))
