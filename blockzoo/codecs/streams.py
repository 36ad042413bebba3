"""Runs of bytes in the shortest of a few forms.

A run is all zero, stored, one zstd frame (of which Huffman coding does the work), or, where a few
symbols make up most of it, two runs: four symbols to a byte, and the other symbols (`quads`).
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from blockzoo.codecs import quads
from blockzoo.errors import DamagedError

Bytes = NDArray[np.uint8]

_ZERO, _STORED, _ZSTD, _QUADS = range(4)
_MODE_SHIFT = 29  # an entry is a mode and, below it, a length
ENTRY = np.dtype("<u4")
_QUADS_FROM = 64  # bytes; below it is not worth two runs
_QUADS_BELOW = 3.5  # a run that zstd does not take to so small a part is left at that
_QUADS_HEAD = 3 + 2 * ENTRY.itemsize
_FORMAT = zstandard.FORMAT_ZSTD1_MAGICLESS
_local = threading.local()

#: Weights hold no repeated strings; a match found by chance costs more than the symbols it stands
#: for. So the search is for long ones only, in a tiny table.
_PARAMETERS = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST,
    min_match=7,
    hash_log=6,
    window_log=17,
    format=_FORMAT,
)


def pack(data: Bytes, *, fours: bool = True, repeats: int = 0) -> tuple[int, bytes]:
    """Code a run.

    Parameters
    ----------
    data : (n,) uint8
    fours : bool
        Whether symbols may be taken four at a time.
    repeats : int
        The level at which zstd looks for repeated strings; 0 for data that hold none.

    Returns
    -------
    entry : int
        What `unpack` needs to know, 32 bits.
    coded : bytes
    """
    if not data.any():
        return _ZERO << _MODE_SHIFT, b""
    coded = bytes(_compressor(repeats).compress(data))
    mode = _ZSTD
    if fours and len(data) > _QUADS_FROM and len(coded) * _QUADS_BELOW < len(data):
        packed = _pack_quads(data)
        if packed is not None and len(packed) < len(coded):
            mode, coded = _QUADS, packed
    if len(coded) >= len(data) * 0.99:
        mode, coded = _STORED, data.tobytes()
    return mode << _MODE_SHIFT | len(coded), coded


def length(entry: int) -> int:
    """Bytes that a run's coded form takes."""
    return entry & ((1 << _MODE_SHIFT) - 1)


def unpack(entry: int, coded: memoryview, count: int) -> Bytes | None:
    """Decode a run of `count` bytes; None where all are zero.

    Raises
    ------
    DamagedError
        Where it is not such a run. No more than `count` bytes are ever taken.
    """
    mode = entry >> _MODE_SHIFT
    if mode == _ZERO and len(coded) == 0:
        return None
    if mode == _STORED and len(coded) == count:
        return np.frombuffer(coded, np.uint8)
    if mode == _ZSTD:
        return _decompress(coded, count)
    if mode == _QUADS and len(coded) >= _QUADS_HEAD:
        return _unpack_quads(coded, count)
    raise DamagedError("a run of bytes is in no known form")


def _pack_quads(data: Bytes) -> bytes | None:
    symbols = quads.few(data)
    if symbols is None:
        return None
    joined, rest = quads.join(data, symbols)
    (first, head), (second, tail) = pack(joined), pack(rest, fours=False)
    entries = np.array((first, second), ENTRY).tobytes()
    return symbols.tobytes() + entries + head + tail


def _unpack_quads(coded: memoryview, count: int) -> Bytes:
    symbols = np.frombuffer(coded[:3], np.uint8)
    first, second = np.frombuffer(coded[3:_QUADS_HEAD], ENTRY).tolist()
    if count <= _QUADS_FROM or second >> _MODE_SHIFT == _QUADS:
        raise DamagedError("a run of bytes is nested too deep")
    cut = _QUADS_HEAD + length(first)
    joined = unpack(first, coded[_QUADS_HEAD:cut], -(-count // 4))
    if joined is None:
        joined = np.zeros(-(-count // 4), np.uint8)
    data, places = quads.marked(joined, symbols, count)
    rest = unpack(second, coded[cut:], len(places))
    data[places] = 0 if rest is None else rest
    return data


def _decompress(coded: memoryview, count: int) -> Bytes:
    try:
        frame = zstandard.get_frame_parameters(coded, format=_FORMAT)
        claimed = frame.content_size
        if claimed != count:
            raise DamagedError(f"a run claims {claimed} bytes where {count} belong")
        data = _decompressor().decompress(coded, allow_extra_data=False)
    except (zstandard.ZstdError, ValueError) as error:
        raise DamagedError(f"a run does not decompress ({error})") from error
    if len(data) != count:
        raise DamagedError("a run is cut short")
    return np.frombuffer(data, np.uint8)


def _compressor(repeats: int) -> Any:
    """Threads share none: zstd's contexts are not for two at once."""
    name = f"compressor{repeats}"
    if not hasattr(_local, name):
        parameters = _PARAMETERS
        if repeats:
            parameters = zstandard.ZstdCompressionParameters.from_level(repeats, format=_FORMAT)
        setattr(_local, name, zstandard.ZstdCompressor(compression_params=parameters))
    return getattr(_local, name)


def _decompressor() -> Any:
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor(format=_FORMAT)
    return _local.decompressor
