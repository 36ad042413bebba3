"""Temperature, top-k and top-p mean what they mean in transformers."""

from __future__ import annotations

import pytest
import torch
from blockzoo_runtime import Sampling
from blockzoo_runtime.engine.sampling import Sampler, logprob, warp

from blockzoo.errors import UsageError


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 5, 1000])
@pytest.mark.parametrize("top_p", [None, 0.0, 0.1, 0.9, 0.999, 1.0])
def test_scores_equal_those_of_transformers(
    temperature: float, top_k: int | None, top_p: float | None
) -> None:
    from transformers.generation.logits_process import (
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(8, 200, generator=generator) * 3
    logits[0, :50] = 2.0  # ties
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k is not None:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p is not None and top_p < 1:  # as in transformers' generate
        expected = TopPLogitsWarper(top_p)(None, expected)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    for row, scores in zip(logits, expected, strict=True):
        assert torch.equal(warp(row, sampling), scores)


def test_greedy_takes_the_likeliest() -> None:
    logits = torch.tensor([0.1, 2.0, -1.0, 1.9])
    assert Sampler(Sampling()).choose(logits) == 1


def test_samples_follow_the_probabilities() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -5.0])
    sampler = Sampler(Sampling(temperature=1.0, seed=7))
    drawn = torch.tensor([sampler.choose(logits) for _ in range(4000)])
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    assert torch.allclose(shares, logits.softmax(-1), atol=0.03)


def test_equal_seeds_draw_equal_tokens() -> None:
    logits = torch.randn(100, generator=torch.Generator().manual_seed(0))
    draws = []
    for seed in (5, 5, 6):
        sampler = Sampler(Sampling(temperature=1.0, seed=seed))
        draws.append([sampler.choose(logits) for _ in range(20)])
    assert draws[0] == draws[1] != draws[2]


def test_log_probabilities_are_the_models_own() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0])
    assert logprob(logits, 2) == pytest.approx(float(logits.log_softmax(-1)[2]))


@pytest.mark.parametrize(
    "values",
    [
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_p": -0.1},
        {"stop": ["a", ""]},
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Sampling(**values)  # type: ignore[arg-type]
