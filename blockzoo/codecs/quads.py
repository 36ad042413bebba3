"""Symbols of which three make up most, four to a byte.

A Huffman code spends at least one bit on a symbol. Where one or a few symbols are much more
frequent than that, four of them make one symbol of a larger alphabet.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

_SHIFTS = np.arange(0, 8, 2)
#: the four two-bit codes in each byte
_CODES = ((np.arange(256)[:, None] >> _SHIFTS) & 3).astype(np.uint8)


def few(data: Bytes) -> Bytes | None:
    """The three most frequent symbols, where they make up most of `data`, (n,)."""
    counts = np.bincount(data, minlength=256)
    symbols = np.argsort(counts)[-3:].astype(np.uint8)
    return symbols if counts[symbols].sum() > 0.7 * len(data) else None


def join(data: Bytes, symbols: Bytes) -> tuple[Bytes, Bytes]:
    """Four symbols to a byte.

    Returns
    -------
    quads : (⌈n/4⌉,) uint8
    rest : (m,) uint8
        The symbols that are none of the three.
    """
    table = np.full(256, 3, np.uint8)
    table[symbols] = (0, 1, 2)
    codes = np.zeros(-(-len(data) // 4) * 4, np.uint8)
    np.take(table, data, out=codes[: len(data)], mode="clip")
    words = codes.view("<u4")
    quads = words | words >> 6 | words >> 12 | words >> 18
    return quads.astype(np.uint8), data[codes[: len(data)] == 3]


def marked(quads: Bytes, symbols: Bytes, count: int) -> tuple[Bytes, NDArray[np.intp]]:
    """Undo `join` but for the rest: the symbols, (count,), and where the rest belong."""
    mark = next(value for value in range(4) if value not in symbols.tolist())
    table = np.append(symbols, np.uint8(mark))[_CODES].view("<u4").ravel()
    data = table[quads].view(np.uint8)[:count]
    return data, np.flatnonzero(data == mark)
