"""A small random model of each family, with what sets the family apart made visible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 97

_IDS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_LLAMA: dict[str, Any] = {
    **_IDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_GEMMA = {**_LLAMA, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 5}
_GPT2 = {**_IDS, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
_NEOX = {key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"}
_OPT = {
    **_IDS,
    "hidden_size": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 2.5, 3.0, 4.0],
}

#: by name: the model type, its configuration, and how many executors its chain needs
TINY: dict[str, tuple[str, dict[str, Any], int]] = {
    "llama": ("llama", _LLAMA, 4),
    "llama-biases": ("llama", _LLAMA | {"attention_bias": True, "mlp_bias": True}, 4),
    "llama-odd-tied": (
        "llama",
        _LLAMA
        | {
            "hidden_size": 36,
            "head_dim": 8,
            "intermediate_size": 50,
            "tie_word_embeddings": True,
        },
        4,
    ),
    "llama-llama3-rope": ("llama", _LLAMA | {"rope_scaling": _LLAMA3_ROPE}, 4),
    "llama-dynamic-rope": (
        "llama",
        _LLAMA
        | {"max_position_embeddings": 16, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        4,
    ),
    "mistral-sliding": ("mistral", _LLAMA | {"sliding_window": 6}, 4),
    "mistral-full": ("mistral", _LLAMA | {"sliding_window": None}, 4),
    "qwen2": ("qwen2", _LLAMA, 4),
    "qwen2-half-sliding": (
        "qwen2",
        _LLAMA | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
        5,
    ),
    "qwen3": ("qwen3", _LLAMA | {"head_dim": 16}, 4),
    "gemma2": ("gemma2", _GEMMA, 5),
    "gemma3": ("gemma3_text", _GEMMA | {"num_hidden_layers": 7}, 5),
    "phi3": ("phi3", _LLAMA | {"sliding_window": 6}, 4),
    "phi3-longrope": (
        "phi3",
        _LLAMA
        | {
            "max_position_embeddings": 128,
            "original_max_position_embeddings": 64,
            "rope_scaling": _LONGROPE,
        },
        4,
    ),
    "gpt2": ("gpt2", _GPT2, 4),
    "gpt2-inverse-depth": (
        "gpt2",
        _GPT2 | {"scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False},
        6,
    ),
    "neox-parallel": ("gpt_neox", _NEOX | {"use_parallel_residual": True}, 3),
    "neox-sequential": ("gpt_neox", _NEOX | {"use_parallel_residual": False}, 4),
    "opt-norm-before": ("opt", _OPT, 4),
    "opt-norm-after-projected": (
        "opt",
        _OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 16},
        3,
    ),
    "mixtral": (
        "mixtral",
        _LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6},
        4,
    ),
}


def make(name: str, folder: Path) -> Path:
    """Save the tiny model to a folder of its name; weights large enough to matter."""
    model_type, values, _ = TINY[name]
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **values))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(folder / name)
    return folder / name


def load(folder: Path) -> Any:
    """The model in float32, as transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
