"""Runs of bytes in the shortest of a few forms.

A run is all zero, stored, one zstd frame (of which Huffman coding does the work), or, where most
of its bytes are zero, a bit for each byte that tells whether it is, and then the others.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from blockzoo.errors import DamagedError

Bytes = NDArray[np.uint8]

_ZERO, _STORED, _ZSTD, _SPARSE = range(4)
_MODE_SHIFT = 29  # an entry is a mode and, below it, a length
ENTRY = np.dtype("<u4")
_local = threading.local()

#: Weights hold no repeated strings; a match found by chance costs more than the symbols it stands
#: for. So the search is for long ones only, in a tiny table.
_PARAMETERS = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST,
    min_match=7,
    hash_log=6,
    window_log=17,
    format=zstandard.FORMAT_ZSTD1_MAGICLESS,
)


def pack(data: Bytes, level: str) -> tuple[int, bytes]:
    """Code a run.

    Parameters
    ----------
    data : (n,) uint8
    level : {"fast", "small"}

    Returns
    -------
    entry : int
        What `unpack` needs to know, 32 bits.
    coded : bytes
    """
    if not data.any():
        return _ZERO << _MODE_SHIFT, b""
    coded = bytes(_compressor(level).compress(data))
    mode = _ZSTD
    if level == "small" and len(coded) * 4 < len(data):
        sparse = _pack_sparse(data)
        if len(sparse) < len(coded):
            mode, coded = _SPARSE, sparse
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
    if mode == _SPARSE:
        return _unpack_sparse(coded, count)
    raise DamagedError("a run of bytes is in no known form")


def _pack_sparse(data: Bytes) -> bytes:
    flags = data != 0
    mask = _compressor("small").compress(np.packbits(flags))
    values = data[flags]
    rest = bytes(_compressor("small").compress(values))
    if len(rest) >= len(values):
        rest = values.tobytes()
    return len(mask).to_bytes(4, "little") + bytes(mask) + rest


def _unpack_sparse(coded: memoryview, count: int) -> Bytes:
    size = int.from_bytes(coded[:4], "little")
    mask = _decompress(coded[4 : 4 + size], -(-count // 8))
    places = np.flatnonzero(np.unpackbits(mask, count=count))
    rest = coded[4 + size :]
    stored = len(rest) == len(places)
    values = np.frombuffer(rest, np.uint8) if stored else _decompress(rest, len(places))
    out = np.zeros(count, np.uint8)
    out[places] = values
    return out


def _decompress(coded: memoryview, count: int) -> Bytes:
    try:
        frame = zstandard.get_frame_parameters(coded, format=zstandard.FORMAT_ZSTD1_MAGICLESS)
        claimed = frame.content_size
        if claimed != count:
            raise DamagedError(f"a run claims {claimed} bytes where {count} belong")
        data = _decompressor().decompress(coded, allow_extra_data=False)
    except (zstandard.ZstdError, ValueError) as error:
        raise DamagedError(f"a run does not decompress ({error})") from error
    if len(data) != count:
        raise DamagedError("a run is cut short")
    return np.frombuffer(data, np.uint8)


def _compressor(level: str) -> Any:
    """Threads share none: zstd's contexts are not for two at once."""
    name = f"compressor_{level}"
    if not hasattr(_local, name):
        setattr(_local, name, zstandard.ZstdCompressor(compression_params=_PARAMETERS))
    return getattr(_local, name)


def _decompressor() -> Any:
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor(format=zstandard.FORMAT_ZSTD1_MAGICLESS)
    return _local.decompressor
