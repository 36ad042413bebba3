"""The zoo as a whole: what goes in comes out, names, sharing, adapters and their bases."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockzoo import Zoo
from blockzoo.errors import (
    BaseMissingError,
    DamagedError,
    LockedError,
    NotFoundError,
    NoZooError,
    SourceError,
    UsageError,
    ZooVersionError,
)
from blockzoo.store import sealed
from blockzoo.store.refs import Refs
from tests.zoos import checkpoint, hashes, run, write_safetensors

torch = pytest.importorskip("torch")

FULL_MODELS = (
    "base",
    "math-full",
    "sql-full",
    "sql-then-trec-full",
    "shakespeare-top3",
    "shakespeare-norms",
    "novel-lora-merged",
    "chat-added-tokens",
    "small",
)
ADAPTERS = ("code-lora-qv", "sentiment-lora-all", "trec-dora", "sentiment-ia3", "trec-prefix")


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    return Zoo(tmp_path / "zoo")


def test_all_real_models_come_out_as_they_went_in(shared: Path, zoo: Zoo, tmp_path: Path) -> None:
    sources = [shared / "family" / name for name in (*FULL_MODELS, *ADAPTERS)]
    sources += sorted((shared / "checkpoints").iterdir())
    for source in sources:
        zoo.ingest(source)
    detached = sorted((shared / "adapters").iterdir())
    for source in detached:
        assert zoo.ingest(source, detached=True).detached
    for source in (*sources, *detached):
        zoo.export(source.name, tmp_path / "out" / source.name)
        assert hashes(tmp_path / "out" / source.name) == hashes(source)
    stats = zoo.stats()
    assert stats.stored_bytes <= 1.01 * stats.distinct_tensor_bytes
    assert stats.logical_bytes == sum(
        path.stat().st_size for source in (*sources, *detached) for path in source.iterdir()
    )
    assert zoo.verify().ok


def test_every_dtype_and_odd_shape_is_kept_exactly(zoo: Zoo, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    bits = torch.arange(-120, 120, dtype=torch.int8)
    tensors = {
        "layers.0.bf16": torch.tensor([float("nan"), -0.0, 1e-40, float("inf")]).bfloat16(),
        "layers.0.nan_payloads": torch.tensor([0x7FC00001, -0x3FFFFF], dtype=torch.int32).view(
            torch.float32
        ),
        "layers.0.fp16": torch.randn(3, 5).half(),
        "layers.0.int8": bits,
        "layers.0.fp8": bits.view(torch.float8_e4m3fn).clone(),
        "layers.0.fp8_5": bits.view(torch.float8_e5m2).clone(),
        "layers.1.scalar": torch.tensor(3.5, dtype=torch.float64),
        "layers.1.empty": torch.empty(0, 7),
        "layers.1.bool": torch.tensor([True, False, True]),
        "layers.1.int64": torch.tensor([[2**62, -1]]),
    }
    source = tmp_path / "odd"
    source.mkdir()
    save_file(tensors, source / "model.safetensors", {"format": "pt", "note": "π"})
    (source / "config.json").write_text('{"model_type": "unheard_of"}')
    (source / "empty.txt").write_bytes(b"")
    (source / "sub").mkdir()
    (source / "sub" / "run.sh").write_text("#!/bin/sh\n")
    (source / "sub" / "run.sh").chmod(0o755)
    zoo.ingest(source)
    zoo.export("odd", tmp_path / "out")
    assert hashes(tmp_path / "out") == hashes(source)
    assert os.access(tmp_path / "out" / "sub" / "run.sh", os.X_OK)
    assert zoo.why_not_served(zoo.model("odd"))


def test_dtype_and_shape_are_part_of_a_tensors_identity(zoo: Zoo) -> None:
    from blockzoo.tensors import TensorInfo, tensor_digest

    zeros = bytes(16)
    infos = [
        TensorInfo("F32", (4,)),
        TensorInfo("F32", (2, 2)),
        TensorInfo("I32", (4,)),
        TensorInfo("F16", (8,)),
        TensorInfo("BF16", (8,)),
    ]
    assert len({tensor_digest(info, zeros) for info in infos}) == len(infos)


def test_the_same_weights_in_other_files_cost_nothing(zoo: Zoo, tmp_path: Path) -> None:
    """Sharded or whole, safetensors or torch pickle: the tensors are the same."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        vocab_size=64,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).bfloat16()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="10KB")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    shutil.copy(tmp_path / "whole" / "config.json", pickled / "config.json")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 3
    zoo.ingest(tmp_path / "whole")
    for name in ("sharded", "pickled"):
        assert zoo.ingest(tmp_path / name).new_bytes == 0, name
        zoo.export(name, tmp_path / "out" / name)
        assert hashes(tmp_path / "out" / name) == hashes(tmp_path / name)
        back = LlamaForCausalLM.from_pretrained(tmp_path / "out" / name, dtype=torch.bfloat16)
        for key, value in model.state_dict().items():
            assert torch.equal(back.state_dict()[key], value)
    whole, sharded = zoo.model("whole"), zoo.model("sharded")
    assert [hop.block for hop in whole.chain] == [hop.block for hop in sharded.chain]


