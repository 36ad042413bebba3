"""Checkpoints to chains: every tensor in one block, by transformers' names, in order."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from partition_models import CONFIGS, family_name, random_model, read, saved
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from blockzoo.errors import BlockzooError, SourceError
from blockzoo.partition import Partitioned, check_shapes, partition
from blockzoo.tensors import TensorRef


def whole(chain: Partitioned) -> list[str]:
    """All full names in all blocks of a chain, as often as they come."""
    return [hop.prefix + name for hop in chain.hops for name in chain.blocks[hop.block].tensors]


@pytest.mark.parametrize("variant", CONFIGS)
def test_every_tensor_is_in_one_block_under_the_models_name(variant: str, tmp_path: Path) -> None:
    model = random_model(variant)
    config, tensors = saved(model, tmp_path)
    chain = partition(config, tensors)
    names = whole(chain)
    assert chain.family == family_name(variant)
    assert len(names) == len(set(names)) == len(tensors)
    if variant != "mixtral":  # experts are fused in the model, not in its checkpoint
        assert set(names) <= set(model.state_dict())
    hops = [hop.name for hop in chain.hops]
    assert hops[0] == "embedding" and hops[-1] == "head" and len(set(hops)) == len(hops)
    assert hops[1:-1] == sorted(hops[1:-1], key=lambda name: (int(name.split(".")[1]), name))


def test_layers_are_split_where_they_are_sequential(tmp_path: Path) -> None:
    def kinds(variant: str) -> set[str]:
        chain = partition(*saved(random_model(variant), tmp_path / variant))
        return {hop.kind for hop in chain.hops} - {"embedding", "head"}

    assert kinds("llama") == kinds("gemma2") == kinds("opt") == {"attention", "mlp"}
    assert kinds("mixtral") == {"attention", "moe"}
    assert kinds("gpt_neox") == kinds("opt, projected") == {"layer"}
    assert kinds("gpt_neox, sequential") == {"attention", "mlp"}


@pytest.mark.parametrize("variant", ["llama", "gpt2", "gpt_neox", "opt", "gemma3", "mixtral"])
def test_a_checkpoint_of_the_bare_model_makes_the_same_blocks(variant: str, tmp_path: Path) -> None:
    model = random_model(variant)
    config, tensors = saved(model, tmp_path / "lm")
    _, bare = saved(model.base_model, tmp_path / "bare")
    assert set(bare) != set(tensors)
    ours, theirs = partition(config, tensors), partition(config, bare)
    same = {hop.name: hop.block for hop in ours.hops}
    for hop in theirs.hops[:-1]:
        assert same[hop.name] == hop.block


def test_embed_out_is_the_head_of_gpt_neox(tmp_path: Path) -> None:
    config, tensors = saved(random_model("gpt_neox"), tmp_path)
    old = {name.replace("lm_head.", "embed_out."): ref for name, ref in tensors.items()}
    assert "embed_out.weight" in old
    new = {name.replace("embed_out.", "lm_head."): ref for name, ref in tensors.items()}
    assert partition(config, old).hops == partition(config, new).hops


def test_a_grown_vocabulary_changes_no_layer(shared: Path) -> None:
    base = partition(*read(shared / "family/base"))
    grown = partition(*read(shared / "family/chat-added-tokens"))
    # layers 6 and 7 were trained
    assert base.hops[1:13] == grown.hops[1:13]
    assert base.hops[0].block != grown.hops[0].block


@pytest.mark.parametrize("folder", ["family/base", "family/small", "checkpoints/capp-gpt"])
def test_all_of_a_real_model_is_in_its_chain(folder: str, shared: Path) -> None:
    config, tensors = read(shared / folder)
    chain = partition(config, tensors)
    assert sorted(whole(chain)) == sorted(tensors)
    assert list(chain.ties) == ["lm_head.weight"]


def test_bert_and_t5_keep_whole_layers_by_number(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bert = BertForMaskedLM(
        BertConfig(
            vocab_size=32,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=16,
        )
    )
    config, tensors = saved(bert, tmp_path / "bert")
    chain = partition(config, tensors)
    assert chain.family == "" and sorted(whole(chain)) == sorted(tensors)
    assert [hop.name for hop in chain.hops] == ["embedding", "layers.0", "layers.1", "head"]
    assert chain.hops[1].prefix == "bert.encoder.layer.0."

    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=32, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=2)
    )
    config, tensors = saved(t5, tmp_path / "t5")
    chain = partition(config, tensors)
    assert sorted(whole(chain)) == sorted(tensors)
    assert [hop.name for hop in chain.hops] == [
        *("embedding", "encoder.block.0", "encoder.block.1"),
        *("decoder.block.0", "decoder.block.1", "head"),
    ]


def some(shape: tuple[int, ...] = (2,), digest: str = "a") -> TensorRef:
    return TensorRef("F32", shape, digest * 64)


def test_names_that_look_alike_stay_apart() -> None:
    names = [
        *("model.layers.0.x.weight", "model.layers.00.x.weight", "layers.0.x.weight"),
        *("model.layers.0", "model.layers.0.", "classifier.0.weight", "", "."),
    ]
    tensors = {name: some(digest=str(i)) for i, name in enumerate(names)}
    for config in ({"model_type": "llama"}, {}):
        assert sorted(whole(partition(config, tensors))) == sorted(names)


def test_a_checkpoint_without_config_or_tensors() -> None:
    assert partition({}, {}).hops == ()
    chain = partition({}, {"weight": some()})
    assert [hop.name for hop in chain.hops] == ["head"]


@pytest.mark.parametrize("variant", ["llama", "llama, biases", "gpt2", "gpt_neox", "opt"])
@pytest.mark.parametrize("stored", ["both equal", "both differ", "head only", "tokens only"])
@pytest.mark.parametrize("tie", [True, False, None])
def test_ties_are_resolved_as_from_pretrained_does(
    variant: str, stored: str, tie: bool | None, tmp_path: Path
) -> None:
    model = random_model(variant)
    config = model.config.to_dict()
    if tie is None:
        del config["tie_word_embeddings"]
    else:
        config["tie_word_embeddings"] = tie
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    tokens = next(n for n in state if re.search(r"(embed_tokens|wte|embed_in)\.weight$", n))
    state["lm_head.weight"] = state[tokens].clone()
    if stored in ("both differ", "head only"):
        state["lm_head.weight"] += 1
    if stored == "head only":
        del state[tokens]
    if stored == "tokens only":
        del state["lm_head.weight"]

    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    head, embedding = theirs.get_output_embeddings().weight, theirs.get_input_embeddings().weight
    tied = head.data_ptr() == embedding.data_ptr()

    chain = partition(*read(tmp_path))
    assert bool(chain.ties) == tied
    if tied:
        name, source = next(iter(chain.ties.items()))
        assert torch.equal(head, state[source]) and {name, source} == {"lm_head.weight", tokens}


def test_config_and_shapes_that_disagree_are_refused(tmp_path: Path) -> None:
    config, tensors = saved(random_model("llama"), tmp_path)
    for change, name in [
        ({"num_attention_heads": 2}, "self_attn"),
        ({"intermediate_size": 25}, "mlp"),
        ({"vocab_size": 47}, "embed_tokens|lm_head"),
    ]:
        with pytest.raises(SourceError, match=rf"disagree: \S*({name})\S* should be \["):
            partition({**config, **change}, tensors)
    check_shapes({**config, "intermediate_size": 25, "quantization_config": {"a": 1}}, tensors)
    with pytest.raises(SourceError, match="layer_types names 1 layers, num_hidden_layers is 3"):
        partition(
            {**CONFIGS["qwen2"], "layer_types": ["full_attention"]},
            {},
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": "four"}, "num_attention_heads is 'four', expected an integer"),
        ({"hidden_size": 0}, "hidden_size is '0', expected a positive"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"hidden_size": None}, "hidden_size"),
        ({"mlp_bias": 1}, "expected true or false"),
        ({"hidden_act": 3}, "expected a name"),
        ({"rope_parameters": [1]}, "rope_parameters"),
        ({"rope_scaling": {"type": 5}}, "rope_type"),
        ({"x": float("nan")}, "cannot be read"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        partition({**CONFIGS["llama"], **change}, {})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_config_brings_it_down(data: st.DataObject) -> None:
    config = dict(CONFIGS[data.draw(st.sampled_from(sorted(CONFIGS)))])
    keys = st.sampled_from(
        [*config, "rope_parameters", "rope_scaling", "layer_types", "rope_theta", "head_dim"]
    )
    for key in data.draw(st.lists(keys, min_size=1, max_size=3)):
        config[key] = data.draw(JSON)
    names = ["model.layers.0.a.weight", "model.layers.1.self_attn.q_proj.weight", "lm_head.weight"]
    tensors = {name: some((4, 4)) for name in names}
    try:
        chain = partition(config, tensors)
    except BlockzooError:
        return
    assert sorted(whole(chain)) == sorted(names)


def test_torch_is_not_imported() -> None:
    code = (
        "import sys, blockzoo.partition\n"
        "assert not {'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
