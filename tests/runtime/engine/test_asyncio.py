"""The asyncio front: many clients, and those that go away."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from blockzoo_runtime import LLM, BusyError, Failed

from blockzoo.errors import NotFoundError
from blockzoo.zoo import Zoo
from tests.runtime.answers import COUNT

Expected = dict[tuple[str, int], tuple[Any, list[int]]]
NAMES = ("base", "math-full", "code-lora-qv", "trec-prefix")


def test_many_clients_stream_at_once(real_zoo: Zoo, expected: Expected) -> None:
    async def client(llm: LLM, name: str, n: int) -> list[int]:
        pieces = llm.astream((name, expected[name, n][0]), max_new_tokens=COUNT)
        return [token async for piece in pieces for token in piece.token_ids]

    async def all_of_them() -> None:
        with LLM(real_zoo, device="cpu", dtype="float32") as llm:
            keys = [(name, n) for name in NAMES for n in range(4)]
            found = await asyncio.gather(*(client(llm, *key) for key in keys))
            assert found == [expected[key][1] for key in keys]
            out = await llm.agenerate(
                [(name, expected[name, n][0]) for name, n in keys], max_new_tokens=COUNT
            )
            assert [list(o.token_ids) for o in out] == found

    asyncio.run(all_of_them())


def test_a_client_that_goes_away_cancels_its_request(real_zoo: Zoo) -> None:
    async def go(llm: LLM) -> None:
        pieces = llm.astream(("base", "The"), max_new_tokens=900, ignore_eos=True)
        async for _ in pieces:
            break
        await pieces.aclose()
        task = asyncio.create_task(
            llm.agenerate([("base", "The")] * 3, max_new_tokens=900, ignore_eos=True)
        )
        while llm.stats().running < 3:
            await asyncio.sleep(0.01)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        while llm.stats().running + llm.stats().waiting:
            await asyncio.sleep(0.01)

    with LLM(real_zoo, device="cpu", dtype="float32") as llm:
        asyncio.run(asyncio.wait_for(go(llm), 60))
        assert llm.stats().cancelled == 4
        assert llm.stats().kv.pages_in_use == 0


def test_a_loop_that_was_closed_leaves_no_request_behind(real_zoo: Zoo) -> None:
    with LLM(real_zoo, device="cpu", dtype="float32") as llm:

        async def abandon() -> None:
            task = asyncio.ensure_future(
                anext(llm.astream(("base", "The"), max_new_tokens=900, ignore_eos=True))
            )
            await task

        asyncio.run(abandon())
        asyncio.run(asyncio.wait_for(_idle(llm), 60))


async def _idle(llm: LLM) -> None:
    while llm.stats().running + llm.stats().waiting:
        await asyncio.sleep(0.01)


def test_errors_and_refusals_come_to_who_asked(real_zoo: Zoo) -> None:
    async def go(llm: LLM) -> None:
        with pytest.raises(NotFoundError):
            await llm.agenerate([("nobody", "The")])
        bad, good = await llm.agenerate(
            [("nobody", "The"), ("base", "The")], max_new_tokens=2, on_error="return"
        )
        assert isinstance(bad, Failed) and len(good.token_ids) == 2
        with pytest.raises(BusyError):
            await llm.agenerate([("base", "The")] * 5, max_new_tokens=2)
        assert len(await llm.agenerate([("base", "The")] * 2, max_new_tokens=2)) == 2

    with LLM(real_zoo, device="cpu", dtype="float32", max_waiting=2, max_batch=1) as llm:
        asyncio.run(asyncio.wait_for(go(llm), 60))
