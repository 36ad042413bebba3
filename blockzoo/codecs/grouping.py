"""A reference's elements grouped by exponent: how wide a difference is depends on it.

It is computed from the reference alone, by the decoder too, so it costs no bytes; it is the
same for every tensor that is kept as a difference from that reference, so it can be kept.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from blockzoo.codecs.scratch import scratch
from blockzoo.codecs.words import Layout, Words

_SMALLEST = 2048  # words; fewer are left as they stand
_LARGE = 4096  # words; for these a code table pays
_KEPT = 256 << 20  # bytes of orders that one grouping keeps


@dataclass(frozen=True)
class Groups:
    """The groups of one chunk.

    Parameters
    ----------
    order : (n,) uint32 or intp, or None
        The chunk's words, group by group; None where they stand so already.
    ends : tuple of int
        Where each exponent's words end in that order, from the largest exponent on.
    """

    order: NDArray[np.uint32] | NDArray[np.intp] | None
    ends: tuple[int, ...]

    def index(self) -> NDArray[np.intp]:
        """The order as NumPy takes places; scratch memory."""
        if self.order is None:
            return np.arange(self.ends[-1])
        if self.order.dtype == np.intp:
            return self.order  # type: ignore[return-value]
        index = scratch("index", len(self.order), np.intp)
        index[:] = self.order
        return index

    def merged(self) -> tuple[int, ...]:
        """Where groups end that are large enough for code tables of their own.

        Exponents that are rare join a neighbour.
        """
        count, ends = self.ends[-1], [0]
        for end in self.ends:
            if min(end - ends[-1], count - end) >= _LARGE:
                ends.append(end)
        return (*ends[1:], count)


class Grouping:
    """The groups of a reference's chunks, computed when first asked for and kept.

    Hand the same one to all that are coded against the same reference; threads may share it.
    """

    def __init__(self, keep: int = _KEPT) -> None:
        self._keep = keep
        self._size = 0
        self._chunks: OrderedDict[tuple[Layout, int, int], Groups] = OrderedDict()
        self._guard = threading.Lock()

    def chunk(self, kind: Layout, start: int, predicted: Words) -> Groups:
        """The groups of the chunk of a reference that begins at word `start`."""
        key = kind, start, len(predicted)  # dependents may differ in dtype, and share fewer rows
        with self._guard:
            if key in self._chunks:
                self._chunks.move_to_end(key)
                return self._chunks[key]
        made = groups(kind, predicted)
        size = 0 if made.order is None else made.order.nbytes
        if size <= self._keep:
            with self._guard:
                if key not in self._chunks:
                    self._chunks[key] = made
                    self._size += size
                while self._size > self._keep:
                    _, old = self._chunks.popitem(last=False)
                    self._size -= 0 if old.order is None else old.order.nbytes
        return made


def groups(kind: Layout, predicted: Words, *, lasting: bool = True) -> Groups:
    """Group a chunk's words by exponent, the largest first; few words stay as they stand.

    Unless it is to be `lasting`, the order lies in the thread's scratch memory.
    """
    count = len(predicted)
    if not kind.bits or count < _SMALLEST:
        return Groups(None, (count,))
    # the position below the exponent: sorting such keys takes no index array, and is vectorised
    shift = (count - 1).bit_length()
    exponents = scratch("exponents", count, kind.dtype)
    np.invert(predicted, out=exponents)
    exponents >>= kind.shift
    exponents &= (1 << kind.bits) - 1
    keys = scratch("keys", count, np.uint32)
    keys[:] = exponents
    keys <<= shift
    keys |= _positions(shift)[:count]
    keys.sort()
    bounds = np.arange(1, 1 << kind.bits, dtype=np.uint32) << shift
    ends = (*np.searchsorted(keys, bounds).tolist(), count)
    mask = np.uint32((1 << shift) - 1)
    if lasting:
        return Groups(keys & mask, ends)
    return Groups(np.bitwise_and(keys, mask, out=scratch("index", count, np.intp)), ends)


@lru_cache(maxsize=2)
def _positions(bits: int) -> NDArray[np.uint32]:
    return np.arange(1 << bits, dtype=np.uint32)