def test_only_what_differs_is_new(zoo: Zoo, tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", seed=1)
    tune = checkpoint(tmp_path / "tune", seed=1, changed=(3,))
    first, second, third = zoo.ingest(base), zoo.ingest(tune), zoo.ingest(base)
    assert 0 < second.new_bytes < first.new_bytes / 3
    assert (third.new_bytes, third.already) == (0, True)
    assert len(zoo.history("base")) == 1
    chains = zip(zoo.model("base").chain, zoo.model("tune").chain, strict=True)
    shared_hops = [a.block == b.block for a, b in chains]
    assert shared_hops == [True] * 7 + [False] * 2 + [True]


def test_names_have_tags_and_a_history(zoo: Zoo, tmp_path: Path) -> None:
    one, two = checkpoint(tmp_path / "one", seed=1), checkpoint(tmp_path / "two", seed=2)
    first = zoo.ingest(one, "acme/bot:v1").digest
    second = zoo.ingest(two, "acme/bot:v2").digest
    assert zoo.resolve("acme/bot") == second
    assert zoo.resolve("acme/bot:v1") == first == zoo.resolve(first[:10])
    zoo.tag("acme/bot:v1", "acme/bot:old")
    assert zoo.resolve("acme/bot") == second, "what is served moves only when told so"
    zoo.tag("acme/bot:v1", "acme/bot")
    assert zoo.resolve("acme/bot") == first
    zoo.remove("acme/bot:v2")
    with pytest.raises(NotFoundError, match="no tag 'v2'"):
        zoo.resolve("acme/bot:v2")
    zoo.remove("acme/bot")
    assert zoo.names() == []
    assert zoo.history("acme/bot")["action"] == [
        "ingest",
        "ingest",
        "tag",
        "tag",
        "remove",
        "remove",
    ]
    assert zoo.resolve(second[:10]) == second  # nothing is deleted before gc
    zoo.tag(second, "acme/bot")
    zoo.gc(older_than=0).execute()
    assert zoo.verify().ok
    zoo.export("acme/bot", tmp_path / "out")
    assert hashes(tmp_path / "out") == hashes(two)
    with pytest.raises(NotFoundError):
        zoo.resolve(first)


def test_gc_keeps_the_young_and_the_named(zoo: Zoo, tmp_path: Path) -> None:
    zoo.ingest(checkpoint(tmp_path / "kept", seed=1))
    zoo.ingest(checkpoint(tmp_path / "gone", seed=2))
    zoo.remove("gone")
    plan = zoo.gc()
    assert (len(plan.objects), plan.kept_young > 0) == (0, True)
    before = zoo.stats().stored_bytes
    plan = zoo.gc(older_than=0)
    assert set(plan.counts()) == {"models", "blocks", "tensors"}
    assert plan.execute() == plan.bytes > 0
    assert zoo.stats().stored_bytes == before - plan.bytes
    assert zoo.verify().ok


@pytest.mark.parametrize(
    "name", ["../out", "a/../b", "/etc/x", "a//b", "", ".hidden", "a b", "a:b:c", "a/", "a\\b", "é"]
)
def test_names_cannot_leave_the_zoo(zoo: Zoo, tmp_path: Path, name: str) -> None:
    source = checkpoint(tmp_path / "model")
    with pytest.raises(UsageError, match="not a usable model name"):
        zoo.ingest(source, name or " ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "zoo"]


def test_an_export_does_not_overwrite_other_files(zoo: Zoo, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "model")
    zoo.ingest(source)
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("mine")
    with pytest.raises(UsageError, match=r"config\.json"):
        zoo.export("model", out)
    assert sorted(path.name for path in out.iterdir()) == ["config.json"]
    zoo.export("model", out, overwrite=True)
    assert hashes(out) == hashes(source)
    zoo.export("model", out)  # what is right already stays


def test_a_recipe_with_an_unsafe_path_is_not_written(zoo: Zoo, tmp_path: Path) -> None:
    from dataclasses import replace

    from blockzoo.export import export

    zoo.ingest(checkpoint(tmp_path / "model"))
    model = zoo.model("model")
    for path in ("../evil", "/evil", "a/../../evil", "c:evil", "a\\b", ""):
        evil = replace(model, files=(replace(model.files[0], path=path),))
        with pytest.raises(DamagedError, match="unsafe path"):
            export(zoo.objects, evil, tmp_path / "out")
    assert not (tmp_path / "evil").exists()


def test_an_absent_zoo_and_a_newer_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NoZooError):
        Zoo(tmp_path / "none", create=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("…")
    with pytest.raises(NoZooError, match="not empty"):
        Zoo(tmp_path / "full")
    Zoo(tmp_path / "newer")
    marker = tmp_path / "newer" / "zoo.json"
    marker.write_bytes(sealed.seal(sealed.unseal(marker.read_bytes()) | {"version": 99}))
    with pytest.raises(ZooVersionError, match="format 99"):
        Zoo(tmp_path / "newer")


def test_an_adapter_needs_its_base(shared: Path, zoo: Zoo, tmp_path: Path) -> None:
    adapter = shared / "family" / "code-lora-qv"
    with pytest.raises(BaseMissingError, match="'base' is not in the zoo") as caught:
        zoo.ingest(adapter)
    assert "--detached" in str(caught.value.hint)
    assert zoo.names() == []
    zoo.ingest(shared / "family" / "small", "small")
    with pytest.raises(SourceError, match="another base"):
        zoo.ingest(adapter, base="small")
    zoo.ingest(shared / "family" / "base", "acme/llm")
    attached = zoo.ingest(adapter, base="acme/llm")
    assert zoo.model("code-lora-qv").base == zoo.resolve("acme/llm")
    assert not attached.detached


def test_a_detached_adapter_is_attached_when_its_base_arrives(shared: Path, zoo: Zoo) -> None:
    for name in ADAPTERS:
        assert zoo.ingest(shared / "family" / name, detached=True).detached
    assert all(kind == "detached adapter" for kind in zoo.models()["kind"])
    assert zoo.why_not_served(zoo.model("trec-dora"))
    done = zoo.ingest(shared / "family" / "base")
    assert set(done.attached) == set(ADAPTERS)
    alone = Zoo(zoo.path.parent / "straight")
    alone.ingest(shared / "family" / "base")
    for name in ADAPTERS:
        model = zoo.model(name)
        assert zoo.why_not_served(model) is None
        assert model.digest == alone.ingest(shared / "family" / name).digest
    assert zoo.verify().ok


def test_a_base_is_pinned_by_digest_not_by_name(shared: Path, zoo: Zoo, tmp_path: Path) -> None:
    base = zoo.ingest(shared / "family" / "base").digest
    zoo.ingest(shared / "family" / "trec-dora")
    zoo.ingest(shared / "family" / "math-full", "base")
    zoo.remove("base")
    zoo.gc(older_than=0).execute()
    assert zoo.model("trec-dora").base == base
    assert zoo.verify().ok
    assert zoo.objects.model(base).chain


def test_weights_beside_weights_are_kept_too(zoo: Zoo, tmp_path: Path) -> None:
    """A folder with both safetensors and .bin, as many on the Hub are."""
    from safetensors.torch import load_file

    source = checkpoint(tmp_path / "both")
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "training_args.bin").write_bytes(b"\x80\x02cos\nsystem\nq\x00.")  # never unpickled
    done = zoo.ingest(source)
    assert done.new_bytes < 0.6 * done.bytes
    zoo.export("both", tmp_path / "out")
    assert hashes(tmp_path / "out") == hashes(source)


@pytest.mark.parametrize("broken", ["shard missing", "shape", "json", "truncated", "no weights"])
def test_a_broken_checkpoint_is_refused_and_leaves_no_name(
    zoo: Zoo, tmp_path: Path, broken: str
) -> None:
    source = checkpoint(tmp_path / "model")
    weights = source / "model.safetensors"
    if broken == "shard missing":
        weights.rename(source / "model-00001-of-00002.safetensors")
        index = {"weight_map": {"a": "model-00002-of-00002.safetensors"}}
        (source / "model.safetensors.index.json").write_text(json.dumps(index))
    elif broken == "shape":
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps(config | {"hidden_size": 128}))
    elif broken == "json":
        (source / "config.json").write_text("{")
    elif broken == "truncated":
        weights.write_bytes(weights.read_bytes()[:-5])
    else:
        weights.unlink()
    with pytest.raises(SourceError) as caught:
        zoo.ingest(source)
    assert caught.value.hint
    assert zoo.names() == []
    assert zoo.verify().ok


