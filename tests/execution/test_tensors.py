"""Stored bytes become torch tensors without being copied."""

from __future__ import annotations

import mmap
import warnings
from pathlib import Path

import pytest
import torch

from blockzoo.errors import UnservableError
from blockzoo.execution.tensors import TORCH_DTYPES, StreamedTensors, to_torch
from blockzoo.tensors import DTYPE_BITS, TensorInfo, TensorRef


def _mapped(path: Path, data: bytes) -> memoryview:
    path.write_bytes(data)
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_a_mapped_tensor_is_not_copied_and_nothing_warns(tmp_path: Path) -> None:
    expected = torch.arange(4096, dtype=torch.float32)
    mapped = _mapped(tmp_path / "data", bytes(64) + _bytes(expected))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = to_torch(TensorInfo("F32", (64, 64)), mapped[64:])
        again = to_torch(TensorInfo("F32", (64, 64)), mapped[64:])
    assert torch.equal(first, expected.view(64, 64))
    assert first.data_ptr() == again.data_ptr()


def test_a_tensor_outlives_the_view_it_was_made_from(tmp_path: Path) -> None:
    mapped = _mapped(tmp_path / "data", _bytes(torch.full((1000,), 7, dtype=torch.int32)))
    tensor = to_torch(TensorInfo("I32", (1000,)), mapped)
    del mapped
    assert int(tensor.sum()) == 7000


@pytest.mark.parametrize("name", TORCH_DTYPES)
def test_every_dtype_comes_out_bit_for_bit(name: str) -> None:
    size = DTYPE_BITS[name] // 8
    data = bytes(i % 2 for i in range(6 * size))
    tensor = to_torch(TensorInfo(name, (2, 3)), memoryview(data))
    assert tensor.dtype == TORCH_DTYPES[name]
    assert _bytes(tensor) == data


def test_unaligned_scalar_and_empty_tensors() -> None:
    value = torch.tensor([1.5, -2.0])
    unaligned = memoryview(b"x" + _bytes(value))[1:]
    assert torch.equal(to_torch(TensorInfo("F32", (2,)), unaligned), value)
    assert to_torch(TensorInfo("F32", ()), memoryview(_bytes(value))[:4]).item() == 1.5
    assert to_torch(TensorInfo("BF16", (0, 4)), memoryview(b"")).shape == (0, 4)


def test_a_dtype_that_torch_cannot_hold_is_refused_by_name() -> None:
    with pytest.raises(UnservableError, match="F4"):
        to_torch(TensorInfo("F4", (2, 2)), memoryview(b"ab"))


def test_streamed_floats_are_cast_and_integers_are_not() -> None:
    stored = {
        "a": (TensorInfo("BF16", (2,)), memoryview(_bytes(torch.tensor([1, 2]).bfloat16()))),
        "b": (TensorInfo("I64", (1,)), memoryview(_bytes(torch.tensor([9])))),
    }
    source = StreamedTensors(stored.__getitem__, torch.float32)
    assert source.tensor(TensorRef("BF16", (2,), "a")).dtype == torch.float32
    assert source.tensor(TensorRef("I64", (1,), "b")).dtype == torch.int64
    both = source.derived("sum", [TensorRef("BF16", (2,), "a")] * 2, lambda parts: sum(parts))
    assert both.tolist() == [2, 4]


@pytest.mark.parametrize("shape", [(3000, 3001), (7,), (0, 4)])
def test_a_streamed_tensor_is_cast_piece_by_piece(shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    stored = torch.randn(shape).bfloat16()
    mapped = _mapped(tmp_path / "data", bytes(14) + _bytes(stored))
    source = StreamedTensors(lambda _: (TensorInfo("BF16", shape), mapped[14:]))
    ref = TensorRef("BF16", shape, "0" * 64)
    assert torch.equal(source.tensor(ref), stored.float())
    assert torch.equal(source.tensor(ref), stored.float())  # its pages come again
