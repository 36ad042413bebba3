"""Scores are transformers' log probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from blockzoo_runtime import LLM, Failed

from blockzoo.errors import UsageError
from blockzoo.zoo import Zoo
from tests.runtime.answers import PROMPTS, reference
from tests.runtime.engine.serving import preempting

NAMES = ("base", "math-full", "chat-added-tokens", "sentiment-lora-all", "trec-prefix")


@pytest.fixture(scope="module")
def llm(real_zoo: Zoo) -> LLM:
    return LLM(real_zoo, device="cpu", dtype="float32")


def expected(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].float()
    return logits[:-1].log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]


def test_every_tenants_scores_are_those_of_transformers(
    llm: LLM, shared: Path, tokenizer: Any
) -> None:
    text = PROMPTS[2] * 12  # longer than what is scored at once
    out = llm.score([(name, t) for name in NAMES for t in (text, PROMPTS[0])])
    assert len(tokenizer(text)["input_ids"]) > 100
    for name, (long, short) in zip(NAMES, zip(out[::2], out[1::2], strict=True), strict=True):
        model = reference(shared / "family" / name)
        for scored, given in ((long, text), (short, PROMPTS[0])):
            ids = tokenizer(given)["input_ids"]
            assert list(scored.token_ids) == ids[1:]
            found = torch.tensor(scored.logprobs)
            assert torch.allclose(found, expected(model, ids), atol=2e-4)
            assert scored.total == pytest.approx(sum(scored.logprobs))


def test_a_continuation_is_scored_after_its_prompt(llm: LLM, tokenizer: Any) -> None:
    [whole] = llm.score([("base", PROMPTS[2])])
    head, tail = PROMPTS[2][:10], PROMPTS[2][10:]
    [part] = llm.score([("base", head, tail)])
    assert part.token_ids == whole.token_ids[-len(part.token_ids) :]
    assert part.logprobs == pytest.approx(whole.logprobs[-len(part.logprobs) :], abs=1e-4)
    ids = tokenizer(PROMPTS[2])["input_ids"]
    [by_ids] = llm.score([("base", ids[:3], ids[3:])])
    assert by_ids.logprobs == pytest.approx(whole.logprobs[2:], abs=1e-4)


def test_what_a_model_writes_greedily_is_greedy(llm: LLM) -> None:
    ids = [5, 9, 12]
    [out] = llm.generate([("base", ids)], max_new_tokens=30, logprobs=True, ignore_eos=True)
    scored, other = llm.score([("base", ids, out.token_ids), ("base", ids, [7, 7])])
    assert scored.greedy and not other.greedy
    assert scored.logprobs == pytest.approx(out.logprobs, abs=1e-4)


def test_scores_do_not_change_when_memory_is_short(llm: LLM, real_zoo: Zoo) -> None:
    texts = [("base", [(7 * i + k) % 900 + 3 for i in range(300)]) for k in range(4)]
    with LLM(real_zoo, device="cpu", dtype="float32", memory="33 MB") as tight:
        preempting(tight, seed=3)
        found = tight.score(texts)
    for one, other in zip(found, llm.score(texts), strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_what_cannot_be_scored_is_refused_by_name(llm: LLM) -> None:
    with pytest.raises(UsageError, match="base: there is nothing to score"):
        llm.score([("base", [5])])
    with pytest.raises(UsageError, match="context of 1024"):
        llm.score([("base", [5] * 1025)])
    with pytest.raises(UsageError, match="both text or both token ids"):
        llm.score([("base", "The", [5])])
    with pytest.raises(UsageError, match="what is scored is"):
        llm.score(["base"])  # type: ignore[list-item]
    bad, good = llm.score([("base", [5]), ("base", [5, 6])], on_error="return")
    assert isinstance(bad, Failed) and len(good.logprobs) == 1
    assert len(llm.score([("base", [5] * 1024)])[0].logprobs) == 1023
