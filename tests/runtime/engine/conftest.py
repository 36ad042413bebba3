"""LLMs that must have given everything back in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from blockzoo_runtime import LLM

from blockzoo.zoo import Zoo
from tests.runtime.engine.serving import until


@pytest.fixture
def open_llm(real_zoo: Zoo) -> Iterator[Callable[..., LLM]]:
    """Makes LLMs that are closed, and must have given everything back, in the end."""
    made: list[LLM] = []

    def make(zoo: Zoo = real_zoo, **settings: Any) -> LLM:
        made.append(LLM(zoo, device="cpu", **{"dtype": "float32", **settings}))
        return made[-1]

    yield make
    for llm in made:
        until(lambda llm=llm: llm.stats().running + llm.stats().waiting == 0)
        kv = llm.stats().kv
        assert kv.pages_in_use == 0 and kv.bytes_in_use == 0
        llm.close()
