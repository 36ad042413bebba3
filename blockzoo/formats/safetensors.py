"""Reads .safetensors: the header checked as strictly as the safetensors library does, or more.

Layout: 8 bytes little-endian header length, a JSON header, then the tensors' bytes without
holes. The header's bytes (its order, its padding, its ``__metadata__``) stay as they are in the
first span, so the file can be given back exactly.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blockzoo.errors import SourceError
from blockzoo.formats.jsonfile import parse
from blockzoo.formats.mapped import MappedFile
from blockzoo.formats.stored import Span, StoredTensor, join_spans
from blockzoo.tensors import TensorInfo

#: the safetensors library's own limit
MAX_HEADER_BYTES = 100_000_000
_MAX_RANK = 64
_MAX_DIMENSION = (1 << 63) - 1
_DAMAGED_HINT = "the file is damaged or was made to deceive: fetch it again from its source"


class SafetensorsFile:
    """An open .safetensors file.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    metadata : dict of str to str
        The header's ``__metadata__``.

    Raises
    ------
    SourceError
        Where the header lies in any way: longer than the file, not JSON, a name twice, an
        unknown dtype, sizes that do not fit dtype and shape, offsets that overlap, leave holes
        or end elsewhere than the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = MappedFile(path)
        try:
            self.size = self._file.size
            start, header = _read_header(self._file)
            self.metadata = _metadata(path, header.pop("__metadata__", None))
            placed = [_entry(path, name, value) for name, value in header.items()]
            _check_layout(path, placed, self.size - start)
        except BaseException:
            self._file.close()
            raise
        self.tensors: Sequence[StoredTensor] = tuple(
            self._tensor(name, info, start + begin, start + end)
            for begin, end, name, info in sorted(placed, key=lambda entry: entry[2])
        )
        tensor_spans = [tensor.span for tensor in self.tensors if tensor.span is not None]
        tensor_spans.sort(key=lambda span: span.start)
        self.spans: Sequence[Span] = join_spans(tensor_spans, self.size)

    def _tensor(self, name: str, info: TensorInfo, start: int, end: int) -> StoredTensor:
        span = Span(start, end, info) if end > start else None
        return StoredTensor(name, info, lambda: self._file.bytes(start, end), span)

    def bytes(self, span: Span) -> memoryview:
        return self._file.bytes(span.start, span.end)

    def check(self) -> None:
        self._file.check()

    def close(self) -> None:
        self._file.close()


def header(tensors: Mapping[str, TensorInfo]) -> bytes:
    """What a file of these tensors begins with, if they lie one after another in this order."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, info in tensors.items():
        end = offset + info.nbytes
        entries[name] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def parse_header(data: bytes) -> dict[str, TensorInfo]:
    """The tensors of a beginning that `header` made, in their order."""
    entries = json.loads(data[8:])
    return {
        name: TensorInfo(entry["dtype"], tuple(entry["shape"]))
        for name, entry in entries.items()
        if name != "__metadata__"
    }


def _fail(path: Path, why: str) -> SourceError:
    return SourceError(f"{path} is not a valid safetensors file: {why}", hint=_DAMAGED_HINT)


def _read_header(file: MappedFile) -> tuple[int, dict[str, Any]]:
    """Where the data starts, in bytes, and the parsed header."""
    path, size = file.path, file.size
    if size < 8:
        raise _fail(path, f"it has {size} bytes, too few for a header")
    length = int.from_bytes(file.bytes(0, 8), "little")
    if length > MAX_HEADER_BYTES:
        raise _fail(path, f"it claims a header of {length} bytes, over {MAX_HEADER_BYTES}")
    if length > size - 8:
        raise _fail(path, f"it claims a header of {length} bytes, but only {size - 8} follow")
    raw = bytes(file.bytes(8, 8 + length))
    if raw[:1] != b"{":
        raise _fail(path, "its header does not begin with '{'")
    where = f"{path} is not a valid safetensors file: its header cannot be parsed"
    header = parse(raw, where=where, pairs=_no_duplicates)
    return 8 + length, dict(header)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the name {twice[:200]!r} appears twice")
    return value


def _metadata(path: Path, value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise _fail(path, "its __metadata__ is not a map of text to text")
    return value


def _entry(path: Path, name: str, value: Any) -> tuple[int, int, str, TensorInfo]:
    """One tensor of the header: begin and end within the data, name, dtype and shape."""
    label = f"tensor {name[:200]!r}"
    if not isinstance(value, dict):
        raise _fail(path, f"{label} is described by {_short(value)}, not an object")
    dtype = value.get("dtype")
    shape = _whole_numbers(value.get("shape"))
    offsets = _whole_numbers(value.get("data_offsets"))
    if not isinstance(dtype, str):
        raise _fail(path, f"{label} has dtype {_short(dtype)}")
    if shape is None or len(shape) > _MAX_RANK:
        raise _fail(path, f"{label} has shape {_short(value.get('shape'))}")
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _fail(path, f"{label} has data_offsets {_short(value.get('data_offsets'))}")
    try:
        info = TensorInfo(dtype, tuple(shape))
    except SourceError as error:
        raise _fail(path, f"{label}: {error.message[:300]}") from error
    begin, end = offsets
    if end - begin != info.nbytes:
        raise _fail(
            path,
            f"{label} takes {_short(info.nbytes)} bytes as {dtype} {_short(shape)}, "
            f"but its data_offsets span {end - begin}",
        )
    return begin, end, name, info


def _whole_numbers(value: Any) -> list[int] | None:
    """The value, if it is a list of integers from 0 to 2⁶³-1 (true and 1.0 are none)."""
    if not isinstance(value, list):
        return None
    good = all(type(item) is int and 0 <= item <= _MAX_DIMENSION for item in value)
    return value if good else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _check_layout(path: Path, placed: list[tuple[int, int, str, TensorInfo]], size: int) -> None:
    """The tensors fill the ``size`` bytes of data without holes, overlaps or leftovers."""
    position = 0
    for begin, end, name, _ in sorted(placed, key=lambda entry: entry[:2]):
        if begin < position:
            raise _fail(path, f"tensor {name[:200]!r} overlaps the one before it (byte {begin})")
        if begin > position:
            raise _fail(path, f"bytes {position} to {begin} of its data belong to no tensor")
        position = end
    if position > size:
        raise SourceError(
            f"{path} is truncated: its tensors take {position} bytes, but only {size} are there",
            hint="the download or copy was cut short: fetch the file again",
        )
    if position < size:
        raise _fail(path, f"{size - position} bytes follow the last tensor")
