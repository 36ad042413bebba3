"""Tiny random models of each family, and what partition takes in of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from blockzoo.tensors import TensorInfo, TensorRef, tensor_digest

_DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int8: "I8",
    torch.uint8: "U8",
}
_SIZES: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MHA = {k: v for k, v in _SIZES.items() if k != "num_key_value_heads"}
_GPT2 = {"vocab_size": 48, "n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 32}
_IDS = {"bos_token_id": 1, "eos_token_id": 2}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.0],
    "long_factor": [2.0, 3.0],
}

#: config values of each variant, by a name that begins with the family's
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **_SIZES},
    "llama, biases": {
        **{"model_type": "llama", **_SIZES},
        **{"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 6},
    },
    "llama, llama3 rope": {"model_type": "llama", **_SIZES, "rope_parameters": _LLAMA3},
    "mistral": {"model_type": "mistral", **_SIZES, "sliding_window": 8},
    "mistral, full": {"model_type": "mistral", **_SIZES, "sliding_window": None},
    "qwen2": {"model_type": "qwen2", **_SIZES, "tie_word_embeddings": True},
    "qwen2, sliding": {
        **{"model_type": "qwen2", **_SIZES},
        **{"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    },
    "qwen3": {"model_type": "qwen3", **_SIZES, "head_dim": 8, "attention_bias": True},
    "gemma2": {"model_type": "gemma2", **_SIZES, "head_dim": 8, "sliding_window": 8},
    "gemma3": {
        **{"model_type": "gemma3_text", **_SIZES},
        **{"head_dim": 8, "sliding_window": 8, "num_hidden_layers": 7},
    },
    "phi3": {"model_type": "phi3", **_SIZES},
    "phi3, longrope": {
        **{"model_type": "phi3", **_SIZES, "rope_parameters": _LONGROPE},
        **{"max_position_embeddings": 128, "original_max_position_embeddings": 64},
    },
    "gpt2": {"model_type": "gpt2", **_GPT2, **_IDS},
    "gpt2, by depth": {
        **{"model_type": "gpt2", **_GPT2, **_IDS},
        **{"scale_attn_by_inverse_layer_idx": True, "n_inner": 20},
    },
    "gpt_neox": {"model_type": "gpt_neox", **_MHA},
    "gpt_neox, sequential": {
        **{"model_type": "gpt_neox", **_MHA},
        **{"use_parallel_residual": False, "attention_bias": False},
    },
    "opt": {"model_type": "opt", **_MHA, "ffn_dim": 24, "max_position_embeddings": 32},
    "opt, projected": {
        **{"model_type": "opt", **_MHA, "ffn_dim": 24, "max_position_embeddings": 32},
        **{"word_embed_proj_dim": 8, "do_layer_norm_before": False},
    },
    "opt, bare": {
        **{"model_type": "opt", **_MHA, "ffn_dim": 24, "max_position_embeddings": 32},
        **{"enable_bias": False, "layer_norm_elementwise_affine": False},
    },
    "mixtral": {"model_type": "mixtral", **_SIZES, "num_local_experts": 3},
}


def family_name(variant: str) -> str:
    return variant.partition(",")[0]


def config_of(variant: str) -> Any:
    values = dict(CONFIGS[variant])
    return AutoConfig.for_model(values.pop("model_type"), **values)


def random_model(variant: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config_of(variant)).eval()


def ref(tensor: torch.Tensor) -> TensorRef:
    info = TensorInfo(_DTYPES[tensor.dtype], tuple(tensor.shape))
    flat = tensor.detach().contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return TensorRef(info.dtype, info.shape, tensor_digest(info, data))


def read(folder: Path, stem: str = "model") -> tuple[dict[str, Any], dict[str, TensorRef]]:
    """The config and the tensors of a checkpoint in one safetensors file."""
    name = "config.json" if stem == "model" else "adapter_config.json"
    tensors = load_file(folder / f"{stem}.safetensors")
    config = json.loads((folder / name).read_text())
    return config, {key: ref(value) for key, value in tensors.items()}


def saved(model: Any, folder: Path) -> tuple[dict[str, Any], dict[str, TensorRef]]:
    model.save_pretrained(folder)
    return read(folder)
