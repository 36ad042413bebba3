"""Certified chains serve where that is cheaper, with their own tokens, and say so."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from blockzoo_runtime import LLM, Request
from blockzoo_runtime.assembly.leanest import leanest
from blockzoo_runtime.assembly.policy import Candidate
from blockzoo_runtime.engine.request import Piece

from blockzoo.errors import UnservableError, UsageError
from blockzoo.records import Model
from blockzoo.zoo import Zoo
from tests.planted import perturb, variant

Open = Callable[..., LLM]
PROMPT = [3, 14, 15, 92, 65, 35]
B = "at_most:B"


class Chosen:
    """A policy that a test tells what to say."""

    def __init__(self, place: int) -> None:
        self.place = place

    def __call__(self, candidates: Sequence[Candidate]) -> int:
        return min(self.place, len(candidates) - 1)


def greedy(zoo: Zoo, model: Model, ids: list[int], count: int) -> list[int]:
    """Tokens of the chain by itself, the whole text computed anew for each."""
    chain, ids = zoo.chain(model), list(ids)
    first = len(ids)
    for _ in range(count):
        ids.append(int(chain.forward(torch.tensor([ids]))[0, -1].argmax()))
    return ids[first:]


def name_of(zoo: Zoo, model: str) -> str:
    [chain] = zoo.chains(model)
    return chain.name


def test_a_certified_chain_gives_the_tokens_of_the_swapped_model(zoo: Zoo, open_llm: Open) -> None:
    llm = open_llm(assembly=B, policy=Chosen(1))
    names = ["near", "base", "close"]
    answers = llm.generate([(name, PROMPT) for name in names], max_new_tokens=12)
    for name, answer in zip(names, answers, strict=True):
        model = zoo.model(name) if name == "base" else zoo.chains(name)[0].model
        assert list(answer.token_ids) == greedy(zoo, model, PROMPT, 12)
        assert answer.chain == tuple(hop.block for hop in model.chain)
        assert answer.digest == zoo.resolve(name) and answer.model == name
    expected = [name_of(zoo, "near"), "exact", name_of(zoo, "close")]
    assert [answer.assembly for answer in answers] == expected
    [scored] = llm.score([("near", PROMPT)])
    assert scored.assembly == expected[0] and scored.digest == zoo.resolve("near")


def test_exact_is_the_default_and_untouched(zoo: Zoo, open_llm: Open) -> None:
    llm = open_llm(policy=Chosen(1))
    [answer] = llm.generate([("near", PROMPT)], max_new_tokens=12)
    assert answer.assembly == "exact"
    assert list(answer.token_ids) == greedy(zoo, zoo.model("near"), PROMPT, 12)
    # by call and by request, beside each other and never by each other's keys and values
    mixed: list[Any] = [Request("near", PROMPT, assembly="exact"), ("near", PROMPT)]
    exact, other = llm.generate(mixed, max_new_tokens=12, assembly=B)
    assert exact == answer
    assert other.assembly == name_of(zoo, "near")
    assert list(other.token_ids) == greedy(zoo, zoo.chains("near")[0].model, PROMPT, 12)


@pytest.mark.parametrize("wrong", ["at_most:D", "at_most", "B", "at_most:b", "", "lossy"])
def test_other_assemblies_are_refused(open_llm: Open, wrong: str) -> None:
    llm = open_llm()
    with pytest.raises(UsageError, match="assembly is") as caught:
        llm.generate([Request("near", PROMPT, assembly=wrong or "none")])
    assert "at_most:C" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="assembly is"):
        open_llm(assembly=wrong)


def test_a_certificate_without_the_tenants_own_text_is_not_used_silently(
    zoo: Zoo, open_llm: Open
) -> None:
    with pytest.warns(UserWarning, match="plain is served exactly: its 1 certified"):
        [answer] = open_llm(assembly=B, policy=Chosen(1)).generate([("plain", PROMPT)])
    assert answer.assembly == "exact"
    [chain] = zoo.chains("plain", any_text=True)
    assert chain.own == ""
    told = open_llm(assembly=B, policy=Chosen(1), any_text=True)
    [answer] = told.generate([("plain", PROMPT)])
    assert answer.assembly == chain.name


def test_what_was_rejected_or_is_worse_than_asked_for_never_serves(
    zoo: Zoo, open_llm: Open
) -> None:
    assert zoo.equivalences("far").rows[0]["grade"] == "rejected"
    llm = open_llm(policy=Chosen(1))
    [answer] = llm.generate([("far", PROMPT)], assembly="at_most:C")
    assert answer.assembly == "exact"


def test_without_a_limit_what_is_here_serves(zoo: Zoo, open_llm: Open) -> None:
    llm = open_llm(assembly=B)
    assert llm.generate([("near", PROMPT)])[0].assembly == "exact"  # all would be loaded anyway
    llm.generate([("base", PROMPT)])
    assert llm.generate([("near", PROMPT)])[0].assembly == "exact"  # it is here
    assert llm.generate([("close", PROMPT)])[0].assembly == name_of(zoo, "close")
    llm.load("close")
    assert llm.generate([("close", PROMPT)])[0].assembly == "exact"


def test_models_that_do_not_fit_together_meet_on_what_they_share(zoo: Zoo, open_llm: Open) -> None:
    """Asked one after another, exact models throw each other out; certified chains do not."""
    loads = {}
    for assembly in ("exact", B):
        llm = open_llm(memory=260_000, assembly=assembly)  # one has 154 kB
        for _ in range(4):
            answers = [
                llm.generate([(name, PROMPT)], max_new_tokens=8)[0] for name in ("near", "close")
            ]
        loads[assembly] = llm._resident.loads.total()
        if assembly == B:
            assert [a.assembly for a in answers] == [name_of(zoo, n) for n in ("near", "close")]
    assert loads["exact"] == 8
    assert loads[B] <= 4


def test_a_record_that_is_added_while_serving_counts_for_the_next_request(
    zoo: Zoo, open_llm: Open, made_zoo: Path
) -> None:
    llm = open_llm(policy=leanest, assembly="at_most:C")
    llm.generate([("base", PROMPT)])
    assert "head" not in {swap.hop for swap in zoo.chains("near")[0].swaps}
    before = llm.generate([("near", PROMPT)])[0]
    record = zoo.certify("base", "layers.*=near", [made_zoo / "a.txt"], own=made_zoo / "b.txt")
    after = llm.generate([("base", PROMPT)])[0]
    assert before.assembly == name_of(zoo, "near")
    assert after.assembly in ("exact", f"{record.grade}:{record.digest[:12]}")
    [menu] = {llm._tenants.menu("base", "at_most:C")}
    assert [option.name for option in menu.options[1:]] == [name_of(zoo, "base")]


def test_a_chain_whose_blocks_are_gone_does_not_serve(zoo: Zoo, open_llm: Open) -> None:
    llm = open_llm(assembly=B, policy=Chosen(1))
    assert llm.generate([("near", PROMPT)])[0].assembly != "exact"
    zoo.remove("base")
    for gone in ("close", "plain", "far"):
        zoo.remove(gone)
    zoo.gc(older_than=0).execute()
    assert zoo.chains("near") == []
    [answer] = llm.generate([("near", PROMPT)], max_new_tokens=8)
    assert answer.assembly == "exact"
    assert list(answer.token_ids) == greedy(zoo, zoo.model("near"), PROMPT, 8)


def test_a_chain_that_cannot_be_loaded_leaves_the_request_to_the_exact_one(
    zoo: Zoo, open_llm: Open
) -> None:
    [chain] = zoo.chains("near")
    block = zoo.block(chain.swaps[0].by)
    digest = max(block.tensors.values(), key=lambda ref: ref.nbytes).digest
    path = zoo.objects.find("tensors", digest)
    assert path is not None
    path.chmod(0o600)
    path.write_bytes(b"damaged")
    llm = open_llm(assembly=B, policy=Chosen(1))
    answers = llm.generate([("near", PROMPT)] * 3, max_new_tokens=8)
    for answer in answers:
        assert answer.assembly == "exact"
        assert list(answer.token_ids) == greedy(zoo, zoo.model("near"), PROMPT, 8)
    assert llm.stats().failed == 0


def test_a_model_ingested_again_is_served_as_it_is_now(
    zoo: Zoo, open_llm: Open, made_zoo: Path, tmp_path: Path
) -> None:
    llm = open_llm(assembly=B, policy=Chosen(1))
    [before] = llm.generate([("near", PROMPT)])
    again = variant(made_zoo / "base", tmp_path / "n", lambda t: perturb(t, "model.", 0.1, 99))
    zoo.ingest(again, name="near")
    [after] = llm.generate([("near", PROMPT)], max_new_tokens=8)
    assert before.assembly != "exact" and after.assembly == "exact"
    assert list(after.token_ids) == greedy(zoo, zoo.model("near"), PROMPT, 8)
    names = [row["model"] for row in llm.memory()]
    assert names == ["near"]


def _streams(llm: LLM, name: str, count: int) -> tuple[Any, Any]:
    """A stream that has given its first token, and its sequence."""
    stream = llm.stream((name, PROMPT), max_new_tokens=count, ignore_eos=True)
    first = next(stream)
    assert first.token_ids
    with llm._engine._changed:
        [sequence] = llm._engine._room.sequences.values()
    return stream, sequence


def _between_steps(llm: LLM, action: Callable[[], object]) -> None:
    """Let the engine's thread do something before its next step, and wait for that."""
    done = threading.Event()
    settle = llm._engine._settle

    def first() -> None:
        if not done.is_set():
            action()
            done.set()
        settle()

    llm._engine._settle = first  # type: ignore[method-assign]
    assert done.wait(10)


