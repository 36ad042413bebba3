"""Every family: the tokens and logits that transformers gives, from one module for each spec."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockzoo.execution.executor import Executors

from .running import Loaded, assert_parity, prompts
from .tiny import TINY, VOCABULARY, load, make

SHARED_MODELS = [
    "family/base",
    "family/math-full",
    "family/sql-full",
    "family/sql-then-trec-full",
    "family/shakespeare-top3",
    "family/shakespeare-norms",
    "family/novel-lora-merged",
    "family/chat-added-tokens",
    "family/small",
    "checkpoints/stories260k",
    "checkpoints/babyllama",
    "checkpoints/capp-gpt",
]


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_model_of_each_family_answers_as_transformers_does(
    name: str, tmp_path: Path
) -> None:
    folder = make(name, tmp_path)
    executors = Executors()
    chain = Loaded(folder).chain(executors)
    assert_parity(chain, load(folder), prompts(VOCABULARY))
    assert len(executors) == TINY[name][2]


@pytest.mark.parametrize("name", SHARED_MODELS)
def test_a_trained_model_answers_as_transformers_does(name: str, shared: Path) -> None:
    reference = load(shared / name)
    assert_parity(Loaded(shared / name).chain(), reference, prompts(reference.config.vocab_size))


def test_all_tenants_of_a_family_run_on_the_same_modules(shared: Path) -> None:
    executors = Executors()
    ids = prompts(4096)
    for name in SHARED_MODELS[:8]:
        Loaded(shared / name).chain(executors)(ids)
    assert len(executors) == 4
