"""Short of memory: requests are preempted, models take turns, tokens stay the same."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blockzoo_runtime import LLM, Completion, Failed, Request, Sampling
from blockzoo_runtime.errors import NoRoomError

from blockzoo.errors import UsageError
from blockzoo.zoo import Zoo
from tests.execution.tiny import make
from tests.runtime.answers import COUNT, PROMPTS, answer, reference
from tests.runtime.engine.serving import ADAPTED, Expected, preempting


def test_preempted_requests_get_the_same_tokens(
    open_llm: Callable[..., LLM], expected: Expected
) -> None:
    requests = [(name, number) for name in ADAPTED for number in range(4)]
    llm = open_llm(memory="36 MB", max_batch=24)
    asked = [(name, expected[name, n][0]) for name, n in requests for _ in range(2)]
    out = llm.generate(asked, max_new_tokens=COUNT)
    tokens = [expected[key][1] for key in requests for _ in range(2)]
    assert [list(o.token_ids) for o in out] == tokens
    stats = llm.stats()
    assert stats.preempted > 0
    assert stats.resident_bytes + stats.kv.bytes_cached <= 36e6


def test_preempted_samples_are_what_they_were_to_be(open_llm: Callable[..., LLM]) -> None:
    requests = [
        Request("base", prompt, Sampling(max_new_tokens=40, temperature=1.0, seed=seed))
        for prompt in PROMPTS
        for seed in range(6)
    ]
    tight, free = open_llm(memory="31 MB", max_batch=24), open_llm()
    assert tight.generate(requests) == free.generate(requests)
    assert tight.stats().preempted > 0


@pytest.mark.parametrize(
    ("name", "length"),
    [
        ("llama", 30),
        ("gemma3", 30),
        ("gpt2", 30),
        ("phi3-longrope", 54),
        ("llama-dynamic-rope", 10),
    ],
)
def test_being_preempted_at_any_step_changes_no_token(
    name: str, length: int, tmp_path: Path, open_llm: Callable[..., LLM]
) -> None:
    """Also where rotary embeddings depend on how long a text was when it was computed."""
    folder = make(name, tmp_path)
    zoo = Zoo(tmp_path / "zoo")
    zoo.ingest(folder)
    prompts = [[(7 * i + k) % 90 + 3 for i in range(length + k)] for k in range(4)]
    llm = open_llm(zoo, max_step_tokens=16)
    preempting(llm, seed=1)
    out = llm.generate([(name, prompt) for prompt in prompts], max_new_tokens=18)
    model = reference(folder)
    for prompt, completion in zip(prompts, out, strict=True):
        assert list(completion.token_ids) == answer(model, prompt, 18)


def test_what_is_streamed_is_whole_in_spite_of_preemption(
    open_llm: Callable[..., LLM], expected: Expected
) -> None:
    llm = open_llm(max_step_tokens=8)
    preempting(llm, seed=2)
    keys = [(name, n) for name in ADAPTED for n in range(2)]
    streams = [llm.stream((name, expected[name, n][0]), max_new_tokens=COUNT) for name, n in keys]
    for key, stream in zip(keys, streams, strict=True):
        assert [t for piece in stream for t in piece.token_ids] == expected[key][1]


def test_models_that_do_not_fit_together_take_turns_and_none_starves(
    open_llm: Callable[..., LLM], expected: Expected
) -> None:
    names = ("math-full", "sql-full", "sql-then-trec-full", "code-lora-qv")
    keys = [(name, number) for number in range(4) for name in names]
    llm = open_llm(memory="64 MB")
    out = llm.generate([(name, expected[name, n][0]) for name, n in keys], max_new_tokens=COUNT)
    assert [list(o.token_ids) for o in out] == [expected[key][1] for key in keys]
    assert llm.nbytes <= 64e6


def test_a_text_whose_kv_outgrows_the_budget_fails_alone_and_by_name(
    open_llm: Callable[..., LLM],
) -> None:
    llm = open_llm(memory="30 MB")
    long, short = llm.generate(
        [("base", [5] * 900), ("base", "def")], max_new_tokens=5, on_error="return"
    )
    assert isinstance(long, Failed) and isinstance(long.error, UsageError)
    assert long.error.message.startswith("base: its weights and the keys and values of 900 tokens")
    assert isinstance(short, Completion)


def test_a_pinned_model_stays(open_llm: Callable[..., LLM]) -> None:
    llm = open_llm(memory="64 MB")
    llm.load("math-full", pin=True)
    for name in ("sql-full", "sql-then-trec-full", "base"):
        llm.generate([(name, "The")], max_new_tokens=2)
        by_model = llm.stats().resident_by_model
        assert by_model["math-full"] == by_model[name]
    llm.unpin("math-full")


def test_who_finds_no_room_beside_pinned_models_is_told(
    open_llm: Callable[..., LLM], expected: Expected
) -> None:
    llm = open_llm(memory="45 MB")
    llm.load("math-full", pin=True)
    [failed] = llm.generate([("sql-full", "The")], max_new_tokens=2, on_error="return")
    assert isinstance(failed, Failed) and "do not fit the memory budget" in failed.error.message
    llm.unpin("math-full")
    prompt, tokens = expected["sql-full", 0]
    [done] = llm.generate([("sql-full", prompt)], max_new_tokens=COUNT)
    assert list(done.token_ids) == tokens


def test_what_was_pinned_and_then_replaced_takes_no_room(
    shared: Path, tmp_path: Path, open_llm: Callable[..., LLM]
) -> None:
    zoo = Zoo(tmp_path / "zoo")
    zoo.ingest(shared / "family" / "math-full", name="pinned")
    zoo.ingest(shared / "family" / "sql-full")
    llm = open_llm(zoo, memory="45 MB")
    llm.load("pinned", pin=True)
    zoo.ingest(shared / "family" / "base", name="pinned")
    llm.generate([("pinned", "The")], max_new_tokens=2)
    assert llm.generate([("sql-full", "The")], max_new_tokens=2)


def test_what_is_loaded_meanwhile_makes_nobody_fail(
    open_llm: Callable[..., LLM], expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it can be let go of before it is here; then its room is had again."""
    both = open_llm()
    both.load("sql-full")
    both.load("math-full")
    llm = open_llm(memory=both.nbytes + 1000)
    prompt, tokens = expected["sql-full", 0]
    llm.load("sql-full")
    reading, wait = threading.Event(), threading.Event()
    bring = llm._resident._bring

    def slowly(*given: Any) -> None:
        reading.set()
        assert wait.wait(10)
        bring(*given)

    monkeypatch.setattr(llm._resident, "_bring", slowly)
    loading = threading.Thread(target=llm.load, args=("math-full",))
    loading.start()
    assert reading.wait(10)
    threading.Timer(0.3, wait.set).start()
    [done] = llm.generate([("sql-full", prompt)], max_new_tokens=COUNT)
    loading.join()
    assert list(done.token_ids) == tokens


def test_weights_whose_room_has_come_free_meanwhile_are_loaded_again(
    open_llm: Callable[..., LLM], expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = open_llm(memory="40 MB")
    load, found = llm._resident.load, iter([NoRoomError("others were in the way")])

    def crowded_once(*given: Any) -> None:
        if error := next(found, None):
            raise error
        load(*given)

    monkeypatch.setattr(llm._resident, "load", crowded_once)
    prompt, tokens = expected["base", 0]
    [done] = llm.generate([("base", prompt)], max_new_tokens=COUNT)
    assert list(done.token_ids) == tokens
