"""A workload played against an engine: every request's outcome and its times."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from blockzoo_runtime import LLM, Sampling
from blockzoo_runtime.replay import Outcome, Replayed, quantile, replay
from blockzoo_runtime.workload import Arrival, Workload

from blockzoo.zoo import Zoo
from tests.zoos import checkpoint


@pytest.fixture
def llm(tmp_path: Path) -> LLM:
    zoo = Zoo(tmp_path / "zoo")
    for name, changed in (("base", ()), ("tuned", (2, 3))):
        folder = checkpoint(tmp_path / name, changed=changed)
        (folder / "tokenizer.json").unlink()
        zoo.ingest(folder)
    return LLM(zoo)


def test_requests_are_sent_at_their_times_and_all_answered(llm: LLM) -> None:
    arrivals = tuple(
        Arrival(0.1 * i, name, tuple(range(1, 5 + i)), 3 + i)
        for i, name in enumerate(("base", "tuned", "base", "tuned"))
    )
    told: list[Outcome] = []
    done = replay(llm, Workload("w", arrivals), Sampling(ignore_eos=True), tell=told.append)
    assert [(o.model, o.prompt_tokens, o.new_tokens) for o in done.outcomes] == [
        ("base", 4, 3), ("tuned", 5, 4), ("base", 6, 5), ("tuned", 7, 6),
    ]  # fmt: skip
    for outcome in done.outcomes:
        assert outcome.first is not None and outcome.end is not None
        assert outcome.at < outcome.first <= outcome.end <= done.seconds
    assert sorted(told, key=lambda o: o.at) == list(done.outcomes)
    table = done.table()
    assert table["model"] == ["base", "tuned", "all"] and table["new_tokens"] == [8, 10, 18]
    data = done.to_json()
    assert data["requests"] == 4 and data["failed"] == 0 and len(data["outcomes"]) == 4
    assert data["tokens_per_second"] == pytest.approx(18 / done.seconds)


def test_a_request_that_fails_leaves_the_others_alone(llm: LLM) -> None:
    arrivals = (Arrival(0, "absent", (1, 2), 3), Arrival(0, "base", (1, 2), 3),
                Arrival(0, "base", (1, 2), 100_000))  # fmt: skip
    done = replay(llm, Workload("w", arrivals))
    wrong, right, long = done.outcomes
    assert wrong.error is not None and "absent" in wrong.error and wrong.first is None
    assert long.error is not None and "context" in long.error
    assert right.error is None and right.new_tokens == 3
    assert done.table()["failed"] == [1, 1, 2]


def test_so_many_are_under_way_at_most(llm: LLM) -> None:
    arrivals = tuple(Arrival(0, "base", (1, 2, 3), 4) for _ in range(4))
    done = replay(llm, Workload("w", arrivals), at_once=1)
    spans = sorted((o.first, o.end) for o in done.outcomes)
    for (_, end), (first, _) in itertools.pairwise(spans):
        assert end is not None and first is not None and end <= first


def test_times_count_from_when_a_request_was_due() -> None:
    outcome = Outcome("m", at=1.0, first=1.5, end=3.5, prompt_tokens=4, new_tokens=5)
    assert outcome.to_first == 0.5 and outcome.per_token == 0.5
    single = Outcome("m", at=1.0, first=1.5, end=1.5, prompt_tokens=4, new_tokens=1)
    assert single.per_token is None
    row = Replayed("w", ("words",), (outcome, single), 4.0).table()
    assert row["first_p95"] == [500, 500] and "made up, not in w: words" in row.note


def test_quantiles_are_values_that_occurred() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert quantile(values, 0.5) == 3 and quantile(values, 0.95) == 5
    assert quantile(values, 0.2) == 1 and quantile(values, 0.21) == 2
    assert quantile([], 0.5) is None
