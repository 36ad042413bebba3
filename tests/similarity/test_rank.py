"""The rank of a difference, through rounding, at every size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from blockzoo.similarity import rank
from blockzoo.similarity.rank import difference_rank
from blockzoo.tensors import TensorInfo

TORCH = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
random = torch.Generator().manual_seed(3)


def stored(tensor: torch.Tensor, dtype: str) -> tuple[TensorInfo, bytes]:
    cast = tensor.to(TORCH[dtype]).contiguous()
    raw = cast.reshape(-1).view(torch.uint8).numpy().tobytes()
    return TensorInfo(dtype, tuple(tensor.shape)), raw


def base(rows: int, columns: int) -> torch.Tensor:
    scale = torch.rand(rows, 1, generator=random) + 0.5  # rows of unequal size, as real ones
    return 0.02 * scale * torch.randn(rows, columns, generator=random)


def update(rows: int, columns: int, rank: int, size: float = 1e-3) -> torch.Tensor:
    left = torch.randn(rows, rank, generator=random)
    return size * left @ torch.randn(rank, columns, generator=random) / rank**0.5


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("shape", [(96, 160), (160, 96), (256, 256)])
@pytest.mark.parametrize("true", [1, 4, 16])
def test_a_merged_update_has_the_rank_it_had(dtype: str, shape: tuple[int, int], true: int) -> None:
    origin = base(*shape).to(TORCH[dtype]).float()
    a = stored(origin, dtype)
    found = difference_rank(a, stored(origin + update(*shape, true), dtype))
    assert found is not None
    assert found.numerical == true and not found.at_least and found.full == min(shape)
    assert found.effective >= 1 - 1e-6


def test_rounding_alone_has_no_rank() -> None:
    origin = base(200, 300)
    found = difference_rank(stored(origin, "F32"), stored(origin, "BF16"))
    assert found is not None and found.numerical == 0 and found.effective > 50


def test_a_full_change_has_full_rank() -> None:
    origin = base(64, 64)
    moved = origin + 0.01 * torch.randn(64, 64, generator=random)
    found = difference_rank(stored(origin, "BF16"), stored(moved, "BF16"))
    assert found is not None and found.numerical > 55


def test_equal_matrices_differ_by_rank_zero() -> None:
    a = stored(base(30, 40), "BF16")
    found = difference_rank(a, a)
    assert found is not None and (found.numerical, found.effective) == (0, 0.0)


def test_large_matrices_are_projected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank, "EXACT_SIDE", 100)
    monkeypatch.setattr(rank, "PROJECTED", 24)
    origin = base(300, 400).bfloat16().float()
    a = stored(origin, "BF16")
    few = difference_rank(a, stored(origin + update(300, 400, 8), "BF16"))
    many = difference_rank(a, stored(origin + update(300, 400, 60), "BF16"))
    assert few is not None and (few.numerical, few.at_least) == (8, False)
    assert many is not None and (many.numerical, many.at_least) == (24, True)


def test_added_rows_are_left_out() -> None:
    origin = base(80, 60).bfloat16().float()
    grown = torch.cat([origin + update(80, 60, 2), base(4, 60)])
    found = difference_rank(stored(origin, "BF16"), stored(grown, "BF16"))
    assert found is not None and found.numerical == 2


def test_what_has_no_rank_is_passed_over() -> None:
    matrix, vector = stored(base(8, 8), "F32"), stored(base(1, 8)[0], "F32")
    whole = TensorInfo("I32", (8, 8)), np.zeros(64, "<i4").tobytes()
    odd = base(8, 8)
    odd[3, 3] = float("nan")
    assert difference_rank(vector, vector) is None
    assert difference_rank(matrix, stored(base(8, 9), "F32")) is None
    assert difference_rank(whole, whole) is None
    assert difference_rank(matrix, stored(odd, "F32")) is None
