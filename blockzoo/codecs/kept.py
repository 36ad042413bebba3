"""The file that every packed kind is kept in: a sealed header, chunks, and a seal over all.

::

    magic (4)  header length (4)  header  BLAKE3 of all that, the first half (16)
    chunk, chunk, …  padding
    BLAKE3 of everything before (32)

A header says what the tensor is, which tensor it needs to be decoded, and how long each chunk
is, so a range of elements is read without the rest. What a header claims is checked before any
memory is taken for it. Numbers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from blockzoo.codecs.words import count_words
from blockzoo.errors import DamagedError, SourceError
from blockzoo.tensors import TensorInfo, bytes_digest

_MAGIC = b"bzp1"
_START = len(_MAGIC) + 4
_HEAD_SEAL, _SEAL = 16, 32
_LEVELS = ("fast", "small")
_CHUNKS = range(1 << 10, (1 << 22) + 1)  # words that a chunk may hold
_LARGEST = 1 << 48  # bytes of a tensor
_LARGEST_HEADER = 4 << 20  # bytes; a million chunks
_DIMENSIONS = 64
_EXPANSION = 1024  # what is kept without reference is at most so many times the file's size


@dataclass(frozen=True)
class Packed:
    """What a packed file says of itself, read without decoding it.

    Parameters
    ----------
    kind : str
        The file's suffix, such as ``.delta``.
    info : TensorInfo
        Dtype and shape of the tensor that it holds.
    reference : str
        The digest of the tensor that it is decoded with; "" if none.
    level : {"fast", "small"}
    chunk : int
        Words of each chunk but the last (of the shared and of the new part, for rows).
    shared : int
        Words, from the first, that are kept as a difference from the reference's.
    spans : tuple of (start, stop)
        Where each chunk lies in the file, in bytes.
    """

    kind: str
    info: TensorInfo
    reference: str
    level: str
    chunk: int
    shared: int
    spans: tuple[tuple[int, int], ...]

    def ranges(self) -> list[tuple[int, int]]:
        """The words that each chunk holds, as (start, stop)."""
        return ranges(self.shared, count_words(self.info), self.chunk)


def ranges(shared: int, words: int, chunk: int) -> list[tuple[int, int]]:
    """Cut words into chunks; none holds both shared and new ones."""
    parts = ((0, shared), (shared, words))
    return [(i, min(i + chunk, end)) for begin, end in parts for i in range(begin, end, chunk)]


def write(
    kind: str,
    info: TensorInfo,
    reference: str,
    level: str,
    chunk: int,
    shared: int,
    chunks: Sequence[bytes],
) -> bytes:
    """Put a packed file together."""
    text = (
        b"".join(bytes([len(word)]) + word for word in (kind.encode(), info.dtype.encode()))
        + bytes([len(reference) // 2])
        + bytes.fromhex(reference)
        + struct.pack("<BIQB", _LEVELS.index(level), chunk, shared, len(info.shape))
        + struct.pack(f"<{len(info.shape)}Q", *info.shape)
        + struct.pack(f"<{len(chunks)}I", *map(len, chunks))
    )
    header = _MAGIC + len(text).to_bytes(4, "little") + text
    header += _digest(header)[:_HEAD_SEAL]
    size = len(header) + sum(map(len, chunks)) + _SEAL
    padding = max(0, -(-_alone(info, shared) // _EXPANSION) - size)
    body = b"".join((header, *chunks, bytes(padding)))
    return body + _digest(body)


def describe(file: memoryview) -> Packed:
    """Read a packed file's header; nothing behind it is looked at.

    Raises
    ------
    DamagedError
        Where the header is not what was written, or claims what cannot be.
    """
    around = _START + _HEAD_SEAL + _SEAL
    if len(file) < around or bytes(file[: len(_MAGIC)]) != _MAGIC:
        raise DamagedError("it is no packed tensor")
    length = int.from_bytes(file[len(_MAGIC) : _START], "little")
    if length > min(_LARGEST_HEADER, len(file) - around):
        raise DamagedError("its header is cut short or too long")
    end = _START + length
    if _digest(file[:end])[:_HEAD_SEAL] != file[end : end + _HEAD_SEAL]:
        raise DamagedError("its header does not match its seal")
    try:
        return _parse(file[_START:end], end + _HEAD_SEAL, len(file))
    except (ValueError, IndexError, struct.error, SourceError) as error:
        raise DamagedError(f"its header cannot be read ({error})") from error


def check_seal(file: memoryview) -> None:
    """Hold every byte of a packed file to its seal.

    Raises
    ------
    DamagedError
    """
    describe(file)
    if _digest(file[:-_SEAL]) != file[-_SEAL:]:
        raise DamagedError("its seal does not match its bytes")


def _parse(text: memoryview, begin: int, size: int) -> Packed:
    words, place = [], 0
    for _ in range(3):
        stop = place + 1 + text[place]
        words.append(bytes(text[place + 1 : stop]))
        place = stop
    kind, dtype, reference = words[0].decode("ascii"), words[1].decode("ascii"), words[2].hex()
    if len(reference) not in (0, 64):
        raise ValueError("its reference is no digest")
    level, chunk, shared, dimensions = struct.unpack_from("<BIQB", text, place)
    place += struct.calcsize("<BIQB")
    if dimensions > _DIMENSIONS or level >= len(_LEVELS) or chunk not in _CHUNKS:
        raise ValueError("odd level, chunks or dimensions")
    shape = struct.unpack_from(f"<{dimensions}Q", text, place)
    place += 8 * dimensions
    info = TensorInfo(dtype, shape)
    total = count_words(info)
    if info.nbytes > _LARGEST or shared > total or (shared and not reference):
        raise ValueError(f"{shared} shared words of {info.nbytes} bytes")
    if _alone(info, shared) > _EXPANSION * size:
        raise ValueError(f"{info.nbytes} bytes in a file of {size}")
    count = -(-shared // chunk) - (-(total - shared) // chunk)
    if 4 * count != len(text) - place:
        raise ValueError("the number of chunks does not fit the shape")
    sizes = struct.unpack_from(f"<{count}I", text, place)
    spans = tuple(pairwise(accumulate(sizes, initial=begin)))
    if spans and spans[-1][1] > size - _SEAL:
        raise ValueError("its chunks are longer than the file")
    return Packed(kind, info, reference, _LEVELS[level], chunk, shared, spans)


def _alone(info: TensorInfo, shared: int) -> int:
    """Bytes that are kept without reference; those with one cannot be more than it has."""
    return info.nbytes - shared * (info.nbytes // max(1, count_words(info)))


def _digest(data: bytes | memoryview) -> bytes:
    return bytes.fromhex(bytes_digest(data))
