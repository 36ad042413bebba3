"""PEFT's adapters to adapter blocks, with the base at hand and without."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from partition_models import random_model, read, saved
from safetensors.torch import load_file, save_file

from blockzoo.errors import BlockzooError, SourceError
from blockzoo.partition import Partitioned, partition, partition_adapter, why_not_served
from blockzoo.records import Block, Model
from blockzoo.tensors import TensorRef

QKV = ["q_proj", "k_proj", "v_proj"]


@dataclass
class Case:
    """An adapter made by PEFT on a tiny base, both saved."""

    base_config: dict[str, Any]
    base: Partitioned
    config: dict[str, Any]
    tensors: dict[str, TensorRef]
    model: Any
    folder: Path

    def attached(self) -> Partitioned:
        return partition_adapter(self.config, self.tensors, self.base.hops, self.base.blocks)

    def reason(self) -> str | None:
        made = self.attached()
        model = Model("adapter", made.family, made.hops, (), self.base.ties, base="0" * 64)
        return why_not_served(model, {**self.base.blocks, **made.blocks}, self.base_config)


def make(folder: Path, variant: str, config: Any) -> Case:
    """Train nothing: random values in every tensor of the adapter."""
    base = random_model(variant)
    base_config, base_tensors = saved(base, folder / "base")
    model = peft.get_peft_model(base, config)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder / "adapter")
    adapter_config, tensors = read(folder / "adapter", "adapter_model")
    chain = partition(base_config, base_tensors)
    return Case(base_config, chain, adapter_config, tensors, model, folder / "adapter")


def lora(**more: Any) -> Any:
    values = {"r": 2, "lora_alpha": 6, "target_modules": QKV, **more}
    return peft.LoraConfig(task_type="CAUSAL_LM", **values)


def blocks_by_hop(made: Partitioned) -> dict[str, Block]:
    return {hop.name: made.blocks[d] for hop in made.hops for d in hop.adapters}


def whole(made: Partitioned) -> list[str]:
    return sorted(
        hop.prefix + name
        for hop in made.hops
        for digest in hop.adapters
        for name in made.blocks[digest].tensors
    )


def stripped(names: Any) -> list[str]:
    return sorted(name.removeprefix("base_model.").removeprefix("model.") for name in names)


SERVED: dict[str, tuple[str, Any]] = {
    "lora": ("llama", lora()),
    "rslora": ("qwen2", lora(use_rslora=True)),
    "dora": ("llama", lora(use_dora=True)),
    "bias all": ("opt", lora(bias="all")),
    "bias lora_only": ("opt", lora(bias="lora_only")),
    "bias of B": ("llama", lora(lora_bias=True)),
    "embeddings": ("llama", lora(target_modules=["embed_tokens", "lm_head"])),
    "tied embedding": ("llama, biases", lora(target_modules=["embed_tokens"])),
    "modules to save": ("llama", lora(modules_to_save=["lm_head", "input_layernorm"])),
    "tied head to save": ("gpt2", lora(target_modules=["c_attn"], modules_to_save=["lm_head"])),
    "conv1d": ("gpt2", lora(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
    "whole layers": ("gpt_neox", lora(target_modules=["query_key_value", "dense_h_to_4h"])),
    "fused projections": ("phi3", lora(target_modules=["qkv_proj", "gate_up_proj"])),
    "attention of a mixture": ("mixtral", lora()),
    "ia3": ("llama", peft.IA3Config(task_type="CAUSAL_LM")),
    "ia3 conv1d": ("gpt2", peft.IA3Config(task_type="CAUSAL_LM")),
    "ln": ("gemma2", peft.LNTuningConfig(task_type="CAUSAL_LM")),
    "ln biases": ("gpt2", peft.LNTuningConfig(task_type="CAUSAL_LM")),
    "prompt": ("llama", peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)),
    "prompt and head": (
        "llama",
        peft.PromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=3, modules_to_save=["lm_head"]
        ),
    ),
    "prompt opt": (
        "opt",
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ),
    "p-tuning": (
        "gpt2",
        peft.PromptEncoderConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8
        ),
    ),
    "prefix": ("llama", peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)),
    "prefix gpt2": ("gpt2", peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)),
    "projected prefix": (
        "qwen2",
        peft.PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=3,
            prefix_projection=True,
            encoder_hidden_size=16,
        ),
    ),
}

KEPT: dict[str, tuple[str, Any, str]] = {
    "adalora": (
        "llama",
        peft.AdaLoraConfig(
            task_type="CAUSAL_LM", init_r=3, total_step=10, target_modules=["q_proj"]
        ),
        "type 'adalora'",
    ),
    "loha": ("llama", peft.LoHaConfig(r=2, target_modules=["q_proj"]), "type 'loha'"),
    "vera": ("llama", peft.VeraConfig(r=2, target_modules=["q_proj"]), "type 'vera'"),
    "oft": (
        "llama",
        peft.OFTConfig(r=2, oft_block_size=0, target_modules=["q_proj"]),
        "type 'oft'",
    ),
    "tokens": ("llama", lora(trainable_token_indices=[1, 2]), "trainable_token_indices"),
    "activated": ("llama", lora(alora_invocation_tokens=[3]), "alora_invocation_tokens"),
    "replicated": ("llama", lora(layer_replication=[[0, 2], [1, 3]]), "layer_replication"),
    "parameters": (
        "mixtral",
        lora(target_modules=[], target_parameters=["mlp.experts.gate_up_proj"]),
        "target_parameters",
    ),
    "classifier": (
        "llama",
        peft.LoraConfig(task_type="FEATURE_EXTRACTION", r=2, target_modules=QKV),
        "FEATURE_EXTRACTION",
    ),
}


@pytest.mark.parametrize("name", SERVED)
def test_served_types_are_in_blocks_whole(name: str, tmp_path: Path) -> None:
    case = make(tmp_path, *SERVED[name])
    made = case.attached()
    assert case.reason() is None
    assert len(whole(made)) == len(case.tensors)
    assert {ref.digest for b in made.blocks.values() for ref in b.tensors.values()} == {
        ref.digest for ref in case.tensors.values()
    }
    # the base's chain is as it was
    assert [replace(hop, adapters=()) for hop in made.hops] == list(case.base.hops)


@pytest.mark.parametrize("name", KEPT)
def test_other_types_are_kept_and_named(name: str, tmp_path: Path) -> None:
    variant, config, message = KEPT[name]
    case = make(tmp_path, variant, config)
    reason = case.reason()
    assert reason is not None and message in reason
    assert len(whole(case.attached())) == len(case.tensors)


@pytest.mark.parametrize("name", [*SERVED, *KEPT])
def test_detached_adapters_keep_every_tensor(name: str, tmp_path: Path) -> None:
    case = make(tmp_path, *(SERVED[name] if name in SERVED else KEPT[name][:2]))
    made = partition_adapter(case.config, case.tensors, None, None)
    assert len(whole(made)) == len(case.tensors)
    assert all(hop.block == "" and hop.adapters for hop in made.hops)
    model = Model("adapter", made.family, made.hops, (), wants="base")
    assert "'base'" in (why_not_served(model, made.blocks, {}) or "")


def scalings(case: Case) -> dict[str, float]:
    """Alpha over rank by module, from PEFT's own modules."""
    return {
        name.removeprefix("base_model.model."): module.scaling["default"]
        for name, module in case.model.named_modules()
        if isinstance(getattr(module, "scaling", None), dict)
    }