def _end(stream: Any) -> Any:
    *_, last = stream
    assert isinstance(last, Piece)
    return last.completion


def test_who_waits_may_get_another_chain_and_who_has_begun_keeps_it(
    zoo: Zoo, open_llm: Open
) -> None:
    policy = Chosen(1)
    llm = open_llm(assembly=B, policy=policy, max_batch=1)
    running, sequence = _streams(llm, "near", 60)
    answers: list[Any] = []
    waiting = threading.Thread(
        target=lambda: answers.extend(llm.generate([("close", PROMPT)], max_new_tokens=4))
    )
    waiting.start()
    while len(llm._engine._room.sequences) < 2:
        time.sleep(0.001)
    policy.place = 0

    def change() -> None:
        llm._engine._room._assembler._changes += 1  # as when something was loaded
        llm._engine._scheduler.restart(sequence.job)  # as when its pages were wanted

    _between_steps(llm, change)
    completion = _end(running)
    waiting.join()
    assert completion.assembly == name_of(zoo, "near")
    assert list(completion.token_ids) == greedy(zoo, zoo.chains("near")[0].model, PROMPT, 60)
    assert answers[0].assembly == "exact"
    assert list(answers[0].token_ids) == greedy(zoo, zoo.model("close"), PROMPT, 4)


