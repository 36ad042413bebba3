"""Codes: rounded for the outputs, not for the weights; low rank found where it was planted."""

from __future__ import annotations

import pytest
import torch

from blockzoo.compact import rounding
from blockzoo.compact.rounding import output_error, round_rows
from blockzoo.compact.spectrum import find_low_rank, rounding_energy
from blockzoo.execution.packing import middle, pack, run_length, unpack


def _inputs(columns: int, rank: int, seed: int = 0) -> torch.Tensor:
    """The second moments of inputs that mostly lie in a few directions."""
    torch.manual_seed(seed)
    x = torch.randn(4096, rank) @ torch.randn(rank, columns) + 0.1 * torch.randn(4096, columns)
    return x.T @ x / len(x)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("columns", [16, 33, 176, 688])
def test_codes_come_back(bits: int, columns: int) -> None:
    codes = torch.randint(0, 1 << bits, (7, columns))
    packed = pack(codes, bits)
    assert packed.shape == (7, run_length(columns, bits))
    assert torch.equal(unpack(packed, bits, columns, torch.float32), codes - middle(bits))
    # no more than the last group of columns is wasted
    assert run_length(columns, bits) * 8 // bits < columns + 16 * 8 // bits


def test_rows_are_rounded_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    gram, matrix = _inputs(96, rank=12), torch.randn(64, 96)
    whole = round_rows(matrix, gram, 2)
    monkeypatch.setattr(rounding, "_AT_ONCE", 20 * 96)
    some = round_rows(matrix, gram, 2)
    assert whole.codes.shape == some.codes.shape and whole.scale.shape == some.scale.shape
    errors = [output_error(matrix - each.values(2), gram) for each in (whole, some)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_errors_are_fed_back_into_what_is_still_to_be_rounded(bits: int) -> None:
    gram = _inputs(96, rank=12)
    matrix = torch.randn(64, 96)
    rounded = round_rows(matrix, gram, bits)
    plain = round_rows(matrix, torch.eye(96), bits)
    ours = output_error(matrix - rounded.values(bits), gram)
    theirs = output_error(matrix - plain.values(bits), gram)
    assert ours < 0.5 * theirs
    assert int(rounded.codes.max()) < 1 << bits


def test_rows_of_nought_and_inputs_never_seen_are_no_trouble() -> None:
    gram = _inputs(32, rank=4)
    gram[:, 5] = gram[5] = 0
    matrix = torch.randn(8, 32)
    matrix[3] = 0
    rounded = round_rows(matrix, gram, 2)
    values = rounded.values(2)
    assert torch.isfinite(values).all()
    assert float(values[3].abs().max()) < 1e-6
    assert torch.isfinite(round_rows(matrix, torch.zeros(32, 32), 1).values(1)).all()


def test_a_merged_lora_is_found_but_for_rounding() -> None:
    torch.manual_seed(0)
    base = 0.05 * torch.randn(128, 256)
    update = 0.003 * torch.randn(128, 8) @ torch.randn(8, 256)
    merged = (base.bfloat16().float() + update).bfloat16()
    off = merged.float() - base.bfloat16().float()
    low = find_low_rank(off, merged.float(), torch.bfloat16)
    assert low is not None and len(low.a) == 8
    left = float((off - low.values()).square().sum())
    assert left < 2 * rounding_energy(merged, torch.bfloat16)


def test_a_full_update_is_of_no_low_rank() -> None:
    torch.manual_seed(0)
    base = 0.05 * torch.randn(128, 256)
    off = 0.002 * torch.randn(128, 256)
    assert find_low_rank(off, base + off, torch.bfloat16) is None


@pytest.mark.parametrize("bits", [1, 2])
def test_what_is_kept_of_a_difference_is_not_shorter(bits: int) -> None:
    gram = _inputs(96, rank=12)
    matrix = torch.randn(64, 96)
    values = round_rows(matrix, gram, bits).values(bits)
    along = float(((values @ gram) * matrix).sum() / ((matrix @ gram) * matrix).sum())
    plain = float((values * matrix).sum() / matrix.square().sum())
    assert (along * plain) ** 0.5 == pytest.approx(1, abs=0.05)