def test_rank_and_alpha_patterns_are_resolved_as_peft_does(tmp_path: Path) -> None:
    config = lora(
        target_modules=["q_proj", "k_proj", "down_proj", "up_proj"],
        rank_pattern={"layers.1.self_attn.q_proj": 3, r"layers\.\d+\.mlp\.down_proj": 4, "proj": 9},
        alpha_pattern={"q_proj": 5, "^model.layers.0.mlp.up_proj": 7, "own_proj": 11},
    )
    case = make(tmp_path, "llama", config)
    made = case.attached()
    found = {
        hop.prefix + path: facts["alpha"] / facts["rank"]
        for hop in made.hops
        for digest in hop.adapters
        for path, facts in made.blocks[digest].spec["modules"].items()
    }
    assert found == scalings(case) and len(set(found.values())) > 3


def test_feedforward_modules_are_resolved_as_peft_does(tmp_path: Path) -> None:
    for number, wanted in enumerate([r".*\.down_proj", ["v_proj"]]):
        config = peft.IA3Config(
            task_type="CAUSAL_LM",
            target_modules=["v_proj", "down_proj"],
            feedforward_modules=wanted,
        )
        case = make(tmp_path / str(number), "llama", config)
        theirs = {
            name.removeprefix("base_model.model."): module.is_feedforward
            for name, module in case.model.named_modules()
            if hasattr(module, "is_feedforward")
        }
        made = case.attached()
        ours = {
            hop.prefix + path: facts["feedforward"]
            for hop in made.hops
            for digest in hop.adapters
            for path, facts in made.blocks[digest].spec["modules"].items()
        }
        assert ours == theirs and len(set(ours.values())) == 2