def test_a_chain_lost_midway_is_followed_by_another_from_the_tokens_there_are(
    zoo: Zoo, open_llm: Open
) -> None:
    llm = open_llm(assembly=B, policy=Chosen(1))
    stream, sequence = _streams(llm, "near", 60)
    made = []

    def lose() -> None:
        made.append(len(sequence.tokens))
        gone = UnservableError("it is gone")
        llm._engine._load_failed(sequence, sequence.tenant.digest, gone)

    _between_steps(llm, lose)
    completion = _end(stream)
    [done] = made
    assert 0 < done < 60
    chain = zoo.chains("near")[0]
    assert completion.assembly == f"{chain.name}, exact"
    first = greedy(zoo, chain.model, PROMPT, done)
    rest = greedy(zoo, zoo.model("near"), PROMPT + first, 60 - done)
    assert list(completion.token_ids) == first + rest
    stats = llm.stats()
    assert stats.certified_tokens == done
    assert stats.certified_kl == pytest.approx(chain.kl * done / 60)


def test_fairness_charges_the_model_and_not_the_chain(open_llm: Open) -> None:
    llm = open_llm(assembly=B, policy=Chosen(1))
    stream, sequence = _streams(llm, "near", 30)
    other = llm.stream(Request("near", PROMPT, assembly="exact"), max_new_tokens=30)
    with llm._engine._changed:
        tenants = {one.job.tenant for one in llm._engine._room.sequences.values()}
        assert len(llm._engine._scheduler._accounts) == 1
        assert llm._engine._scheduler.charged("near") > 0
    assert tenants == {"near"} and sequence.job.model != sequence.menu.exact.tenant.digest
    _end(stream), _end(other)


def test_stats_count_requests_by_chain_and_what_they_cost(zoo: Zoo, open_llm: Open) -> None:
    llm = open_llm(policy=Chosen(1))
    llm.generate([("near", PROMPT)] * 3, max_new_tokens=5, ignore_eos=True, assembly=B)
    llm.generate([("near", PROMPT)], max_new_tokens=5, ignore_eos=True)
    [chain] = zoo.chains("near")
    stats = llm.stats(reset=True)
    assert stats.chains == {"near": {chain.name: 3, "exact": 1}}
    assert stats.certified_tokens == 15
    assert stats.certified_kl == pytest.approx(0.75 * chain.kl)
    assert "certified chains" in repr(stats)
    assert llm.stats().chains == {}
    names = [row["model"] for row in llm.memory()]
    assert sorted(names) == ["near", f"near {chain.name}"]
