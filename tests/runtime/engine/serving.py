"""What tests of the engine share."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from blockzoo_runtime import LLM

Expected = dict[tuple[str, int], tuple[Any, list[int]]]
ADAPTED = (
    "base",
    "code-lora-qv",
    "sentiment-lora-all",
    "trec-dora",
    "sentiment-ia3",
    "trec-prefix",
)


def until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def preempting(llm: LLM, seed: int) -> None:
    """Have the LLM's scheduler throw out requests at random steps."""
    scheduler, chance = llm._engine._scheduler, random.Random(seed)
    plan = scheduler.plan

    def planned() -> Any:
        for job in list(llm._engine._room.sequences):
            if job.started and chance.random() < 0.2:
                scheduler.restart(job)
        return plan()

    scheduler.plan = planned  # type: ignore[method-assign]
