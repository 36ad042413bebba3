"""A model of others' layers: what transformers computes from it, and what is refused."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from blockzoo_runtime import LLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from blockzoo.errors import BlockzooError, DamagedError, NotFoundError, UnservableError, UsageError
from blockzoo.partition import FAMILIES
from blockzoo.zoo import Zoo
from tests.partition.partition_models import CONFIGS, family_name, random_model


def recipe(*slices: tuple[str, int, int], **more: Any) -> dict[str, Any]:
    sources = [
        {"sources": [{"model": name, "layer_range": [start, end]}]} for name, start, end in slices
    ]
    return {"slices": sources, "merge_method": "passthrough", **more}


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    return Zoo(tmp_path / "zoo")


@pytest.fixture
def family(zoo: Zoo, shared: Path) -> Zoo:
    for name in ("base", "sql-full", "shakespeare-top3", "chat-added-tokens", "small"):
        zoo.ingest(shared / "family" / name)
    return zoo


def exported(zoo: Zoo, name: str, folder: Path) -> Any:
    zoo.export(name, folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def answers(model: Any, ids: list[int], count: int = 12) -> list[int]:
    with torch.no_grad():
        out = model.generate(
            torch.tensor([ids]), max_new_tokens=count, do_sample=False, eos_token_id=None
        )
    return out[0, len(ids) :].tolist()


def served(zoo: Zoo, name: str, ids: list[int], count: int = 12) -> list[int]:
    llm = LLM(zoo, device="cpu", dtype="float32")
    return list(llm.generate([(name, ids)], max_new_tokens=count, ignore_eos=True)[0].token_ids)


def spliced(models: dict[str, Any], places: list[tuple[str, int]], family: str) -> Any:
    """What the assembled model should be, from transformers' own modules."""
    root, _, stack = (FAMILIES[family].root + FAMILIES[family].layers).rstrip(".").rpartition(".")
    first, last = models[places[0][0]], models[places[-1][0]]
    result = copy.deepcopy(first)
    layers = [copy.deepcopy(models[n].get_submodule(f"{root}.{stack}")[i]) for n, i in places]
    setattr(result.get_submodule(root), stack, torch.nn.ModuleList(layers))
    for module in FAMILIES[family].head:
        if getattr(last.get_submodule(root), module, None) is not None:
            setattr(result.get_submodule(root), module, last.get_submodule(f"{root}.{module}"))
    result.set_output_embeddings(last.get_output_embeddings())
    result.config.num_hidden_layers = len(places)
    if getattr(result.config, "layer_types", None):
        result.config.layer_types = [models[n].config.layer_types[i] for n, i in places]
    return result


@pytest.mark.parametrize("variant", CONFIGS)
def test_a_frankenmerge_computes_what_transformers_does(
    zoo: Zoo, tmp_path: Path, variant: str
) -> None:
    models = {name: random_model(variant, seed) for seed, name in enumerate(("one", "two"))}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        zoo.ingest(tmp_path / name)
    slices = [("one", 0, 2), ("two", 1, 3), ("one", 1, 2), ("two", 0, 3)]
    if variant == "gpt2, by depth":
        with pytest.raises(BlockzooError, match=r"layers\.1\.attention of two .*layer\.index"):
            zoo.assemble(recipe(*slices), "mix")
        slices = [("one", 0, 2), ("two", 2, 3)]
    zoo.assemble(recipe(*slices), "mix")
    places = [(name, i) for name, start, end in slices for i in range(start, end)]
    wanted = spliced(models, places, family_name(variant))
    ids = [5, 9, 3, 30, 7, 12, 21, 2, 40, 17, 8, 4]
    found = exported(zoo, "mix", tmp_path / "out")
    with torch.no_grad():
        logits = [m(torch.tensor([ids]), use_cache=False).logits for m in (wanted, found)]
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=0)
    assert served(zoo, "mix", ids) == answers(found, ids)


def test_nothing_is_written_twice_and_the_zoo_stays_sound(family: Zoo, tmp_path: Path) -> None:
    before = {object.digest for object in family.objects.all("tensors")}
    done = family.assemble(recipe(("base", 0, 4), ("sql-full", 4, 8)), "acme/mix:v1")
    assert {object.digest for object in family.objects.all("tensors")} == before
    assert done.new_bytes == 0 and not done.already
    assert "embedding of sql-full" in done.notes[0]
    again = family.assemble(recipe(("base", 0, 4), ("sql-full", 4, 8)), "acme/mix:v1")
    assert again.already and again.digest == done.digest
    mix, base, sql = (family.model(name) for name in ("acme/mix", "base", "sql-full"))
    blocks = [hop.block for hop in mix.chain]
    assert blocks[:9] == [hop.block for hop in base.chain][:9]
    assert blocks[9:-1] == [hop.block for hop in sql.chain][9:-1]
    for name in ("base", "sql-full"):
        family.remove(name)
    family.gc(older_than=0).execute()
    assert not family.verify().problems
    out = tmp_path / "out"
    model = exported(family, "acme/mix", out)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    assert (out / "tokenizer.json").is_file()
    ids = list(range(100, 120))
    assert served(family, "acme/mix", ids, 24) == answers(model, ids, 24)
    assert "assemble" in family.history("acme/mix").to_text()


