"""Plans: certified, executed under the same name, taken back; nothing lossy unasked."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from blockzoo.compact import planner, trial
from blockzoo.compact.plan import CompactPlan
from blockzoo.errors import BlockzooError, LockedError, NotFoundError, SourceError, UsageError
from blockzoo.records import Model
from blockzoo.store.refs import tagged
from blockzoo.store.session import Session
from blockzoo.zoo import Zoo
from tests.planted import Tensors, variant
from tests.zoos import hashes

Files = dict[str, Path]

_IDS = torch.tensor([[3, 17, 5, 99, 42, 8, 64, 11, 2, 70]])


def _plan(zoo: Zoo, name: str, files: Files, **given: Any) -> CompactPlan:
    own = given.pop("own", files["own"])
    return zoo.compact(name, files["calibration"], [files["plain"]], own=own, **given)


def _logits(zoo: Zoo, name: str) -> torch.Tensor:
    return zoo.chain(zoo.model(name))(_IDS, logits_to_keep=0)


def test_a_full_tune_becomes_its_base_and_a_certified_difference(
    zoo: Zoo, files: Files, family: Files, tmp_path: Path
) -> None:
    before, exact = _logits(zoo, "tuned"), zoo.resolve("tuned")
    plan = _plan(zoo, "tuned", files, base="base", grade="C")
    sizes = [point.bytes.resident for point in plan.points]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < plan.exact.resident / 4
    chosen = plan.chosen
    assert chosen is not None and chosen.record is not None
    assert chosen.record.judgement.at_least("C") and chosen.record.own == "own"
    assert zoo.resolve("tuned") == exact  # a plan changes no name
    assert "proposed" in plan.table().to_text() and "<svg" in plan.drawing().svg
    assert json.loads(json.dumps(plan.to_json()))["chosen"] == plan.points.index(chosen)

    made = plan.execute()
    assert zoo.resolve("tuned") == made != exact
    model = zoo.model("tuned")
    assert {hop.block for hop in model.chain} <= {hop.block for hop in zoo.model("base").chain}
    assert zoo.equivalence(model.evidence).digest == chosen.record.digest
    after = _logits(zoo, "tuned")
    apart = (torch.log_softmax(before, -1) - torch.log_softmax(after, -1)).abs().max()
    assert 0 < float(apart) < 1

    zoo.export("tuned", tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.allclose(loaded(_IDS).logits, after, atol=1e-3)
    zoo.export("tuned", tmp_path / "out")  # they are there and right
    assert zoo.verify().ok
    assert f"compact, by record {model.evidence[:12]}" in repr(zoo["tuned"])
    assert [row["equivalence"] for row in zoo.equivalences("tuned")] == [model.evidence]


def test_chains_that_go_beside_others_lose_what_they_lose(
    zoo: Zoo, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def frontier() -> list[float]:
        plan = _plan(zoo, "near", files, base="base", grade="C")
        return [point.loss.kl for point in plan.points]

    told = frontier()
    monkeypatch.setattr(trial, "_BESIDE", 2)
    assert frontier() == pytest.approx(told, rel=1e-3)


def test_a_compact_version_is_its_bases_child_and_no_copy_of_it(zoo: Zoo, files: Files) -> None:
    made = _plan(zoo, "tuned", files, base="base", grade="C").execute()
    edge = zoo.families().lineage.edges[made]
    assert edge.parent == zoo.resolve("base") and not edge.guessed and edge.distance is None
    assert "tuned" not in [row["name"] for row in zoo.similar("base").rows]
    with pytest.raises(UsageError, match="is compact"):
        zoo.similar("tuned")


def test_it_can_be_taken_back_until_it_is_collected(
    zoo: Zoo, files: Files, family: Files, tmp_path: Path
) -> None:
    exact = zoo.resolve("tuned")
    with pytest.raises(NotFoundError, match="no compact version"):
        zoo.revert("tuned")
    compact = _plan(zoo, "tuned", files, base="base", grade="C").execute()
    assert zoo.revert("tuned") == exact == zoo.resolve("tuned")
    zoo.export("tuned", tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(family["tuned"])
    zoo.tag(compact, "tuned:small")
    zoo.remove("tuned:latest")
    zoo.gc(older_than=0).execute()
    assert zoo.verify().ok
    assert torch.isfinite(_logits(zoo, "tuned:small")).all()
    assert zoo.equivalence(zoo.model("tuned:small").evidence).grade in "ABC"


def test_once_collected_it_cannot_and_says_so(zoo: Zoo, files: Files) -> None:
    _plan(zoo, "tuned", files, base="base", grade="C").execute()
    before = zoo.stats().stored_bytes
    zoo.gc(older_than=0).execute()
    assert zoo.stats().stored_bytes < before
    assert zoo.verify().ok
    with pytest.raises(NotFoundError, match="has been collected"):
        zoo.revert("tuned")
    assert torch.isfinite(_logits(zoo, "tuned")).all()


def test_beside_the_exact_one_it_is_a_certified_chain(zoo: Zoo, files: Files) -> None:
    exact = zoo.resolve("tuned")
    assert _plan(zoo, "tuned", files, base="base", grade="C").execute(beside=True) == exact
    assert zoo.resolve("tuned") == exact
    chains = zoo.chains("tuned", "C")
    assert chains and all(swap.adapters for chain in chains for swap in chain.swaps)
    zoo.gc(older_than=0).execute()
    assert zoo.verify().ok and len(zoo.chains("tuned", "C")) == len(chains)
    assert any(not row["hops"] for row in zoo.blocks().rows)  # what only those chains use


def test_a_merged_lora_becomes_an_adapter_again(
    zoo: Zoo, files: Files, family: Files, tmp_path: Path
) -> None:
    from peft import PeftModel

    before = _logits(zoo, "merged")
    plan = _plan(zoo, "merged", files, base="base", grade="A", widths=())
    assert [set(point.counts) for point in plan.points] == [{"rank 2"}]
    plan.execute()
    model = zoo.model("merged")
    assert model.kind == "adapter" and model.base == zoo.resolve("base")
    kept = {path.name for path in family["merged"].iterdir() if "token" in path.name}
    assert kept and kept <= {recipe.path for recipe in model.files}
    assert torch.allclose(_logits(zoo, "merged"), before, atol=0.05)
    zoo.export("merged", tmp_path / "adapter")
    loaded = AutoModelForCausalLM.from_pretrained(family["base"], dtype=torch.float32)
    tuned = PeftModel.from_pretrained(loaded, tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.allclose(tuned(_IDS).logits, _logits(zoo, "merged"), atol=1e-4)
    with pytest.raises(BlockzooError, match="no low-rank update"):
        _plan(zoo, "tuned", files, base="base", widths=())


def test_a_merged_lora_that_ends_otherwise_than_its_base_stays_a_model(
    zoo: Zoo, files: Files, family: Files, tmp_path: Path
) -> None:
    folder = shutil.copytree(family["merged"], tmp_path / "ends")
    (folder / "generation_config.json").write_text('{"eos_token_id": 7}')
    zoo.ingest(folder, name="ends")
    _plan(zoo, "ends", files, base="base", grade="A", widths=()).execute()
    model = zoo.model("ends")
    assert model.kind == "model" and zoo.file(model, "generation_config.json") is not None


def test_a_plan_whose_codes_were_collected_changes_nothing(zoo: Zoo, files: Files) -> None:
    plan = _plan(zoo, "tuned", files, base="base", grade="C")
    zoo.gc(older_than=0).execute()
    for beside in (False, True):
        with pytest.raises(BlockzooError, match="was collected"):
            plan.execute(beside=beside)
    assert zoo.resolve("tuned") == plan.digest and not zoo.equivalences("tuned").rows
    assert zoo.verify().ok


def test_blocks_of_others_stand_in(zoo: Zoo, files: Files) -> None:
    plan = zoo.equivalent("near", files["calibration"], [files["plain"]], own=files["own"])
    assert plan.chosen is not None and plan.chosen.bytes.resident == 0
    plan.execute()
    chains = [[hop.block for hop in zoo.model(name).chain] for name in ("near", "base")]
    assert chains[0] == chains[1]
    with pytest.raises(BlockzooError, match="near enough"):
        zoo.equivalent("other", files["calibration"], [files["plain"]], own=files["own"])


def test_the_base_is_found_by_its_weights(zoo: Zoo, files: Files) -> None:
    assert _plan(zoo, "near", files, grade="A").base == "base"
    with pytest.raises(BlockzooError, match="descends from no model"):
        _plan(zoo, "other", files)


def test_a_name_that_moved_meanwhile_is_left_alone(zoo: Zoo, files: Files) -> None:
    plan = _plan(zoo, "near", files, base="base", grade="C")
    zoo.tag("other", "near")
    with pytest.raises(BlockzooError, match="was changed since"):
        plan.execute()
    assert zoo.resolve("near") == zoo.resolve("other")


def test_what_is_not_finite_is_refused_in_words(
    zoo: Zoo, files: Files, family: Files, tmp_path: Path
) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors["model.layers.0.mlp.up_proj.weight"][3, 5] = torch.inf

    zoo.ingest(variant(family["tuned"], tmp_path / "spoilt", spoil), name="spoilt")
    with pytest.raises(BlockzooError, match="not finite"):
        _plan(zoo, "spoilt", files, base="base")


def test_what_makes_no_sense_is_refused_in_words(zoo: Zoo, files: Files, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="3 bits"):
        _plan(zoo, "tuned", files, base="base", widths=(3,))
    small = tmp_path / "small.txt"
    small.write_text("w1 w2 w3\n\nw4 w5\n")
    with pytest.raises(SourceError, match="too small to fit on"):
        zoo.compact("tuned", small, files["plain"], base="base")
    with pytest.raises(SourceError, match="proves nothing"):
        zoo.compact("tuned", files["plain"], files["plain"], base="base")
    with pytest.raises(SourceError, match="no text"):
        zoo.compact("tuned", [], files["plain"], base="base")
    zoo.compact("tuned", files["calibration"], files["plain"], base="base", grade="C").execute()
    with pytest.raises(BlockzooError, match="adapters on its blocks"):
        _plan(zoo, "tuned", files, base="base")
    with pytest.raises(BlockzooError, match="adapters on its blocks"):
        zoo.equivalent("tuned", files["calibration"], files["plain"])
    with pytest.raises(NotFoundError, match="no model is named"):  # a digest cannot move
        zoo.revert(zoo.resolve("tuned"))


def test_nothing_is_collected_that_a_plan_in_the_making_needs(
    zoo: Zoo, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may take hours, and nothing refers to its codes before it is executed."""
    seen = set()

    def collect(what: str, *_: int) -> None:
        seen.add(what)
        with pytest.raises(LockedError):
            zoo.gc(older_than=0)
        assert not zoo.gc().objects
        for path in zoo.path.glob("tensors/*/*"):
            os.utime(path, (1, 1))  # … which was long ago

    monkeypatch.setattr(planner, "_TOUCHED", 0.0)
    assert _plan(zoo, "tuned", files, base="base", grade="C", progress=collect).chosen
    assert {"round", "tokens"} <= seen


def test_going_back_leaves_alone_what_has_just_come_in(
    zoo: Zoo, files: Files, family: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ingest, or whatever else, moves the name while what it goes back to is touched."""
    plan = _plan(zoo, "tuned", files, base="base", grade="C")
    rely_on = Zoo.rely_on

    def moves(name: str) -> None:
        def rely(zoo: Zoo, session: Session, model: Model) -> None:
            rely_on(zoo, session, model)
            Zoo(zoo.path).refs.set("tuned", None, tagged(zoo.model(name)), "ingest")

        monkeypatch.setattr(Zoo, "rely_on", rely)

    moves("near")
    with pytest.raises(BlockzooError, match="was changed since"):
        plan.execute()
    assert zoo.resolve("tuned") == zoo.resolve("near")
    monkeypatch.undo()
    zoo.tag(plan.digest, "tuned")
    plan.execute()
    moves("other")
    with pytest.raises(BlockzooError, match="was changed meanwhile"):
        zoo.revert("tuned")
    assert zoo.resolve("tuned") == zoo.resolve("other")
