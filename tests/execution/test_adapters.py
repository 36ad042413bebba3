"""Every adapter type: the tokens and logits that PEFT gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
)

from blockzoo.execution.executor import Executors

from .adapting import adapter_chain, load_adapter, make_adapter
from .running import Loaded, assert_parity, prompts
from .tiny import VOCABULARY, load, make

_QV = ["q_proj", "v_proj"]
_PREFIX = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
_PROMPT = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)


def _lora(**given: Any) -> LoraConfig:
    return LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "target_modules": _QV, **given})


#: by name: the base and PEFT's configuration
CASES = {
    "lora": ("llama", _lora(lora_alpha=12)),
    "lora-all-linear": ("llama", _lora(target_modules="all-linear")),
    "lora-patterns": (
        "llama",
        _lora(
            target_modules="all-linear",
            rank_pattern={"q_proj": 2, r"layers\.1\.mlp\.up_proj": 6, "^model.layers.2.mlp": 3},
            alpha_pattern={"v_proj": 20, "down_proj": 3},
        ),
    ),
    "lora-rank-stabilised": ("llama", _lora(use_rslora=True, rank_pattern={"v_proj": 9})),
    "lora-one-layer": ("llama", _lora(layers_to_transform=[1, 3])),
    "lora-bias-all": ("llama-biases", _lora(bias="all")),
    "lora-bias-own": ("llama-biases", _lora(bias="lora_only")),
    "lora-bias-all-opt": ("opt-norm-before", _lora(bias="all")),
    "lora-own-bias": ("llama-biases", _lora(lora_bias=True)),
    "lora-conv1d": ("gpt2", _lora(target_modules=["c_attn", "c_proj", "c_fc"])),
    "lora-embedding": ("llama", _lora(target_modules=["embed_tokens", "q_proj"])),
    "lora-embedding-tied": ("gpt2", _lora(target_modules=["wte", "c_attn"])),
    "lora-embedding-scaled": ("gemma2", _lora(target_modules=["embed_tokens", "o_proj"])),
    "lora-head": ("llama", _lora(target_modules=["lm_head", "q_proj"])),
    "lora-modules-to-save": ("llama", _lora(modules_to_save=["lm_head", "embed_tokens"])),
    "lora-saved-tied-embedding": (
        "gpt2",
        _lora(target_modules=["c_attn"], modules_to_save=["wte"]),
    ),
    "lora-saved-tied-head": ("gpt2", _lora(target_modules=["c_attn"], modules_to_save=["lm_head"])),
    "lora-saved-both-tied": (
        "gpt2",
        _lora(target_modules=["c_attn"], modules_to_save=["wte"], ensure_weight_tying=True),
    ),
    "lora-norms-saved": ("llama", _lora(modules_to_save=["input_layernorm", "norm"])),
    "lora-whole-layers": ("neox-parallel", _lora(target_modules=["query_key_value", "dense"])),
    "lora-mixture": ("mixtral", _lora(target_modules=["q_proj", "o_proj"])),
    "lora-fused": ("phi3", _lora(target_modules=["qkv_proj", "gate_up_proj"])),
    "dora": ("llama", _lora(use_dora=True)),
    "dora-biases": ("llama-biases", _lora(use_dora=True, target_modules="all-linear")),
    "dora-conv1d": ("gpt2", _lora(use_dora=True, target_modules=["c_attn", "c_proj"])),
    "dora-embedding": ("llama", _lora(use_dora=True, target_modules=["embed_tokens", "k_proj"])),
    "dora-embedding-scaled": ("gemma2", _lora(use_dora=True, target_modules=["embed_tokens"])),
    "ia3": (
        "llama",
        IA3Config(
            task_type="CAUSAL_LM",
            target_modules=["k_proj", "v_proj", "down_proj"],
            feedforward_modules=["down_proj"],
        ),
    ),
    "ia3-conv1d": (
        "gpt2",
        IA3Config(
            task_type="CAUSAL_LM",
            target_modules=["c_attn", "mlp.c_proj"],
            feedforward_modules=["mlp.c_proj"],
        ),
    ),
    "norms": ("llama", LNTuningConfig(task_type="CAUSAL_LM")),
    "norms-biases": ("gpt2", LNTuningConfig(task_type="CAUSAL_LM")),
    "prefix": ("llama", _PREFIX),
    "prefix-positions": ("gpt2", _PREFIX),
    "prefix-opt": ("opt-norm-before", _PREFIX),
    "prefix-sliding": ("mistral-sliding", _PREFIX),
    "prefix-gemma": (
        "gemma2",
        PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=3,
            num_attention_heads=2,
            token_dim=16,
        ),
    ),
    "prompt": ("llama", _PROMPT),
    "prompt-positions": ("gpt2", _PROMPT),
    "prompt-opt": ("opt-norm-before", _PROMPT),
    "prompt-scaled": ("gemma2", _PROMPT),
}

SHARED_ADAPTERS = [
    "code-lora-qv",
    "sentiment-lora-all",
    "trec-dora",
    "sentiment-ia3",
    "trec-prefix",
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_an_adapter_answers_as_peft_does(name: str, tmp_path: Path) -> None:
    base_name, config = CASES[name]
    base = make(base_name, tmp_path)
    adapter = make_adapter(base, config, tmp_path / "adapter")
    reference = load_adapter(base, adapter)
    ids = prompts(VOCABULARY)
    with torch.no_grad():
        plain = load(base)(ids).logits
        adapted = reference(input_ids=ids).logits[:, -ids.shape[1] :]
    assert (plain - adapted).abs().max() > 1e-2, "an adapter that changes nothing proves nothing"
    assert_parity(adapter_chain(Loaded(base), adapter), reference, ids)


@pytest.mark.parametrize("name", SHARED_ADAPTERS)
def test_a_trained_adapter_answers_as_peft_does(name: str, shared: Path) -> None:
    base = shared / "family" / "base"
    adapter = shared / "family" / name
    chain = adapter_chain(Loaded(base), adapter)
    assert_parity(chain, load_adapter(base, adapter), prompts(4096))


def test_a_base_answers_the_same_after_its_adapters_have_run(shared: Path) -> None:
    executors = Executors()
    base = Loaded(shared / "family" / "base")
    ids = prompts(4096)
    chain = base.chain(executors)
    before = chain(ids)
    for name in SHARED_ADAPTERS:
        adapter_chain(base, shared / "family" / name, executors)(ids)
    assert torch.equal(chain(ids), before)
    assert len(executors) == 4
