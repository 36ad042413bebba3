"""A reference's elements grouped by exponent: how wide a difference is depends on it.

It is computed from the reference alone, by the decoder too, so it costs no bytes; it is the
same for every tensor that is kept as a difference from that reference, so it can be kept.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blockzoo.codecs.words import Layout, Words

_SMALLEST = 2048  # words; fewer are left as they stand
_LARGE = 4096  # words; for these a code table pays
_KEPT = 256 << 20  # bytes of orders that one grouping keeps


@dataclass(frozen=True)
class Groups:
    """The groups of one chunk.

    Parameters
    ----------
    order : (n,) uint32 or None
        The chunk's words, group by group; None where they stand so already.
    ends : tuple of int
        Where each exponent's words end in that order, from the largest exponent on.
    """

    order: NDArray[np.uint32] | None
    ends: tuple[int, ...]

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


def groups(kind: Layout, predicted: Words) -> Groups:
    """Group a chunk's words by exponent, the largest first; few words stay as they stand."""
    count = len(predicted)
    if not kind.bits or count < _SMALLEST:
        return Groups(None, (count,))
    # the position below the exponent: sorting such keys takes no index array, and is vectorised
    shift = (count - 1).bit_length()
    keys = ((~predicted >> kind.shift) & ((1 << kind.bits) - 1)).astype(np.uint32)
    keys <<= shift
    keys |= np.arange(count, dtype=np.uint32)
    keys.sort()
    bounds = np.arange(1, 1 << kind.bits, dtype=np.uint32) << shift
    ends = (*np.searchsorted(keys, bounds).tolist(), count)
    keys &= (1 << shift) - 1
    return Groups(keys, ends)
