"""The families whose layers are split and served, as data.

To add one, add an entry here; a test holds every entry against transformers: its defaults, its
layer types, its tensors and their shapes. Values are those of transformers 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blockzoo.partition.family import Family, RopeDefaults, Sublayer

_FULL, _SLIDING = "full_attention", "sliding_attention"
_ATTENTION_BIAS: Mapping[str, Any] = {"attention_bias": True}
_MLP_BIAS: Mapping[str, Any] = {"mlp_bias": True}


def _from_a_layer_on(config: Mapping[str, Any]) -> list[str]:
    """Qwen: sliding windows, where used, from layer ``max_window_layers`` on."""
    sliding = config["use_sliding_window"] and config["sliding_window"] is not None
    return [
        _SLIDING if sliding and i >= config["max_window_layers"] else _FULL
        for i in range(config["num_hidden_layers"])
    ]


def _every_other(config: Mapping[str, Any]) -> list[str]:
    """Gemma 2: sliding and full in turn."""
    return [_FULL if i % 2 else _SLIDING for i in range(config["num_hidden_layers"])]


def _one_in_n(config: Mapping[str, Any]) -> list[str]:
    """Gemma 3: full at every ``sliding_window_pattern``-th layer."""
    every = config["sliding_window_pattern"]
    return [_SLIDING if (i + 1) % every else _FULL for i in range(config["num_hidden_layers"])]


_ATTENTION = Sublayer("attention", "input_layernorm", ("self_attn",))
_MLP = Sublayer("mlp", "post_attention_layernorm", ("mlp",))
_GEMMA_HALVES = (
    Sublayer("attention", "input_layernorm", ("self_attn",), "post_attention_layernorm"),
    Sublayer("mlp", "pre_feedforward_layernorm", ("mlp",), "post_feedforward_layernorm"),
)

_QUERIES, _KEYS = "num_attention_heads*head_dim", "num_key_value_heads*head_dim"
_ATTENTION_SHAPES = {
    "input_layernorm.weight": ("hidden_size",),
    "self_attn.q_proj.weight": (_QUERIES, "hidden_size"),
    "self_attn.k_proj.weight": (_KEYS, "hidden_size"),
    "self_attn.v_proj.weight": (_KEYS, "hidden_size"),
    "self_attn.o_proj.weight": ("hidden_size", _QUERIES),
    "post_attention_layernorm.weight": ("hidden_size",),
}
_QKV_BIAS_SHAPES = {
    "self_attn.q_proj.bias": (_QUERIES,),
    "self_attn.k_proj.bias": (_KEYS,),
    "self_attn.v_proj.bias": (_KEYS,),
}
_BIAS_SHAPES = _QKV_BIAS_SHAPES | {"self_attn.o_proj.bias": ("hidden_size",)}
_HEAD_NORM_SHAPES = {
    "self_attn.q_norm.weight": ("head_dim",),
    "self_attn.k_norm.weight": ("head_dim",),
}
_MLP_SHAPES = {
    "mlp.gate_proj.weight": ("intermediate_size", "hidden_size"),
    "mlp.up_proj.weight": ("intermediate_size", "hidden_size"),
    "mlp.down_proj.weight": ("hidden_size", "intermediate_size"),
}
_MLP_BIAS_SHAPES = {
    "mlp.gate_proj.bias": ("intermediate_size",),
    "mlp.up_proj.bias": ("intermediate_size",),
    "mlp.down_proj.bias": ("hidden_size",),
}
_GEMMA_NORM_SHAPES = {
    "pre_feedforward_layernorm.weight": ("hidden_size",),
    "post_feedforward_layernorm.weight": ("hidden_size",),
}
_OUTER_SHAPES = {
    "model.embed_tokens.weight": ("vocab_size", "hidden_size"),
    "model.norm.weight": ("hidden_size",),
    "lm_head.weight": ("vocab_size", "hidden_size"),
}
_ATTENTION_BIAS_ONLY_IF = dict.fromkeys(_BIAS_SHAPES, _ATTENTION_BIAS)

#: buffers that older versions of transformers wrote and newer ones recompute
_OLD_BUFFERS = ("rotary_emb.inv_freq",)

_LLAMA = Family(
    name="llama",
    model_types=("llama",),
    root="model.",
    layers="layers.",
    tokens="embed_tokens",
    head=("norm",),
    sublayers=(_ATTENTION, _MLP),
    shapes=_ATTENTION_SHAPES | _MLP_SHAPES | _BIAS_SHAPES | _MLP_BIAS_SHAPES,
    outer_shapes=_OUTER_SHAPES,
    only_if=_ATTENTION_BIAS_ONLY_IF | dict.fromkeys(_MLP_BIAS_SHAPES, _MLP_BIAS),
    defaults={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "head_dim": None,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    },
    rope=RopeDefaults(),
    ignored=_OLD_BUFFERS,
)

_MISTRAL = Family(
    name="mistral",
    model_types=("mistral",),
    root="model.",
    layers="layers.",
    tokens="embed_tokens",
    head=("norm",),
    sublayers=(_ATTENTION, _MLP),
    shapes=_ATTENTION_SHAPES | _MLP_SHAPES,
    outer_shapes=_OUTER_SHAPES,
    defaults={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": None,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "sliding_window": 4096,
    },
    rope=RopeDefaults(),
    ignored=_OLD_BUFFERS,
)

_QWEN2 = Family(
    name="qwen2",
    model_types=("qwen2",),
    root="model.",
    layers="layers.",
    tokens="embed_tokens",
    head=("norm",),
    sublayers=(_ATTENTION, _MLP),
    layer_types=_from_a_layer_on,
    shapes=_ATTENTION_SHAPES | _MLP_SHAPES | _QKV_BIAS_SHAPES,
    outer_shapes=_OUTER_SHAPES,
    defaults={
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    rope=RopeDefaults(),
    ignored=_OLD_BUFFERS,
)

_QWEN3 = Family(
    name="qwen3",
    model_types=("qwen3",),
    root="model.",
    layers="layers.",
    tokens="embed_tokens",
    head=("norm",),
    sublayers=(_ATTENTION, _MLP),
    layer_types=_from_a_layer_on,
    shapes=_ATTENTION_SHAPES | _MLP_SHAPES | _HEAD_NORM_SHAPES | _BIAS_SHAPES,
    outer_shapes=_OUTER_SHAPES,
    only_if=_ATTENTION_BIAS_ONLY_IF,
    defaults={
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    rope=RopeDefaults(),
    ignored=_OLD_BUFFERS,
)

_GEMMA2 = Family(
    name="gemma2",
    model_types=("gemma2",),
    root="model.",
    layers="layers.",
    tokens="embed_tokens",
    head=("norm",),
    sublayers=_GEMMA_HALVES,
    layer_types=_every_other,
    shapes=_ATTENTION_SHAPES | _MLP_SHAPES | _GEMMA_NORM_SHAPES | _BIAS_SHAPES,
    outer_shapes=_OUTER_SHAPES,
    only_if=_ATTENTION_BIAS_ONLY_IF,
    defaults={
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
        "use_bidirectional_attention": None,
    },
    rope=RopeDefaults(),
    ignored=_OLD_BUFFERS,
)

_GEMMA3 = Family(
    name="gemma3",
    model_types=("gemma3_text",),
    root="model.",
    layers="layers.",
    tokens="embed_tokens",
    head=("norm",),
    sublayers=_GEMMA_HALVES,
    layer_types=_one_in_n,
    shapes=_ATTENTION_SHAPES | _MLP_SHAPES | _GEMMA_NORM_SHAPES | _HEAD_NORM_SHAPES | _BIAS_SHAPES,
    outer_shapes=_OUTER_SHAPES,
    only_if=_ATTENTION_BIAS_ONLY_IF,
    defaults={
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
        "use_bidirectional_attention": False,
    },
    rope=RopeDefaults(theta=1_000_000.0, local_theta=10_000.0),
    ignored=_OLD_BUFFERS,
)

_PHI3 = Family(
    name="phi3",
    model_types=("phi3",),
    root="model.",
    layers="layers.",
    tokens="embed_tokens",
    head=("norm",),
    sublayers=(_ATTENTION, _MLP),
    shapes={
        "input_layernorm.weight": ("hidden_size",),
        "self_attn.qkv_proj.weight": (f"{_QUERIES}+2*{_KEYS}", "hidden_size"),
        "self_attn.o_proj.weight": ("hidden_size", _QUERIES),
        "post_attention_layernorm.weight": ("hidden_size",),
        "mlp.gate_up_proj.weight": ("2*intermediate_size", "hidden_size"),
        "mlp.down_proj.weight": ("hidden_size", "intermediate_size"),
    },
    outer_shapes=_OUTER_SHAPES,
    defaults={
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "sliding_window": None,
    },
    rope=RopeDefaults(partial=1.0, renamed={"su": "longrope", "yarn": "longrope"}),
    ignored=_OLD_BUFFERS,
)

_GPT2 = Family(
    name="gpt2",
    model_types=("gpt2",),
    root="transformer.",
    layers="h.",
    tokens="wte",
    positions="wpe",
    head=("ln_f",),
    sublayers=(Sublayer("attention", "ln_1", ("attn",)), Sublayer("mlp", "ln_2", ("mlp",))),
    split_if={"add_cross_attention": False},
    shapes={
        "ln_1.weight": ("n_embd",),
        "ln_1.bias": ("n_embd",),
        # Conv1D keeps its weights as (in, out)
        "attn.c_attn.weight": ("n_embd", "3*n_embd"),
        "attn.c_attn.bias": ("3*n_embd",),
        "attn.c_proj.weight": ("n_embd", "n_embd"),
        "attn.c_proj.bias": ("n_embd",),
        "ln_2.weight": ("n_embd",),
        "ln_2.bias": ("n_embd",),
        "mlp.c_fc.weight": ("n_embd", "n_inner"),
        "mlp.c_fc.bias": ("n_inner",),
        "mlp.c_proj.weight": ("n_inner", "n_embd"),
        "mlp.c_proj.bias": ("n_embd",),
    },
    outer_shapes={
        "transformer.wte.weight": ("vocab_size", "n_embd"),
        "transformer.wpe.weight": ("n_positions", "n_embd"),
        "transformer.ln_f.weight": ("n_embd",),
        "transformer.ln_f.bias": ("n_embd",),
        "lm_head.weight": ("vocab_size", "n_embd"),
    },
    defaults={
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
    aliases={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    ignored=("attn.bias", "attn.masked_bias"),
)

_GPT_NEOX = Family(
    name="gpt_neox",
    model_types=("gpt_neox",),
    root="gpt_neox.",
    layers="layers.",
    tokens="embed_in",
    head=("final_layer_norm",),
    sublayers=(
        Sublayer("attention", "input_layernorm", ("attention",)),
        Sublayer("mlp", "post_attention_layernorm", ("mlp",)),
    ),
    split_if={"use_parallel_residual": False},
    cache_argument="layer_past",
    shapes={
        "input_layernorm.weight": ("hidden_size",),
        "input_layernorm.bias": ("hidden_size",),
        "attention.query_key_value.weight": ("3*hidden_size", "hidden_size"),
        "attention.query_key_value.bias": ("3*hidden_size",),
        "attention.dense.weight": ("hidden_size", "hidden_size"),
        "attention.dense.bias": ("hidden_size",),
        "post_attention_layernorm.weight": ("hidden_size",),
        "post_attention_layernorm.bias": ("hidden_size",),
        "mlp.dense_h_to_4h.weight": ("intermediate_size", "hidden_size"),
        "mlp.dense_h_to_4h.bias": ("intermediate_size",),
        "mlp.dense_4h_to_h.weight": ("hidden_size", "intermediate_size"),
        "mlp.dense_4h_to_h.bias": ("hidden_size",),
    },
    outer_shapes={
        "gpt_neox.embed_in.weight": ("vocab_size", "hidden_size"),
        "gpt_neox.final_layer_norm.weight": ("hidden_size",),
        "gpt_neox.final_layer_norm.bias": ("hidden_size",),
        "lm_head.weight": ("vocab_size", "hidden_size"),
    },
    only_if={
        "attention.query_key_value.bias": _ATTENTION_BIAS,
        "attention.dense.bias": _ATTENTION_BIAS,
    },
    defaults={
        "vocab_size": 50432,
        "hidden_size": 6144,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "intermediate_size": 24576,
        "hidden_act": "gelu",
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "use_parallel_residual": True,
        "attention_bias": True,
    },
    renames={"embed_out.": "lm_head."},
    rope=RopeDefaults(theta_key="rotary_emb_base", partial_key="rotary_pct", partial=0.25),
    ignored=(*_OLD_BUFFERS, "attention.bias", "attention.masked_bias"),
)

_OPT = Family(
    name="opt",
    model_types=("opt",),
    root="model.decoder.",
    layers="layers.",
    tokens="embed_tokens",
    positions="embed_positions",
    project="project_in",
    head=("final_layer_norm", "project_out"),
    sublayers=(
        Sublayer("attention", "self_attn_layer_norm", ("self_attn",)),
        Sublayer("mlp", "final_layer_norm", ("fc1", "activation_fn", "fc2")),
    ),
    split_if={"do_layer_norm_before": True},
    shapes={
        "self_attn_layer_norm.weight": ("hidden_size",),
        "self_attn_layer_norm.bias": ("hidden_size",),
        "self_attn.q_proj.weight": ("hidden_size", "hidden_size"),
        "self_attn.q_proj.bias": ("hidden_size",),
        "self_attn.k_proj.weight": ("hidden_size", "hidden_size"),
        "self_attn.k_proj.bias": ("hidden_size",),
        "self_attn.v_proj.weight": ("hidden_size", "hidden_size"),
        "self_attn.v_proj.bias": ("hidden_size",),
        "self_attn.out_proj.weight": ("hidden_size", "hidden_size"),
        "self_attn.out_proj.bias": ("hidden_size",),
        "final_layer_norm.weight": ("hidden_size",),
        "final_layer_norm.bias": ("hidden_size",),
        "fc1.weight": ("ffn_dim", "hidden_size"),
        "fc1.bias": ("ffn_dim",),
        "fc2.weight": ("hidden_size", "ffn_dim"),
        "fc2.bias": ("hidden_size",),
    },
    outer_shapes={
        "model.decoder.embed_tokens.weight": ("vocab_size", "word_embed_proj_dim"),
        # the first two rows stand before the first position
        "model.decoder.embed_positions.weight": ("max_position_embeddings+2", "hidden_size"),
        "model.decoder.project_in.weight": ("hidden_size", "word_embed_proj_dim"),
        "model.decoder.project_out.weight": ("word_embed_proj_dim", "hidden_size"),
        "model.decoder.final_layer_norm.weight": ("hidden_size",),
        "model.decoder.final_layer_norm.bias": ("hidden_size",),
        "lm_head.weight": ("vocab_size", "word_embed_proj_dim"),
    },
    only_if={
        "_proj.bias": {"enable_bias": True},
        "fc1.bias": {"enable_bias": True},
        "fc2.bias": {"enable_bias": True},
        "layer_norm.weight": {"layer_norm_elementwise_affine": True},
        "layer_norm.bias": {"layer_norm_elementwise_affine": True},
        "decoder.final_layer_norm.weight": {
            "layer_norm_elementwise_affine": True,
            "do_layer_norm_before": True,
            "_remove_final_layer_norm": False,
        },
        "decoder.final_layer_norm.bias": {
            "layer_norm_elementwise_affine": True,
            "do_layer_norm_before": True,
            "_remove_final_layer_norm": False,
        },
        "project_in.weight": {"projected": True},
        "project_out.weight": {"projected": True},
    },
    defaults={
        "vocab_size": 50272,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "ffn_dim": 3072,
        "max_position_embeddings": 2048,
        "do_layer_norm_before": True,
        "_remove_final_layer_norm": False,
        "word_embed_proj_dim": None,
        "num_attention_heads": 12,
        "activation_function": "relu",
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "tie_word_embeddings": True,
    },
)

_MIXTRAL = Family(
    name="mixtral",
    model_types=("mixtral",),
    root="model.",
    layers="layers.",
    tokens="embed_tokens",
    head=("norm",),
    sublayers=(
        _ATTENTION,
        Sublayer("moe", "post_attention_layernorm", ("mlp",), stored=("block_sparse_moe.",)),
    ),
    shapes=_ATTENTION_SHAPES
    | {
        "block_sparse_moe.gate.weight": ("num_local_experts", "hidden_size"),
        "block_sparse_moe.experts.*.w1.weight": ("intermediate_size", "hidden_size"),
        "block_sparse_moe.experts.*.w2.weight": ("hidden_size", "intermediate_size"),
        "block_sparse_moe.experts.*.w3.weight": ("intermediate_size", "hidden_size"),
    },
    outer_shapes=_OUTER_SHAPES,
    experts="num_local_experts",
    defaults={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": None,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "sliding_window": None,
        "num_experts_per_tok": 2,
        "num_local_experts": 8,
    },
    aliases={"num_experts": "num_local_experts"},
    rope=RopeDefaults(theta=1_000_000.0),
    ignored=_OLD_BUFFERS,
)

#: by name
FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        _LLAMA,
        _MISTRAL,
        _QWEN2,
        _QWEN3,
        _GEMMA2,
        _GEMMA3,
        _PHI3,
        _GPT2,
        _GPT_NEOX,
        _OPT,
        _MIXTRAL,
    )
}

_BY_MODEL_TYPE = {kind: family for family in FAMILIES.values() for kind in family.model_types}


def family_of_config(config: Mapping[str, Any]) -> Family | None:
    """The family of a config.json, by its ``model_type``; None where unknown."""
    kind = config.get("model_type")
    return _BY_MODEL_TYPE.get(kind) if isinstance(kind, str) else None
