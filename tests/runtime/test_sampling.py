"""Sampling values mean what they mean in transformers, for rows of a batch as for one alone."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from blockzoo_runtime import Sampling
from blockzoo_runtime.engine.processors import Process
from blockzoo_runtime.engine.sampling import Choice, Sampler, choose, draw, warp

from blockzoo.errors import UsageError

CPU = torch.device("cpu")
SETTINGS = [
    {"temperature": t, "top_k": k, "top_p": p, "min_p": m}
    for t, k, p, m in itertools.product(
        [0.3, 1.0, 2.5], [None, 1, 5, 1000], [None, 0.0, 0.1, 0.9, 0.999, 1.0], [None, 0.0, 0.2]
    )
]


def some_logits(rows: int, seed: int = 3) -> torch.Tensor:
    logits = torch.randn(rows, 200, generator=torch.Generator().manual_seed(seed)) * 3
    logits[0, :50] = 2.0  # ties
    return logits


def draws(sampler: Sampler, logits: torch.Tensor, count: int) -> list[int]:
    """Tokens chosen one after another."""
    found = []
    for _ in range(count):
        found.append(choose(logits, [sampler])[0].token)
        sampler.push(found[-1])
    return found


def of_transformers(logits: torch.Tensor, values: dict[str, float]) -> torch.Tensor:
    """Scores as transformers' ``generate`` makes them, for logits (R, V)."""
    from transformers.generation import logits_process as lp

    scores = lp.TemperatureLogitsWarper(values["temperature"])(None, logits)
    if values["top_k"] is not None:
        scores = lp.TopKLogitsWarper(values["top_k"])(None, scores)
    if values["top_p"] is not None and values["top_p"] < 1:
        scores = lp.TopPLogitsWarper(values["top_p"])(None, scores)
    if values["min_p"] is not None:
        scores = lp.MinPLogitsWarper(values["min_p"])(None, scores)
    return scores


@pytest.mark.parametrize("values", SETTINGS[::7], ids=str)
def test_scores_equal_those_of_transformers(values: dict[str, float]) -> None:
    logits = some_logits(8)
    found = warp(logits, [Sampling(**values)] * 8)  # type: ignore[arg-type]
    assert torch.equal(found, of_transformers(logits, values))


def test_rows_of_a_batch_keep_their_own_settings() -> None:
    chosen = random.Random(0).sample(SETTINGS, 32)
    logits = some_logits(32)
    found = warp(logits, [Sampling(**values) for values in chosen])  # type: ignore[arg-type]
    for row, values, scores in zip(logits, chosen, found, strict=True):
        assert torch.equal(scores, of_transformers(row[None], values)[0]), values


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3])
def test_a_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

    logits, prompt = some_logits(1), [3, 7, 7, 199]
    process = Process({}, CPU).with_penalty(penalty)
    sampler = Sampler(Sampling(), process, prompt)
    for token in (12, 7):
        sampler.push(token)
    ids = torch.tensor([[*prompt, 12, 7]])
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits)
    assert torch.equal(sampler.alter(logits[0]), expected[0])


def test_a_requests_repetition_penalty_stands_for_the_models() -> None:
    logits = some_logits(1)
    model = Process({"repetition_penalty": 1.3, "suppress_tokens": [4]}, CPU)
    none = model.with_penalty(1.0)([3, 7], logits[0])
    assert none[4] == float("-inf")
    none[4] = logits[0, 4]
    assert torch.equal(none, logits[0])


def test_frequency_and_presence_penalties_are_those_of_openai() -> None:
    """``mu[j] -= c[j] * frequency + (c[j] > 0) * presence``; the prompt does not count."""
    logits = torch.arange(6.0)
    sampler = Sampler(Sampling(frequency_penalty=0.5, presence_penalty=0.25), None, [5, 5])
    assert torch.equal(sampler.alter(logits), logits)
    for token in (1, 3, 3):
        sampler.push(token)
    expected = torch.tensor([0.0, 1 - 0.75, 2.0, 3 - 1.25, 4.0, 5.0])
    assert torch.allclose(sampler.alter(logits), expected)


def test_greedy_takes_the_likeliest_in_every_row() -> None:
    logits = some_logits(5, seed=1)
    found = choose(logits, [Sampler(Sampling()) for _ in range(5)])
    assert found == [Choice(int(row.argmax()), True) for row in logits]


def test_rows_of_all_kinds_are_chosen_as_if_alone() -> None:
    settings = [
        Sampling(),
        Sampling(temperature=1.0, seed=5),
        Sampling(logprobs=True),
        Sampling(temperature=0.7, top_k=4, seed=9, logprobs=True),
        Sampling(frequency_penalty=3.0),
        Sampling(temperature=2.0, min_p=0.1, presence_penalty=1.0, seed=2),
    ]

    def samplers() -> list[Sampler]:
        made = [Sampler(sampling) for sampling in settings]
        for sampler in made:
            sampler.push(3)
        return made

    logits = some_logits(6, seed=2)
    logits[:, 3] = 9.0
    together = choose(logits, samplers())
    alone = [choose(logits[i : i + 1], [s])[0] for i, s in enumerate(samplers())]
    assert together == alone
    assert together[0].token == 3 != together[4].token


def test_samples_follow_the_probabilities() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -5.0, float("-inf")]])
    sampler = Sampler(Sampling(temperature=1.0, seed=7))
    drawn = torch.tensor(draws(sampler, logits, 4000))
    shares = torch.bincount(drawn, minlength=5) / len(drawn)
    assert torch.allclose(shares, logits[0].softmax(-1), atol=0.03)
    assert shares[4] == 0


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2**-53])
def test_what_is_ruled_out_is_never_drawn(number: float) -> None:
    out = float("-inf")
    scores = torch.tensor([[out, 0.0, out, 0.0, out], [out, out, 1.0, out, out]])
    first, second = draw(scores, [number, number]).tolist()
    assert first == (1 if number < 0.5 else 3) and second == 2


def test_equal_seeds_draw_equal_tokens() -> None:
    logits = some_logits(1)
    first, again, other = (
        draws(Sampler(Sampling(temperature=1.0, seed=seed)), logits, 20) for seed in (5, 5, 6)
    )
    assert first == again != other


def test_a_choice_that_is_made_again_is_the_same() -> None:
    """As where a step fails because of another row, and is taken row by row."""
    logits = some_logits(1)
    sampler = Sampler(Sampling(temperature=1.0, seed=5))
    assert len({choose(logits, [sampler])[0].token for _ in range(20)}) == 1


def test_log_probabilities_are_the_models_own() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    sampler = Sampler(Sampling(temperature=9.0, seed=1, logprobs=True))
    [choice] = choose(logits, [sampler])
    assert choice.logprob == pytest.approx(float(logits[0].log_softmax(-1)[choice.token]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_told_for_their_row_alone(bad: float) -> None:
    logits = some_logits(3)
    logits[1, 17] = bad
    settings = [Sampling(), Sampling(temperature=1.0, seed=1), Sampling(temperature=1.0, seed=1)]
    found = choose(logits, [Sampler(sampling) for sampling in settings])
    assert [choice.sound for choice in found] == [True, False, True]
    assert found[0].token == int(logits[0].argmax())


@pytest.mark.parametrize(
    "values",
    [
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"frequency_penalty": float("inf")},
        {"presence_penalty": float("nan")},
        {"stop": ["a", ""]},
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Sampling(**values)  # type: ignore[arg-type]