def test_what_replaces_the_bases_tensors_is_named(tmp_path: Path) -> None:
    made = make(tmp_path, "opt", lora(bias="all")).attached()
    attention = blocks_by_hop(made)["layers.0.attention"]
    assert attention.spec["replaces"]["self_attn.q_proj.base_layer.bias"] == "self_attn.q_proj.bias"
    assert attention.spec["replaces"]["self_attn.out_proj.bias"] == "self_attn.out_proj.bias"
    assert blocks_by_hop(made)["layers.0.mlp"].spec["replaces"]["fc1.bias"] == "fc1.bias"


def test_names_with_the_adapters_name_in_them_are_read_too(tmp_path: Path) -> None:
    case = make(tmp_path, "llama", lora(use_dora=True))
    plain = case.attached()
    for old, new in [
        ("lora_A.weight", "lora_A.default.weight"),
        ("lora_magnitude_vector", "lora_magnitude_vector.default.weight"),
    ]:
        case.tensors = {name.replace(old, new): ref for name, ref in case.tensors.items()}
    assert case.attached() == plain


def test_an_adapter_for_another_base_is_refused(tmp_path: Path) -> None:
    case = make(tmp_path / "a", "llama", lora())
    other = make(tmp_path / "b", "llama, biases", lora())
    with pytest.raises(SourceError, match=r"another base: its tensors are for model\.layers"):
        partition_adapter(case.config, case.tensors, other.base.hops, other.base.blocks)
    gpt2 = make(tmp_path / "c", "gpt2", lora(target_modules=["c_attn"]))
    with pytest.raises(SourceError, match=r"another base: it has .*no such module"):
        partition_adapter(case.config, case.tensors, gpt2.base.hops, gpt2.base.blocks)
    for number, config in enumerate(
        [
            peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
            peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
            peft.IA3Config(task_type="CAUSAL_LM"),
            lora(modules_to_save=["lm_head"]),
        ]
    ):
        case = make(tmp_path / str(number), "llama", config)
        hops, blocks = wider(case.base)
        with pytest.raises(SourceError, match="made for another base"):
            partition_adapter(case.config, case.tensors, hops, blocks)


def wider(base: Partitioned) -> tuple[Any, Any]:
    """The same chain with every tensor and the config twice as wide."""
    hops, blocks = [], {}
    for hop in base.hops:
        old = base.blocks[hop.block]
        tensors = {
            name: replace(ref, shape=tuple(2 * d for d in ref.shape))
            for name, ref in old.tensors.items()
        }
        config = {**old.spec["config"], "hidden_size": 32, "head_dim": 8}
        block = Block(old.kind, {**old.spec, "config": config}, tensors)
        blocks[block.digest] = block
        hops.append(replace(hop, block=block.digest))
    return hops, blocks


def test_config_and_tensors_that_disagree_are_refused(tmp_path: Path) -> None:
    case = make(tmp_path, "llama", lora())
    with pytest.raises(SourceError, match="the rank 3, its tensors have 2"):
        partition_adapter({**case.config, "r": 3}, case.tensors, None, None)
    part = {name: ref for name, ref in case.tensors.items() if "lora_B" not in name}
    with pytest.raises(SourceError, match="incomplete"):
        partition_adapter(case.config, part, None, None)
    with pytest.raises(SourceError, match="no peft_type"):
        partition_adapter({}, case.tensors, None, None)
    with pytest.raises(SourceError, match="no regular expression"):
        partition_adapter({**case.config, "rank_pattern": {"(": 3}}, case.tensors, None, None)


def test_an_adapter_goes_on_a_quantised_base(tmp_path: Path) -> None:
    case = make(tmp_path, "llama", lora())
    config = {**case.base_config, "quantization_config": {"quant_method": "bitsandbytes"}}
    tensors = {
        hop.prefix + name: TensorRef("U8", (7, 1), ref.digest)
        for hop in case.base.hops
        for name, ref in case.base.blocks[hop.block].tensors.items()
    }
    case.base, case.base_config = partition(config, tensors), config
    assert "quantised (bitsandbytes)" in (case.reason() or "")


