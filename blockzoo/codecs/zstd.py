"""A small file kept compressed: one zstd frame, then a skippable frame that seals it.

The seal is the BLAKE3 of the frame, since zstd itself has bits that no decoder looks at.
``zstd -d`` reads such a file as it is.
"""

from __future__ import annotations

import zstandard

from blockzoo.errors import DamagedError
from blockzoo.tensors import bytes_digest

SUFFIX = ".zst"
_SEAL_HEADER = (0x184D2A5B).to_bytes(4, "little") + (32).to_bytes(4, "little")
_SEAL_SIZE = len(_SEAL_HEADER) + 32


def encode(data: bytes | memoryview) -> bytes:
    """Compress and seal."""
    frame = zstandard.ZstdCompressor(level=12).compress(data)
    return frame + _SEAL_HEADER + bytes.fromhex(bytes_digest(frame))


def decode(file: memoryview, *, largest: int) -> bytes:
    """The bytes that went in.

    Parameters
    ----------
    file : memoryview
        A whole file, as `encode` made it.
    largest : int
        In bytes: a frame that claims more is refused before any memory is taken.

    Raises
    ------
    DamagedError
        Where the seal does not fit the frame, or the frame does not decode.
    """
    frame, seal = bytes(file[:-_SEAL_SIZE]), bytes(file[-_SEAL_SIZE:])
    if seal != _SEAL_HEADER + bytes.fromhex(bytes_digest(frame)):
        raise DamagedError("its seal does not match its bytes")
    try:
        claimed = zstandard.frame_content_size(frame)
        if not 0 <= claimed <= largest:
            raise DamagedError(f"it claims to hold {claimed} bytes")
        return bytes(zstandard.ZstdDecompressor().decompress(frame, max_output_size=claimed))
    except zstandard.ZstdError as error:
        raise DamagedError(f"it does not decompress ({error})") from error
