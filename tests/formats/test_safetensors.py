"""Safetensors files: what is read is what the library wrote, and what lies is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from blockzoo.errors import SourceError
from blockzoo.formats.weights import open_weights


def written(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """A file with any header, true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_tensors_and_spans_are_those_of_the_file(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 4).bfloat16(),
        "a": torch.arange(5),
        "scalar": torch.tensor(2.0),
        "empty": torch.empty(0, 3),
    }
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, {"format": "pt"})
    file = open_weights(path)
    assert {t.name: list(t.info.shape) for t in file.tensors} == {
        name: list(tensor.shape) for name, tensor in tensors.items()
    }
    for stored in file.tensors:
        raw = tensors[stored.name].contiguous().view(-1)
        assert bytes(stored.data) == raw.view(torch.uint8).numpy().tobytes()
    assert b"".join(bytes(file.bytes(span)) for span in file.spans) == path.read_bytes()
    assert [span.start for span in file.spans[1:]] == [span.end for span in file.spans[:-1]]


LIES: dict[str, tuple[Any, bytes]] = {
    "offsets beyond the end": ({"a": entry("F32", [2], 0, 8)}, b"1234"),
    "bytes left over": ({"a": entry("F32", [1], 0, 4)}, b"12345678"),
    "overlapping": ({"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 2, 6)}, b"123456"),
    "a hole": ({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 4, 6)}, b"123456"),
    "backwards": ({"a": entry("U8", [2], 2, 0)}, b"12"),
    "negative": ({"a": entry("U8", [2], -2, 0)}, b""),
    "size unlike the shape": ({"a": entry("F32", [3], 0, 8)}, b"12345678"),
    "unknown dtype": ({"a": entry("F99", [1], 0, 4)}, b"1234"),
    "wrong dtype": ({"a": entry("F64", [1], 0, 4)}, b"1234"),
    "negative dimension": ({"a": entry("U8", [-1, -4], 0, 4)}, b"1234"),
    "shape that overflows": ({"a": entry("U8", [1 << 40, 1 << 40], 0, 0)}, b""),
    "no shape": ({"a": {"dtype": "U8", "data_offsets": [0, 1]}}, b"1"),
    "shape of text": ({"a": {"dtype": "U8", "shape": "1", "data_offsets": [0, 1]}}, b"1"),
    "true as a number": ({"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, b"1"),
    "a list": ([1, 2], b""),
    "no JSON": (b"{'a': 1}", b""),
    "no UTF-8": (b'{"\xff": 1}', b""),
    "a name twice": (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
        b"12",
    ),
    "nested without end": (b"[" * 100_000, b""),
    "metadata that is no text": ({"__metadata__": {"a": 1}}, b""),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_is_refused(tmp_path: Path, lie: str) -> None:
    header, data = LIES[lie]
    with pytest.raises(SourceError) as caught:
        open_weights(written(tmp_path / "x.safetensors", header, data))
    assert "x.safetensors" in caught.value.message


@pytest.mark.parametrize("length", [0, 3, 1 << 20, 1 << 34, (1 << 64) - 1])
def test_a_header_of_another_length_than_it_says_is_refused(tmp_path: Path, length: int) -> None:
    header = {"a": entry("U8", [1], 0, 1)}
    with pytest.raises(SourceError):
        open_weights(written(tmp_path / "x.safetensors", header, b"1", length))


@pytest.mark.parametrize("size", [0, 1, 7, 8, 20])
def test_a_truncated_file_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(4)}, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(SourceError):
        open_weights(path)


def test_a_file_that_shrinks_while_open_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(4000)}, path)
    file = open_weights(path)
    with open(path, "r+b") as handle:
        handle.truncate(100)
    with pytest.raises(SourceError, match=r"chang|shr|trunc"):
        _ = bytes(file.tensors[0].data)
