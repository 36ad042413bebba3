"""What can be served, and what is said of the rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from partition_models import CONFIGS, random_model, read, saved

from blockzoo.partition import partition, why_not_served
from blockzoo.records import Model
from blockzoo.tensors import TensorRef


def reason(config: dict[str, Any], tensors: dict[str, TensorRef]) -> str | None:
    chain = partition(config, tensors)
    return why_not_served(
        Model("model", chain.family, chain.hops, (), chain.ties), chain.blocks, config
    )


@pytest.mark.parametrize("variant", CONFIGS)
def test_every_family_is_served(variant: str, tmp_path: Path) -> None:
    assert reason(*saved(random_model(variant), tmp_path)) is None


def test_all_real_models_are_served(shared: Path) -> None:
    folders = [
        p.parent
        for kind in ("family", "checkpoints")
        for p in (shared / kind).glob("*/config.json")
    ]
    assert len(folders) >= 10
    assert [reason(*read(folder)) for folder in folders] == [None] * len(folders)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised (gptq)"),
        ({"model_type": "bert"}, "of the type 'bert'"),
        ({"model_type": None}, "no model_type"),
        ({"num_hidden_layers": 4}, "missing: model.layers.3.input_layernorm.weight"),
        ({"num_hidden_layers": 2}, "no place in a llama model: model.layers.2."),
        ({"num_hidden_layers": 2_000_000_000}, "missing"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "'spiral'"),
        ({"layer_types": ["sliding_attention"] * 3}, "layer_types"),
        ({"layer_types": 5}, "layer_types"),
        ({"pruned_heads": {"1": [0]}}, "pruned_heads"),
        ({"attention_bias": True}, "missing: model.layers.0.self_attn.k_proj.bias"),
    ],
)
def test_what_the_config_asks_for_and_is_not_done_is_named(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config, tensors = saved(random_model("llama"), tmp_path)
    assert message in (reason({**config, **change}, tensors) or "")


def test_missing_and_unexpected_tensors_are_named(tmp_path: Path) -> None:
    config, tensors = saved(random_model("llama"), tmp_path)
    part = {name: ref for name, ref in tensors.items() if "layers.1.mlp" not in name}
    message = "tensors are missing: model.layers.1.mlp.down_proj.weight"
    assert (reason(config, part) or "").startswith(message)
    without_head = {name: ref for name, ref in tensors.items() if name != "lm_head.weight"}
    assert "lm_head.weight" in (reason(config, without_head) or "")
    assert reason({**config, "tie_word_embeddings": True}, without_head) is None
    more = {**tensors, "model.layers.0.self_attn.q_proj.bias": TensorRef("F32", (16,), "a" * 64)}
    assert "no place" in (reason(config, more) or "")
    twice = {**tensors, "layers.0.mlp.up_proj.weight": tensors["model.norm.weight"]}
    assert "no place" in (reason(config, twice) or "")


def test_buffers_of_old_versions_do_not_matter(tmp_path: Path) -> None:
    config, tensors = saved(random_model("llama"), tmp_path / "llama")
    old = TensorRef("F32", (2,), "a" * 64)
    assert reason(config, {**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": old}) is None
    assert reason(config, {**tensors, "v_head.summary.weight": old}) is None
    config, tensors = saved(random_model("gpt2"), tmp_path / "gpt2")
    assert reason(config, {**tensors, "transformer.h.0.attn.bias": old}) is None


def test_integer_weights_are_not_taken_for_floats(tmp_path: Path) -> None:
    config, tensors = saved(random_model("llama"), tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    assert "I8, not floating point" in (
        reason(config, {**tensors, name: replace(tensors[name], dtype="I8")}) or ""
    )
    assert reason(config, {**tensors, name: replace(tensors[name], dtype="BF16")}) is None