def test_memory_stays_far_below_the_models_size(zoo: Zoo, tmp_path: Path) -> None:
    """A 400 MB model in a process that may take 250 MB beyond what Python itself does."""
    import subprocess
    import sys

    source = tmp_path / "large"
    source.mkdir()
    rows = np.random.default_rng(0).standard_normal((100_000, 500), np.float32)
    write_safetensors(source / "model.safetensors", {f"layers.{i}.w": rows + i for i in range(2)})
    code = (
        "import sys, resource\n"
        "from blockzoo import Zoo\n"
        "import blockzoo.ingest\n"
        "z = Zoo(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (250 << 20,) * 2)\n"
        "z.ingest(sys.argv[2]); z.export('large', sys.argv[3])\n"
    )
    command = [sys.executable, "-c", code, zoo.path, source, tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert hashes(tmp_path / "out") == hashes(source)


def test_file_names_with_colons_come_out_again(zoo: Zoo, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    (folder / "train 12:30.log").write_text("loss 3.1")
    zoo.ingest(folder)
    zoo.export("model", tmp_path / "out")
    assert hashes(tmp_path / "out") == hashes(folder)


def test_a_zoo_is_not_taken_in_with_the_folder_around_it(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    before = hashes(folder)
    done = run("ingest", folder, "--zoo", folder / "zoo")
    assert done.returncode == 2
    assert "--zoo" in done.stderr
    assert hashes(folder) == before
    with pytest.raises(UsageError, match="lies in"):
        Zoo(folder / "zoo").ingest(folder)


def test_an_export_that_fails_leaves_no_partial_file(zoo: Zoo, tmp_path: Path) -> None:
    zoo.ingest(checkpoint(tmp_path / "model"))
    path = list((zoo.path / "tensors").rglob("*.safetensors"))[-1]
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedError):
        zoo.export("model", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*partial*"))
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_an_empty_name_is_refused(zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a usable model name"):
        zoo.ingest(checkpoint(tmp_path / "model"), "")


def test_attaching_old_tags_leaves_latest_where_it_is(shared: Path, zoo: Zoo) -> None:
    family = shared / "family"
    zoo.ingest(family / "code-lora-qv", "bot:v9", detached=True)
    newest = zoo.ingest(family / "sentiment-lora-all", "bot:v10", detached=True)
    assert newest.new_bytes
    assert zoo.ingest(family / "base").attached == ("bot",)
    assert zoo.resolve("bot") == zoo.resolve("bot:v10") != zoo.resolve("bot:v9")
    assert not zoo.model("bot:v9").detached
    assert not zoo.model("bot").detached
    assert newest.new_bytes in zoo.models()["new_bytes"]


def test_a_name_that_moved_meanwhile_is_not_attached(shared: Path, zoo: Zoo) -> None:
    old = zoo.ingest(shared / "family" / "code-lora-qv", "bot", detached=True).digest
    new = zoo.ingest(shared / "family" / "small", "bot").digest
    target = zoo.refs.find("bot")
    assert not zoo.refs.swap("bot", old, target, "attach")
    assert zoo.resolve("bot") == new
    assert zoo.history("bot")["action"] == ["ingest", "ingest"]


def test_gc_leaves_what_was_touched_after_it_was_planned(zoo: Zoo, tmp_path: Path) -> None:
    """Somebody who comes between plan and execution relies on it, and has no name yet."""
    zoo.ingest(checkpoint(tmp_path / "model"))
    zoo.remove("model")
    time.sleep(0.05)
    plan = zoo.gc(older_than=0)
    assert plan.objects
    time.sleep(0.05)
    for found in plan.objects:
        os.utime(found.path)
    time.sleep(0.05)
    assert plan.execute() == 0
    assert all(found.path.exists() for found in plan.objects)


def test_a_name_is_set_while_its_session_lives(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a collection of the young, which waits for sessions, cannot come in between."""
    setting, refused = Refs.set, []

    def watched(self: Refs, *arguments: Any) -> None:
        with pytest.raises(LockedError):
            zoo.gc(older_than=0)
        refused.append(True)
        setting(self, *arguments)

    monkeypatch.setattr(Refs, "set", watched)
    zoo.ingest(checkpoint(tmp_path / "model"))
    assert refused


def test_linked_folders_are_told_to_be_left_out(zoo: Zoo, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    (tmp_path / "elsewhere").mkdir()
    (folder / "extra").symlink_to(tmp_path / "elsewhere")
    (note,) = zoo.ingest(folder).notes
    assert note.startswith("extra ")
