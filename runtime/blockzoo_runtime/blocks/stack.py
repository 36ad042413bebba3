"""Low-rank adapters of many tenants at one place of the chain, side by side.

``[A1; A2; …]`` and ``[B1; B2; …]`` lie in one tensor each, so that a batch of rows of many
tenants takes two products for all of them: ``(x [A1; A2; …]ᵀ · own) [B1; B2; …]``, where *own*
is nought in the columns of others. As in S-LoRA (arXiv 2311.03285) and Punica (arXiv 2310.18547),
with plain products.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Hashable
from dataclasses import dataclass, field

import torch

from blockzoo.errors import UnservableError

#: ranks that lie together: all of a chunk is multiplied for every row
_TOGETHER = 128


@dataclass(eq=False)
class Chunk:
    """Some adapters side by side.

    Parameters
    ----------
    a : torch.Tensor
        (R, in).
    b : torch.Tensor
        (R, out): transposed.
    spans : dict
        Each adapter's ranks, ``(first, last + 1)``. An adapter's never change.
    """

    a: torch.Tensor
    b: torch.Tensor
    spans: dict[Hashable, tuple[int, int]] = field(default_factory=dict)

    def hole(self, rank: int) -> int | None:
        """Where so many ranks fit; None where they do not."""
        first = 0
        for begin, end in sorted(self.spans.values()):
            if begin - first >= rank:
                return first
            first = end
        return first if first + rank <= max(_TOGETHER, len(self.a)) else None

    def put(self, key: Hashable, first: int, a: torch.Tensor, b: torch.Tensor) -> None:
        last = first + len(a)
        # a copy with the new in it: a step on another thread may be reading the old
        wide_a = torch.cat((self.a[:first], a, self.a[last:]))
        wide_b = torch.cat((self.b[:first], b, self.b[last:]))
        self.spans[key] = (first, last)
        self.a, self.b = wide_a, wide_b


class Stack:
    """The low-rank updates at one place."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self._lock = threading.Lock()

    def add(self, key: Hashable, a: torch.Tensor, b: torch.Tensor) -> None:
        """Take in A (r, in) and B (out, r), in compute dtype.

        Raises
        ------
        UnservableError
            Where there is an infinity or a NaN in them, which would reach other rows.
        """
        if not (math.isfinite(a.abs().amax()) and math.isfinite(b.abs().amax())):
            raise UnservableError("the adapter has values that are not finite")
        with self._lock:
            for chunk in self.chunks:
                first = chunk.hole(len(a))
                if first is not None:
                    chunk.put(key, first, a, b.T)
                    return
            chunk = Chunk(a.new_empty(0, a.shape[1]), b.new_empty(0, b.shape[0]))
            chunk.put(key, 0, a, b.T)
            self.chunks.append(chunk)

    def remove(self, key: Hashable) -> None:
        """Let an adapter go."""
        with self._lock:
            chunk = next((chunk for chunk in self.chunks if key in chunk.spans), None)
            if chunk is None:
                return
            del chunk.spans[key]
            if not chunk.spans:
                self.chunks.remove(chunk)
                return
            end = max(end for _, end in chunk.spans.values())
            if end < len(chunk.a):
                chunk.a, chunk.b = chunk.a[:end].clone(), chunk.b[:end].clone()

    def find(self, key: Hashable) -> tuple[Chunk, int, int]:
        """An adapter's chunk, first rank and last + 1."""
        for chunk in self.chunks:
            if key in chunk.spans:
                return chunk, *chunk.spans[key]
        raise KeyError(key)