def test_options_without_effect_do_not_tell_adapters_apart(tmp_path: Path) -> None:
    case = make(tmp_path, "llama", lora())
    plain = case.attached()
    case.config |= {"peft_version": "0.10", "lora_dropout": 0.5, "inference_mode": False}
    case.config.pop("use_qalora")
    assert case.attached() == plain


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("use_qalora", True, "use_qalora"),
        ("init_lora_weights", "pissa", "changes the base"),
        ("new_in_2030", {"a": 1}, "new_in_2030"),
        ("target_modules", ["q_proj"], "does not name self_attn"),
        ("exclude_modules", ["v_proj"], "does not name self_attn.v_proj"),
    ],
)
def test_options_that_are_not_applied_are_named(
    option: str, value: Any, message: str, tmp_path: Path
) -> None:
    case = make(tmp_path, "llama", lora())
    case.config[option] = value
    assert message in (case.reason() or "")


@pytest.mark.parametrize(
    "name",
    [
        *("code-lora-qv", "sentiment-lora-all", "trec-dora", "sentiment-ia3", "trec-prefix"),
    ],
)
def test_the_real_adapters_go_on_their_base(name: str, shared: Path) -> None:
    base_config, base_tensors = read(shared / "family/base")
    base = partition(base_config, base_tensors)
    config, tensors = read(shared / "family" / name, "adapter_model")
    case = Case(base_config, base, config, tensors, None, shared)
    assert case.reason() is None
    assert len(whole(case.attached())) == len(tensors)
    small = partition(*read(shared / "family/small"))
    with pytest.raises(SourceError, match="made for another base"):
        partition_adapter(config, tensors, small.hops, small.blocks)


@pytest.mark.parametrize("name", ["gpt2-legal", "gpt2-medical", "gpt2-sports", "opencalm-1b"])
def test_real_adapters_without_their_base_are_kept_detached(name: str, shared: Path) -> None:
    folder = shared / "adapters" / name
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = {
        key: TensorRef("F32", tuple(value.shape), f"{number:064x}")
        for number, (key, value) in enumerate(
            load_file(folder / "adapter_model.safetensors").items()
        )
    }
    made = partition_adapter(config, tensors, None, None)
    assert len(whole(made)) == len(tensors)
    assert [hop.name for hop in made.hops] == [f"layers.{i}" for i in range(len(made.hops))]


def test_peft_ignores_what_the_config_does_not_target(tmp_path: Path) -> None:
    """Why such an adapter is not served: PEFT would load it and leave the tensors out."""
    case = make(tmp_path, "llama", lora())
    config = json.loads((case.folder / "adapter_config.json").read_text())
    config["target_modules"] = ["q_proj"]
    (case.folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = load_file(case.folder / "adapter_model.safetensors")
    save_file(tensors, case.folder / "adapter_model.safetensors")
    model = peft.PeftModel.from_pretrained(random_model("llama"), case.folder)
    assert not any("v_proj.lora_A" in name for name in model.state_dict())


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_adapter_config_brings_it_down(data: st.DataObject) -> None:
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
        max_leaves=5,
    )
    kinds = ["LORA", "IA3", "LN_TUNING", "PREFIX_TUNING", "PROMPT_TUNING", "LOHA"]
    config = {"peft_type": data.draw(st.sampled_from(kinds)), "r": 2, "num_virtual_tokens": 2}
    keys = st.sampled_from(
        [
            *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules"),
            *("exclude_modules", "feedforward_modules", "bias", "use_dora", "task_type", "x"),
        ]
    )
    for key in data.draw(st.lists(keys, max_size=3)):
        config[key] = data.draw(values)
    module = "base_model.model.model.layers.0.self_attn.q_proj."
    names = [
        *("lora_A.weight", "lora_B.weight", "ia3_l", "lora_embedding_A", "base_layer.bias"),
        *("ln_tuning_layers.weight", "hada_w1_a"),
    ]
    chosen = data.draw(st.lists(st.sampled_from(names), unique=True))
    tensors = {module + name: TensorRef("F32", (2, 2), "a" * 64) for name in chosen}
    if data.draw(st.booleans()):
        tensors["prompt_embeddings"] = TensorRef("F32", (2, 2), "b" * 64)
    try:
        made = partition_adapter(config, tensors, None, None)
    except BlockzooError:
        return
    assert len(whole(made)) == len(tensors)
