"""(IA)³: a leaf's output, or input where it is feed-forward, scaled by a learned vector."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from blockzoo.execution.adapters.leaf import Forward, Target
from blockzoo.execution.binding import Attachment
from blockzoo.execution.tensors import TensorSource
from blockzoo.tensors import TensorRef


class Scale:
    """Scales before or after the leaf."""

    def __init__(self, base: Forward, vector: TensorRef, before: bool) -> None:
        self._base = base
        self._ref = vector
        self._before = before

    def refs(self) -> Iterable[TensorRef]:
        return (self._ref,)

    def load(self, source: TensorSource) -> None:
        self._vector = source.tensor(self._ref).flatten()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._before:
            return self._base(x * self._vector)
        return self._base(x) * self._vector


def attach_ia3(target: Target) -> Attachment:
    """As PEFT's ``ia3.Linear``."""
    target.check_linear()
    vector = target.tensor("ia3_l")
    return Scale(target.base, vector, bool(target.facts.get("feedforward")))
