"""Stitched chains in the engine: in one batch with others, over pages of several shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from blockzoo_runtime import LLM

from blockzoo.equivalence.stitch_fit import Settings
from blockzoo.zoo import Zoo
from tests.runtime.blocks.stepping import Stepper
from tests.stitching import pair_zoo, stitchable

__all__ = ["pair_zoo", "stitchable"]

COUNT = 16
PROMPTS: tuple[list[int], ...] = ([5, 6, 7], [11, 3, 9, 20, 33, 14, 8, 90, 41], [60], [30] * 33)
LONG = [(7 * i) % 100 + 3 for i in range(61)]


@pytest.fixture
def served(pair_zoo: Zoo, stitchable: dict[str, Path]) -> Zoo:
    """Stitched after layers 0, 1 and 2 by one stitch, and with another tail."""
    pair_zoo.stitch(
        "narrow@1", "wide@1", "one", calibration=stitchable["fitted"],
        also=[(0, 0), (2, 2)], settings=Settings(steps=2),
    )  # fmt: skip
    for name, ends in {
        "none": ("narrow@0", "wide@1"),
        "two": ("narrow@2", "wide@2"),
        "tail": ("narrow@1", "tuned@1"),
        "tall": ("narrow@2", "wide@0"),
    }.items():
        pair_zoo.stitch(*ends, name, using="one")
    return pair_zoo


def alone(zoo: Zoo, name: str, prompt: list[int]) -> list[int]:
    """Greedy tokens of a chain by itself, the whole text anew for each."""
    chain, tokens = zoo.chain(zoo.model(name)), list(prompt)
    while len(tokens) < len(prompt) + COUNT:
        tokens.append(int(chain(torch.tensor([tokens]))[0, -1].argmax()))
        if tokens[-1] == 2:
            break
    return tokens[len(prompt) :]


def test_stitched_chains_answer_in_a_batch_as_they_do_alone(served: Zoo) -> None:
    names = ("one", "wide", "none", "two", "narrow", "tail", "tall", "tuned")
    requests: list[tuple[str, Any]] = [(name, p) for p in PROMPTS for name in names]
    llm = LLM(served, device="cpu", dtype="float32")
    out = llm.generate(requests, max_new_tokens=COUNT)
    for (name, prompt), done in zip(requests, out, strict=True):
        assert list(done.token_ids) == alone(served, name, prompt), (name, prompt)
    # the blocks that they have in common are in memory once
    blocks = {d for n in names for d in served.blocks_of(served.model(n))}
    tensors = {ref.digest: ref.elements * 4 for d in blocks
               for ref in served.block(d).tensors.values()}  # fmt: skip
    assert llm.nbytes == sum(tensors.values())


def test_the_chain_s_own_cache_serves_both_widths(served: Zoo) -> None:
    chain = served.chain(served.model("tall"))
    cache, tokens = chain.new_cache(), list(PROMPTS[1])
    logits = chain(torch.tensor([tokens]), cache=cache)
    for _ in range(COUNT):
        tokens.append(int(logits[0, -1].argmax()))
        logits = chain(torch.tensor([tokens[-1:]]), cache=cache)
    expected = alone(served, "tall", PROMPTS[1])
    assert tokens[len(PROMPTS[1]) :][: len(expected)] == expected


@pytest.mark.parametrize(
    ("other", "shared"),
    [("tail", (56, 56, 0)), ("plain", (56, 0, 0))],  # kept states of either width
)
def test_a_prefix_is_shared_up_to_where_stitched_chains_part(
    served: Zoo, stitchable: dict[str, Path], other: str, shared: tuple[int, ...]
) -> None:
    served.stitch(
        "narrow@1", "wide@1", "plain", calibration=stitchable["fitted"],
        also=[(0, 0), (2, 2)], settings=Settings(steps=0),
    )  # fmt: skip
    stepper = Stepper(served)
    stepper.run([stepper.row(name, [5, 6, 7], 1) for name in ("one", other)])
    first = stepper.row("one", LONG, COUNT)
    stepper.run([first])
    rows = [stepper.row(other, [*LONG, 9], COUNT), stepper.row("one", [*LONG, 8], COUNT)]
    assert [row.reused for row in rows] == [shared, (56, 56, 56)]
    rows.append(stepper.row(other, [*LONG[:40], 50, 51], COUNT, chunk=3))
    rows.append(stepper.row("one", [3, 4, 5], COUNT))
    stepper.run(rows)
    for row in (first, *rows):
        expected = alone(served, row.tenant.digest, row.prompt)
        assert row.tokens[: len(expected)] == expected
