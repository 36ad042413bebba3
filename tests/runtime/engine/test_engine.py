"""Requests of many tenants in one engine: right whatever else runs, and gone when nobody waits."""

from __future__ import annotations

import gc
import json
import random
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from blockzoo_runtime import LLM, BusyError, Sampling
from blockzoo_runtime.engine import engine

from blockzoo.zoo import Zoo
from tests.runtime.answers import COUNT
from tests.runtime.engine.serving import ADAPTED, Expected, until


def test_requests_join_at_any_step_and_get_their_own_tokens(
    open_llm: Callable[..., LLM], expected: Expected
) -> None:
    llm = open_llm(max_batch=12, max_step_tokens=24)
    keys = list(expected)
    chance = random.Random(5)
    chance.shuffle(keys)
    streams = []
    for key in keys:
        name, _ = key
        streams.append((key, llm.stream((name, expected[key][0]), max_new_tokens=COUNT)))
        time.sleep(chance.choice((0, 0, 0.005, 0.02)))
    for key, stream in streams:
        assert [t for piece in stream for t in piece.token_ids] == expected[key][1], key
    stats = llm.stats()
    assert stats.rows_per_step > 4
    assert stats.weight_bytes < stats.separate_bytes


def test_letting_go_of_a_stream_cancels_it(open_llm: Callable[..., LLM]) -> None:
    llm = open_llm()
    stream = llm.stream(("base", "The prince"), max_new_tokens=900, ignore_eos=True)
    other = llm.stream(("code-lora-qv", "def"), max_new_tokens=60, ignore_eos=True)
    next(stream)
    stream.close()
    assert next(other).token_ids
    del other
    until(lambda: llm.stats().cancelled == 2)
    assert llm.stats().generated_tokens < 500


def test_a_cancelled_request_ends_with_what_it_has(open_llm: Callable[..., LLM]) -> None:
    from blockzoo_runtime.engine.prepare import generation

    llm = open_llm()
    one = generation(
        llm._tenants, ("base", "The prince"), Sampling(max_new_tokens=900, ignore_eos=True), True
    )
    llm._engine.submit(one)
    text = "".join(one.handle.next().text for _ in range(5))
    one.handle.cancel()
    completion = one.handle.result(timeout=30)
    assert completion.finish_reason == "cancelled"
    assert 5 <= len(completion.token_ids) < 900
    assert completion.text.startswith(text)
    one.handle.cancel()  # twice is no harm


def test_a_queue_that_is_full_refuses_clearly_and_generate_waits(
    open_llm: Callable[..., LLM],
) -> None:
    llm = open_llm(max_batch=2, max_waiting=3)
    streams = [llm.stream(("base", "The"), max_new_tokens=200, ignore_eos=True) for _ in range(3)]
    until(lambda: llm.stats().running == 2)
    streams += [llm.stream(("base", "The"), max_new_tokens=200) for _ in range(2)]
    with pytest.raises(BusyError, match="base: 3 of its requests"):
        llm.stream(("base", "The"))
    assert llm.stats().refused == 1
    [other] = llm.generate([("code-lora-qv", "def")], max_new_tokens=2)  # another tenant may come
    assert len(other.token_ids) == 2
    for stream in streams:
        stream.close()
    assert len(llm.generate([("base", "The")] * 10, max_new_tokens=2)) == 10


def test_a_model_loads_while_others_go_on(
    open_llm: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = open_llm()
    llm.load("base")
    read, gate = llm._resident._read, threading.Event()

    def slow(digest: str) -> Any:
        gate.wait(30)
        return read(digest)

    monkeypatch.setattr(llm._resident, "_read", slow)
    waiting = llm.stream(("math-full", "1 + 1"), max_new_tokens=2)
    assert len(llm.generate([("base", "The")], max_new_tokens=20)[0].token_ids) == 20
    gate.set()
    assert len(list(waiting)) == 2


def test_threads_share_an_engine(open_llm: Callable[..., LLM], expected: Expected) -> None:
    llm = open_llm()
    keys = [(name, n) for name in (*ADAPTED, "math-full", "capp-gpt") for n in range(4)]
    wrong: list[Any] = []

    def client(seed: int) -> None:
        mine = keys[:]
        random.Random(seed).shuffle(mine)
        for name, n in mine[:6]:
            [out] = llm.generate([(name, expected[name, n][0])], max_new_tokens=COUNT)
            if list(out.token_ids) != expected[name, n][1]:
                wrong.append((name, n))

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert llm.stats().finished == 48


def test_a_common_beginning_is_computed_once(
    open_llm: Callable[..., LLM], expected: Expected
) -> None:
    llm = open_llm()
    system = [7 + i % 90 for i in range(64)]
    [alone] = llm.generate([("base", [*system, 5, 9])], max_new_tokens=8)
    [again] = llm.generate([("base", [*system, 5, 9])], max_new_tokens=8)
    assert alone.reused_tokens == 0 and again.reused_tokens == 64
    assert again == alone


def test_figures_add_up(open_llm: Callable[..., LLM]) -> None:
    llm = open_llm()
    for name in ("base", "code-lora-qv"):
        llm.load(name)
    out = llm.generate([("base", "The prince"), ("code-lora-qv", "def")], max_new_tokens=5)
    stats = llm.stats(reset=True)
    assert stats.finished == stats.requests == 2
    assert stats.generated_tokens == sum(len(o.token_ids) for o in out) == 10
    assert stats.tokens == sum(o.prompt_tokens for o in out) + 2 * 4
    assert stats.separate_bytes > stats.weight_bytes > 0 and stats.last is not None
    assert all(o.first_token_seconds > 0 and o.token_seconds > 0 for o in out)
    assert json.loads(json.dumps(stats.to_json()))["kv"]["pages_in_use"] == 0
    assert "tokens" in repr(stats) and llm.stats().steps == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_leaves_no_autograd_behind(open_llm: Callable[..., LLM], dtype: str) -> None:
    llm = open_llm(dtype=dtype)
    [out] = llm.generate([("base", "The")], max_new_tokens=3, logprobs=True)
    assert torch.is_grad_enabled() and len(out.logprobs) == 3


def test_an_idle_engine_ends_its_thread_and_can_be_collected(
    real_zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_PATIENCE", 0.05)

    def used_and_left() -> weakref.ref[engine.Engine]:
        llm = LLM(real_zoo, device="cpu", dtype="float32")
        for _ in range(2):  # it starts again when it is needed
            assert llm.generate([("base", "The")], max_new_tokens=2)
            until(lambda: llm._engine._thread is None)
        return weakref.ref(llm._engine)

    gone = used_and_left()
    gc.collect()
    until(lambda: gone() is None)
