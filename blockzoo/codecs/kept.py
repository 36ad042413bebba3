"""The file that every packed kind is kept in: a sealed header, chunks, and a seal over all.

::

    magic (8)  header length (4)  header (JSON)  BLAKE3 of all that (32)
    chunk, chunk, …  padding
    BLAKE3 of everything before (32)

A header says what the tensor is, which tensor it needs to be decoded, and how long each chunk
is, so a range of elements is read without the rest. What a header claims is checked before any
memory is taken for it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from blockzoo.codecs.words import count_words
from blockzoo.errors import DamagedError, SourceError
from blockzoo.tensors import TensorInfo, bytes_digest, canonical_json

_MAGIC = b"bzpack1\n"
_SEAL = 32
_START = len(_MAGIC) + 4
_LARGEST_HEADER = 32 << 20  # bytes; some four million chunks
_CHUNKS = range(1 << 10, (1 << 22) + 1)  # words that a chunk may hold
_LARGEST = 1 << 48  # bytes of a tensor
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
    head = {
        "kind": kind,
        "dtype": info.dtype,
        "shape": list(info.shape),
        "reference": reference,
        "level": level,
        "chunk": chunk,
        "shared": shared,
        "chunks": [len(part) for part in chunks],
    }
    text = canonical_json(head)
    header = _MAGIC + len(text).to_bytes(4, "little") + text
    header += bytes.fromhex(bytes_digest(header))
    size = len(header) + sum(map(len, chunks)) + _SEAL
    padding = max(0, -(-_alone(info, shared) // _EXPANSION) - size)
    body = b"".join((header, *chunks, bytes(padding)))
    return body + bytes.fromhex(bytes_digest(body))


def describe(file: memoryview) -> Packed:
    """Read a packed file's header; nothing behind it is looked at.

    Raises
    ------
    DamagedError
        Where the header is not what was written, or claims what cannot be.
    """
    if len(file) < _START + 2 * _SEAL or bytes(file[: len(_MAGIC)]) != _MAGIC:
        raise DamagedError("it is no packed tensor")
    length = int.from_bytes(file[len(_MAGIC) : _START], "little")
    if length > min(_LARGEST_HEADER, len(file) - _START - 2 * _SEAL):
        raise DamagedError("its header is cut short or too long")
    end = _START + length
    if bytes.fromhex(bytes_digest(file[:end])) != file[end : end + _SEAL]:
        raise DamagedError("its header does not match its seal")
    try:
        return _parse(json.loads(bytes(file[_START:end])), end + _SEAL, len(file) - _SEAL)
    except (ValueError, KeyError, TypeError, RecursionError, SourceError) as error:
        raise DamagedError(f"its header cannot be read ({error})") from error


def check_seal(file: memoryview) -> None:
    """Hold every byte of a packed file to its seal.

    Raises
    ------
    DamagedError
    """
    describe(file)
    if bytes.fromhex(bytes_digest(file[:-_SEAL])) != file[-_SEAL:]:
        raise DamagedError("its seal does not match its bytes")


def _parse(head: dict[str, Any], begin: int, end: int) -> Packed:
    shape = tuple(map(_count, head["shape"]))
    if len(shape) > 64:
        raise ValueError("too many dimensions")
    info = TensorInfo(_text(head["dtype"]), shape)
    kind, reference, level = (_text(head[key]) for key in ("kind", "reference", "level"))
    if level not in ("fast", "small") or (reference and not _is_digest(reference)):
        raise ValueError("unknown level or odd reference")
    chunk, shared, words = _count(head["chunk"]), _count(head["shared"]), count_words(info)
    if chunk not in _CHUNKS or shared > words or (shared and not reference):
        raise ValueError("odd chunks")
    if info.nbytes > _LARGEST:
        raise ValueError(f"a tensor of {info.nbytes} bytes")
    if _alone(info, shared) > _EXPANSION * (end + _SEAL):
        raise ValueError(f"{info.nbytes} bytes in a file this small")
    sizes = list(map(_count, head["chunks"]))
    if len(sizes) != -(-shared // chunk) - (-(words - shared) // chunk):
        raise ValueError("the number of chunks does not fit the shape")
    spans, place = [], begin
    for size in sizes:
        spans.append((place, place + size))
        place += size
    if place > end:
        raise ValueError("its chunks are longer than the file")
    return Packed(kind, info, reference, level, chunk, shared, tuple(spans))


def _alone(info: TensorInfo, shared: int) -> int:
    """Bytes that are kept without reference; those with one cannot be more than it has."""
    return info.nbytes - shared * (info.nbytes // max(1, count_words(info)))


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise ValueError(f"{value!r} is no count")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _is_digest(text: str) -> bool:
    return len(text) == 64 and all(c in "0123456789abcdef" for c in text)
