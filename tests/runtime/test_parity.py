"""Every real tenant, from its folder through the zoo to tokens, against transformers and PEFT."""

from __future__ import annotations

import random
from typing import Any

from blockzoo_runtime import LLM

from blockzoo.zoo import Zoo
from tests.runtime.answers import COUNT, PROMPTS


def test_every_tenant_gives_the_tokens_of_transformers(
    real_zoo: Zoo, expected: dict[tuple[str, int], tuple[Any, list[int]]]
) -> None:
    llm = LLM(real_zoo, device="cpu", dtype="float32")
    keys = list(expected)
    random.Random(0).shuffle(keys)  # tenants and lengths mixed, as requests come
    out = llm.generate([(name, expected[name, n][0]) for name, n in keys], max_new_tokens=COUNT)
    assert len(keys) == 4 * len(real_zoo.names())
    for (name, number), completion in zip(keys, out, strict=True):
        assert completion.model == name
        assert list(completion.token_ids) == expected[name, number][1], (name, number)


def test_rows_do_not_depend_on_what_else_is_in_the_batch(
    real_zoo: Zoo, expected: dict[tuple[str, int], tuple[Any, list[int]]]
) -> None:
    llm = LLM(real_zoo, device="cpu", dtype="float32", max_batch=3)
    for name in ("math-full", "trec-prefix"):
        alone = [llm.generate([(name, p)], max_new_tokens=COUNT)[0] for p in PROMPTS]
        for number, completion in enumerate(alone):
            assert list(completion.token_ids) == expected[name, number][1]