def test_repeated_layers_and_ends_that_are_one_tensor_stay_tied(
    family: Zoo, tmp_path: Path
) -> None:
    slices = [("base", 0, 6), ("shakespeare-top3", 4, 7), ("base", 2, 5), ("base", 7, 8)]
    family.assemble(recipe(*slices, dtype="bfloat16"), "tall")
    model = exported(family, "tall", tmp_path / "out")
    assert model.config.num_hidden_layers == 13 and model.config.tie_word_embeddings
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    ids = list(range(200, 216))
    assert served(family, "tall", ids, 24) == answers(model, ids, 24)
    # what went out comes in again as the same blocks
    family.ingest(tmp_path / "out", name="again")
    assert family.model("again").chain == family.model("tall").chain


def test_one_model_alone_is_the_model(family: Zoo) -> None:
    whole = {"models": [{"model": "base"}], "merge_method": "passthrough"}
    family.assemble(whole, "copy")
    assert family.model("copy").chain == family.model("base").chain
    assert family.model("copy").ties == family.model("base").ties


@pytest.mark.parametrize(
    ("slices", "more", "error", "words"),
    [
        ([("base", 0, 4), ("small", 4, 6)], {}, BlockzooError, r"hidden_size \(256 and 160\)"),
        ([("base", 0, 9)], {}, UsageError, r"no layers \[0, 9\]: it has 8"),
        ([("base", 3, 3)], {}, UsageError, "no layers"),
        ([("base", -1, 3)], {}, UsageError, "no layers"),
        ([("bass", 0, 3)], {}, NotFoundError, "'bass'"),
        ([("base", 0, 4), ("chat-added-tokens", 4, 8)], {}, BlockzooError, "4096 tokens, .* 4098"),
        ([("base", 0, 4)], {"dtype": "float16"}, BlockzooError, "would cast .*BF16"),
        (
            [("base", 0, 4)],
            {"tokenizer_source": "chat-added-tokens"},
            BlockzooError,
            "another vocabulary",
        ),
        ([("base", 0, 8)], {"base_model": "chat-added-tokens"}, BlockzooError, "tokens that the"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    family: Zoo, slices: list[Any], more: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        family.assemble(recipe(*slices, **more), "mix")
    assert "mix" not in family.names()


def test_added_tokens_go_along_where_both_ends_have_them(family: Zoo, tmp_path: Path) -> None:
    slices = [("chat-added-tokens", 0, 1), ("sql-full", 1, 6), ("chat-added-tokens", 6, 8)]
    family.assemble(recipe(*slices, base_model="base", tokenizer_source="chat-added-tokens"), "mix")
    model = exported(family, "mix", tmp_path / "out")
    assert model.config.vocab_size == 4098
    assert served(family, "mix", [4097, 50, 60]) == answers(model, [4097, 50, 60])


def changed(source: Path, folder: Path, **values: Any) -> Path:
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_other_rotary_settings_and_families_are_refused(
    family: Zoo, shared: Path, tmp_path: Path
) -> None:
    base = shared / "family" / "base"
    rope = {"rope_theta": 500000.0, "rope_type": "default"}
    family.ingest(changed(base, tmp_path / "far", rope_parameters=rope))
    family.ingest(changed(base, tmp_path / "windy", model_type="mistral"))
    family.ingest(changed(base, tmp_path / "odd", model_type="no-such"))
    for name, error, words in (
        ("far", BlockzooError, "rope_theta"),
        ("windy", BlockzooError, "family mistral, and base of llama"),
        ("odd", UnservableError, "'no-such' are kept, but not run"),
    ):
        with pytest.raises(error, match=words):
            family.assemble(recipe(("base", 0, 4), (name, 4, 8)), "mix")


def test_an_adapter_is_no_source(family: Zoo, shared: Path) -> None:
    family.ingest(shared / "family" / "code-lora-qv", base="base")
    with pytest.raises(BlockzooError, match=r"code-lora-qv is an adapter \(lora\)"):
        family.assemble(recipe(("code-lora-qv", 0, 8)), "mix")


def test_weights_of_two_dtypes_are_not_mixed(zoo: Zoo, tmp_path: Path) -> None:
    for seed, dtype in enumerate((torch.float32, torch.float16)):
        random_model("llama", seed).to(dtype).save_pretrained(tmp_path / str(seed))
        zoo.ingest(tmp_path / str(seed), name=f"m{seed}")
    with pytest.raises(BlockzooError, match=r"is F16, and .* F32"):
        zoo.assemble(recipe(("m0", 0, 2), ("m1", 2, 3)), "mix")


def test_a_tensor_that_is_gone_is_told_before_anything_is_named(zoo: Zoo, tmp_path: Path) -> None:
    random_model("llama").save_pretrained(tmp_path / "m")
    zoo.ingest(tmp_path / "m")
    lost = zoo.block(zoo.model("m").chain[2].block).tensors["mlp.up_proj.weight"].digest
    for path in (zoo.path / "tensors" / lost[:2]).glob(f"{lost}*"):
        path.unlink()
    with pytest.raises(DamagedError, match=lost[:12]):
        zoo.assemble(recipe(("m", 0, 2)), "mix")
    assert zoo.names() == ["m"]
