"""What compact differences add to a base's product, for the rows of many tenants.

On a CPU in bfloat16 codes are resident as torch's product of 4-bit weights takes them, see
`nibbles`. Elsewhere they are resident as they are stored, and a tile of rows at a time is
unpacked to be multiplied with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import linear

from blockzoo.execution.packing import unpack
from blockzoo_runtime.blocks import nibbles
from blockzoo_runtime.blocks.frame import Frame
from blockzoo_runtime.blocks.needs import Key

_TILE = 4 << 20  # bytes of unpacked weights at once


@dataclass(frozen=True)
class Difference:
    """One tenant's, at a linear leaf.

    Parameters
    ----------
    tenant : int
        Its place in the order.
    codes, scale : Key
        Of what is resident.
    columns : int
    """

    tenant: int
    codes: Key
    scale: Key
    columns: int


class Differences:
    """Those of one width at a linear leaf.

    Parameters
    ----------
    bits : int
    each : sequence of Difference
    frame : Frame
    tensors : dict
        What is resident.
    device : torch.device
    dtype : torch.dtype
    """

    def __init__(
        self,
        bits: int,
        each: Sequence[Difference],
        frame: Frame,
        tensors: dict[Key, torch.Tensor],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._bits = bits
        self._each = each
        self._frame = frame
        self._tensors = tensors
        self._nibbles = nibbles.is_usable(device, dtype)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """``y += x Δᵀ`` for each tenant's own rows.

        Parameters
        ----------
        x : torch.Tensor
            (M, columns): the rows of all tenants.
        y : torch.Tensor
            (M, rows): the base's product; rows of a larger vocabulary may follow.
        """
        bounds, tensors = self._frame.bounds, self._tensors
        ready: torch.Tensor | None = None
        for one in self._each:
            first, last = bounds[one.tenant], bounds[one.tenant + 1]
            if first == last:
                continue
            codes, scale = tensors[one.codes], tensors[one.scale]
            if self._nibbles and last - first < nibbles.MANY:
                if ready is None:  # all rows at once: a few more cost less than a few calls
                    ready = nibbles.spread(x, self._bits, codes.shape[1])
                product = nibbles.multiply(ready[first:last], codes, self._bits)[:, : len(scale)]
            else:
                product = self._unpacked(x[first:last], codes, len(scale), one.columns)
            y[first:last, : len(scale)].addcmul_(product, scale)

    def _unpacked(
        self, x: torch.Tensor, codes: torch.Tensor, rows: int, columns: int
    ) -> torch.Tensor:
        out = x.new_empty(len(x), rows)
        if self._nibbles:
            nibbles.multiply_many(x, codes, self._bits, columns, out)
            return out
        step = max(1, _TILE // (columns * x.element_size()))
        for first in range(0, rows, step):
            some = unpack(codes[first : first + step], self._bits, columns, x.dtype)
            out[:, first : first + step] = linear(x, some)
        return out
