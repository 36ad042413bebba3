"""What rounding alone does to a model: the scale beside which every other loss is read.

Two variants of the model itself: computed in bfloat16 throughout, as most are served, which is
its **noise floor**; and computed in float32 from weights that were rounded to 8 bits and back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from blockzoo.execution.tensors import Build, TensorSource
from blockzoo.tensors import TensorRef

_LARGEST = 127  # of a signed 8-bit integer, symmetric
_NUMBERS = 1 << 20  # rounded at a time


class RoundTrip:
    """A `TensorSource` whose matrices have been to int8 and back, with a scale per row.

    Parameters
    ----------
    source : TensorSource
    """

    def __init__(self, source: TensorSource) -> None:
        self._source = source

    def tensor(self, ref: TensorRef) -> torch.Tensor:
        return int8_round_trip(self._source.tensor(ref))

    def derived(self, key: str, parts: Sequence[TensorRef], build: Build) -> torch.Tensor:
        return build([self.tensor(part) for part in parts])


def int8_round_trip(tensor: torch.Tensor) -> torch.Tensor:
    """A matrix rounded to 8 bits with one scale per row (its largest value is 127), and back.

    Parameters
    ----------
    tensor : torch.Tensor
        Anything but a float matrix (…, rows, columns) comes back as it is.
    """
    if tensor.ndim < 2 or not tensor.is_floating_point():
        return tensor
    given = tensor.reshape(-1, tensor.shape[-1])
    rounded = torch.empty_like(given)
    rows = max(1, _NUMBERS // max(given.shape[-1], 1))
    for part, target in zip(torch.split(given, rows), torch.split(rounded, rows), strict=True):
        scale = part.abs().amax(-1, keepdim=True) / _LARGEST
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        torch.div(part, scale, out=target).round_().clamp_(-_LARGEST, _LARGEST).mul_(scale)
    return rounded.reshape(tensor.shape)
