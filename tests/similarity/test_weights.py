"""Distances between tensors, held to torch's own reading of the same bytes."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from blockzoo.similarity.weights import (
    CHUNK,
    as_float,
    bits_changed,
    compare,
    relative_distance,
)
from blockzoo.tensors import TensorInfo

TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I8": torch.int8,
    "U8": torch.uint8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "BOOL": torch.bool,
}


def stored(tensor: torch.Tensor, dtype: str) -> tuple[TensorInfo, bytes]:
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return TensorInfo(dtype, tuple(tensor.shape)), raw


def floats(values: list[float], dtype: str = "F32") -> tuple[TensorInfo, bytes]:
    return stored(torch.tensor(values).to(TORCH[dtype]), dtype)


@pytest.mark.parametrize("dtype", TORCH)
def test_every_code_of_a_dtype_means_what_torch_says(dtype: str) -> None:
    width = TensorInfo(dtype, (1,)).nbytes
    codes = np.arange(256 if width == 1 else 65536)
    if dtype == "BOOL":
        codes = codes[:2]
    raw = np.random.default_rng(0).integers(0, 256, 8 * 4096, np.uint8).tobytes()
    raw = codes.astype({1: "u1", 2: "<u2"}[width]).tobytes() if width <= 2 else raw
    tensor = torch.frombuffer(bytearray(raw), dtype=TORCH[dtype])
    found = np.concatenate(list(as_float(TensorInfo(dtype, tuple(tensor.shape)), raw)))
    np.testing.assert_array_equal(found, tensor.to(torch.float64).numpy().astype(found.dtype))


def test_chunks_cover_a_tensor_in_order() -> None:
    values = torch.arange(1000, dtype=torch.float32)
    chunks = list(as_float(*stored(values, "F32"), chunk=64))
    assert [len(c) for c in chunks] == [64] * 15 + [40]
    np.testing.assert_array_equal(np.concatenate(chunks), values.numpy())


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_distance_is_the_relative_frobenius_norm(dtype: str) -> None:
    generator = torch.Generator().manual_seed(0)
    size = CHUNK + 1000 if dtype == "BF16" else 5000
    a = torch.randn(size, generator=generator, dtype=torch.float64).to(TORCH[dtype])
    b = (a.double() + 1e-2 * torch.randn(size, generator=generator).double()).to(TORCH[dtype])
    expected = float((a.double() - b.double()).norm() / a.double().norm())
    assert relative_distance(stored(a, dtype), stored(b, dtype)) == pytest.approx(expected, 1e-12)


def test_distance_across_dtypes_compares_values() -> None:
    values = torch.randn(64).bfloat16()
    assert relative_distance(stored(values, "BF16"), stored(values.float(), "F32")) == 0.0


def test_nans_in_the_same_places_are_equal_and_elsewhere_are_not() -> None:
    nan, inf = math.nan, math.inf
    assert relative_distance(floats([1, nan, inf]), floats([1, nan, inf])) == 0.0
    assert relative_distance(floats([4, nan, 3]), floats([4, nan, -2])) == pytest.approx(1.0)
    assert relative_distance(floats([1, nan]), floats([1, 2])) == inf
    assert relative_distance(floats([1, inf]), floats([1, -inf])) == inf


def test_extremes_neither_overflow_nor_vanish() -> None:
    for scale in (1e300, 1e-300):
        a = stored(torch.tensor([3 * scale, 4 * scale], dtype=torch.float64), "F64")
        b = stored(torch.tensor([3 * scale, 3 * scale], dtype=torch.float64), "F64")
        assert relative_distance(a, b) == pytest.approx(0.2)


def test_zero_and_empty_tensors() -> None:
    assert relative_distance(floats([0, 0]), floats([0, 0])) == 0.0
    assert relative_distance(floats([0, 0]), floats([0, 1])) == math.inf
    assert relative_distance(floats([]), floats([])) == 0.0
    assert bits_changed(floats([]), floats([])) == 0.0
    scalar = stored(torch.tensor(2.0), "F32")
    assert relative_distance(scalar, stored(torch.tensor(1.0), "F32")) == 0.5


def test_bits_changed_counts_bits() -> None:
    a = (TensorInfo("U8", (4,)), bytes([0, 0, 0, 0]))
    assert bits_changed(a, (TensorInfo("U8", (4,)), bytes([1, 3, 0, 0]))) == 3 / 32
    assert bits_changed(a, (TensorInfo("U8", (4,)), bytes([255] * 4))) == 1.0
    with pytest.raises(ValueError, match="no bits in common"):
        bits_changed(a, (TensorInfo("I8", (4,)), bytes(4)))


def test_grown_rows_are_counted_and_the_shared_ones_compared() -> None:
    table = torch.randn(10, 4).bfloat16()
    grown = torch.cat((table, torch.randn(2, 4).bfloat16()))
    found = compare(stored(table, "BF16"), stored(grown, "BF16"))
    assert found is not None
    assert (found.relative, found.bits_changed, found.rows_added) == (0.0, 0.0, 2)
    shrunk = compare(stored(grown, "BF16"), stored(table, "BF16"))
    assert shrunk is not None and shrunk.rows_added == -2
    assert compare(stored(table, "BF16"), stored(torch.zeros(10, 5), "F32")) is None


def test_same_values_in_other_bits_are_at_no_distance() -> None:
    found = compare(floats([0.0, 1.0]), floats([-0.0, 1.0]))
    assert found is not None
    assert found.relative == 0.0 and found.bits_changed == 1 / 64


def test_torch_is_not_imported() -> None:
    code = "import sys, blockzoo.similarity.weights; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
