"""Every family, and adapters that are delicate in a batch, from a folder to tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from blockzoo_runtime import LLM
from peft import PrefixTuningConfig, PromptTuningConfig

from blockzoo.zoo import Zoo
from tests.execution.adapting import make_adapter
from tests.execution.tiny import TINY, make
from tests.runtime.answers import answer, reference

PROMPTS = ([5, 6, 7], [11, 3, 9, 20, 33, 14, 8, 90, 41], [60], [30, 31, 32, 33, 34])
COUNT = 20


@pytest.mark.parametrize("name", TINY)
def test_a_padded_batch_gives_each_row_the_tokens_it_gets_alone(name: str, tmp_path: Path) -> None:
    folder = make(name, tmp_path)
    zoo = Zoo(tmp_path / "zoo")
    zoo.ingest(folder)
    model = reference(folder)
    out = LLM(zoo, device="cpu").generate([(name, p) for p in PROMPTS], max_new_tokens=COUNT)
    for prompt, completion in zip(PROMPTS, out, strict=True):
        assert list(completion.token_ids) == answer(model, list(prompt), COUNT)


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_virtual_tokens_do_not_hear_padding(kind: type, tmp_path: Path) -> None:
    base = make("llama", tmp_path)
    config = kind(task_type="CAUSAL_LM", num_virtual_tokens=5)
    adapter = make_adapter(base, config, tmp_path / "tuned")
    zoo = Zoo(tmp_path / "zoo")
    zoo.ingest(base)
    zoo.ingest(adapter, base="llama")
    model = reference(adapter, base)
    out = LLM(zoo, device="cpu").generate([("tuned", p) for p in PROMPTS], max_new_tokens=COUNT)
    for prompt, completion in zip(PROMPTS, out, strict=True):
        assert list(completion.token_ids) == answer(model, list(prompt), COUNT)


def test_a_text_grows_past_where_longrope_changes(tmp_path: Path) -> None:
    folder = make("phi3-longrope", tmp_path)
    zoo = Zoo(tmp_path / "zoo")
    zoo.ingest(folder)
    model = reference(folder)
    prompts = [[(7 * i + k) % 90 + 3 for i in range(58 + k)] for k in range(3)]
    requests = [("phi3-longrope", prompt) for prompt in prompts]
    out = LLM(zoo, device="cpu").generate(requests, max_new_tokens=COUNT)
    for prompt, completion in zip(prompts, out, strict=True):
        assert list(completion.token_ids) == answer(model, prompt, COUNT)
