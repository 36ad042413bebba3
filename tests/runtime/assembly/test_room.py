"""Certified chains that are larger than the exact one, and have no room where it has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from blockzoo_runtime import LLM

from blockzoo.equivalence.swap import Swap
from blockzoo.store.session import Session
from blockzoo.zoo import Zoo
from tests.execution.compacting import keep_compact
from tests.runtime.assembly.test_assembly import PROMPT, B, Chosen, greedy

Open = Callable[..., LLM]


@pytest.fixture
def larger(zoo: Zoo) -> Zoo:
    """``near`` has one certified chain: the base's blocks with differences on them."""
    keep_compact(zoo, "base", "packed", lambda name: 4 if "layers" in name else "none")
    near, packed = zoo.model("near"), zoo.model("packed")
    swaps = tuple(
        Swap(own.name, own.block, other.block, zoo.resolve("base"), own.name, other.adapters)
        for own, other in zip(near.chain, packed.chain, strict=True)
        if other.adapters
    )
    record = replace(zoo.equivalence(zoo.chains("near")[0].record), swaps=swaps)
    for found in list(zoo.objects.all("equivalences")):
        found.path.unlink()
    with Session(zoo.objects) as session:
        session.equivalence(record.digest, record.encoded)
        assert session.commit()
    return zoo


@pytest.mark.parametrize("share", [0.97, 1.01])  # of what its weights need; KV wants some, too
def test_a_chain_that_has_no_room_leaves_the_request_to_the_exact_one(
    larger: Zoo, open_llm: Open, share: float
) -> None:
    settings = {"dtype": "float32", "assembly": B, "policy": Chosen(1)}
    llm = open_llm(**settings)
    [answer] = llm.generate([("near", PROMPT)], max_new_tokens=8)
    assert answer.assembly == larger.chains("near")[0].name
    exact, other = (row["bytes"] for row in llm.memory())
    assert other > 1.1 * exact
    llm = open_llm(memory=int(share * other), **settings)
    [answer] = llm.generate([("near", PROMPT)], max_new_tokens=8)
    assert answer.assembly == "exact"
    assert list(answer.token_ids) == greedy(larger, larger.model("near"), PROMPT, 8)
