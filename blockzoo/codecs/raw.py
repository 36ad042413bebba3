"""A tensor as it is: a valid .safetensors file with one entry, its data aligned for mmap.

The header is a function of dtype and shape alone, so a changed byte anywhere in the file is
found: in the data by the digest, in the header by comparing it with what it must be.
"""

from __future__ import annotations

import json

from blockzoo.errors import DamagedError, SourceError
from blockzoo.tensors import TensorInfo

SUFFIX = ".safetensors"
_ALIGNMENT = 64  # bytes; a cache line, and enough for every vector load
_LARGEST_HEADER = 1 << 16


def header(info: TensorInfo) -> bytes:
    """Everything that stands before the data of a tensor of this dtype and shape."""
    entry = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [0, info.nbytes]}
    text = json.dumps({"tensor": entry}, separators=(",", ":")).encode()
    padding = -(8 + len(text)) % _ALIGNMENT
    return (len(text) + padding).to_bytes(8, "little") + text + b" " * padding


def size(info: TensorInfo) -> int:
    """Bytes of the whole file."""
    return len(header(info)) + info.nbytes


def read(file: memoryview) -> tuple[TensorInfo, memoryview]:
    """Dtype, shape and data of a raw file; the data are a view, not a copy.

    Raises
    ------
    DamagedError
        Where the header is not the one such a tensor has, or the length does not fit.
    """
    length = int.from_bytes(file[:8], "little")
    if len(file) < 8 or not 0 < length <= min(_LARGEST_HEADER, len(file) - 8):
        raise DamagedError("its header is cut short or too long")
    try:
        entry = json.loads(bytes(file[8 : 8 + length]))["tensor"]
        info = TensorInfo(entry["dtype"], tuple(map(int, entry["shape"])))
    except (ValueError, KeyError, TypeError, SourceError) as error:
        raise DamagedError(f"its header cannot be read ({error})") from error
    expected = header(info)
    if bytes(file[: len(expected)]) != expected or len(file) != len(expected) + info.nbytes:
        raise DamagedError("its header or length is not what its dtype and shape say")
    return info, file[len(expected) :]
