"""Torch files, new and old: all that torch.save writes of weights, and nothing that runs."""

from __future__ import annotations

import collections
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from blockzoo.errors import SourceError
from blockzoo.formats.weights import open_weights


def tensors() -> dict[str, torch.Tensor]:
    grid = torch.randn(6, 8)
    bits = torch.arange(-8, 8, dtype=torch.int8)
    return {
        "bf16": torch.randn(3, 4).bfloat16(),
        "fp16": torch.randn(5).half(),
        "fp64": torch.randn(2, 2).double(),
        "int8": bits,
        "uint8": bits.view(torch.uint8).clone(),
        "int64": torch.tensor([2**60, -1]),
        "bool": torch.tensor([True, False]),
        "complex": torch.randn(3, dtype=torch.complex64),
        "fp8": bits.view(torch.float8_e4m3fn).clone(),
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 4),
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "nan": torch.tensor([float("nan"), float("-inf"), -0.0]),
        "whole": grid,
        "row": grid[2],
        "column": grid[:, 3],
        "transposed": grid.t(),
        "tied": grid,
        "expanded": torch.randn(3, 1).expand(3, 4),
    }


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_every_tensor_and_byte_is_read_as_torch_reads_it(tmp_path: Path, new: bool) -> None:
    path = tmp_path / "pytorch_model.bin"
    # torch writes fp8 in its old format, too, but cannot read it again
    given = {name: tensor for name, tensor in tensors().items() if new or name != "fp8"}
    torch.save(collections.OrderedDict(given), path, _use_new_zipfile_serialization=new)
    file = open_weights(path)
    back = torch.load(path, weights_only=True)
    assert {t.name for t in file.tensors} == set(back)
    for stored in file.tensors:
        expected = back[stored.name].detach().contiguous()
        assert stored.info.shape == tuple(expected.shape)
        flat = expected.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert bytes(stored.data) == flat, stored.name
    assert b"".join(bytes(file.bytes(span)) for span in file.spans) == path.read_bytes()


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("key", ["state_dict", "model", "module"])
def test_a_nested_state_dict_is_found(tmp_path: Path, key: str, new: bool) -> None:
    path = tmp_path / "x.bin"
    torch.save({key: {"w": torch.ones(2)}, "step": 3}, path, _use_new_zipfile_serialization=new)
    assert [t.name for t in open_weights(path).tensors] == ["w"]


class Evil:
    """Runs a command when unpickled."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.ran}",)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_would_run_code_is_refused_by_name(tmp_path: Path, new: bool) -> None:
    path, ran = tmp_path / "pytorch_model.bin", tmp_path / "ran"
    torch.save({"w": torch.ones(1), "x": Evil(ran)}, path, _use_new_zipfile_serialization=new)
    with pytest.raises(SourceError, match=r"posix\.system|os\.system") as caught:
        open_weights(path)
    assert "would run code" in caught.value.message
    assert caught.value.hint
    assert not ran.exists()


def _zip_with_pickle(path: Path, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", b"3\n")
    return path


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02r\xff\xff\xff\xffN.",  # a memo index of four billion
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.",  # a terabyte of bytes
        b"\x80\x02X\xff\xff\xff\x7fx.",  # two gigabytes of text
        b"\x80\x02\x8b" + struct.pack("<i", 1 << 30) + b"x.",  # a number of a gigabyte
        b"\x80\x02" + b"(" * 1000 + b".",
        b"\x80\x02" + b"]q\x00" + b"h\x00a" * 10 + b".",  # a list that holds itself
        b"\x80\x02.",
        b"",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nq\x00)R.",
        pickle.dumps({"a": 1, (1, 2): 3}),
        b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
        b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93.",
        b"I1\n.",
    ],
)
def test_malicious_pickles_are_refused_in_little_memory(tmp_path: Path, data: bytes) -> None:
    import tracemalloc

    path = _zip_with_pickle(tmp_path / "x.bin", data)
    tracemalloc.start()
    try:
        with pytest.raises(SourceError):
            open_weights(path)
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(100 << 20))
    with pytest.raises(SourceError, match="compressed"):
        open_weights(path)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_truncated_torch_file_is_refused(tmp_path: Path, new: bool) -> None:
    path = tmp_path / "x.bin"
    torch.save({"w": torch.randn(100)}, path, _use_new_zipfile_serialization=new)
    whole = path.read_bytes()
    for size in (1, 10, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(SourceError):
            open_weights(path)
