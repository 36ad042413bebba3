"""What an adapter_config.json of PEFT means: the type, the rank of each module, what is asked for.

Patterns are resolved as PEFT 0.21 resolves them, since the adapter was trained that way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from blockzoo.errors import SourceError
from blockzoo.partition.patterns import may_take_forever

#: the types that are served, and which of their options are applied
APPLIED: Mapping[str, frozenset[str]] = {
    "lora": frozenset(
        {"use_dora", "use_rslora", "fan_in_fan_out", "bias", "lora_bias", "ensure_weight_tying"}
    ),
    "ia3": frozenset({"fan_in_fan_out"}),
    "ln_tuning": frozenset(),
    "prompt_tuning": frozenset(
        {"num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads"}
    ),
    "p_tuning": frozenset({"num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads"}),
    "prefix_tuning": frozenset(
        {"num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads"}
    ),
}

#: types whose tensors are virtual tokens
VIRTUAL = frozenset({"prompt_tuning", "p_tuning", "prefix_tuning"})

#: without effect on an adapter that is loaded, or resolved per module
_LEFT_OUT = frozenset(
    (
        # provenance
        *("peft_type", "base_model_name_or_path", "revision", "auto_mapping", "peft_version"),
        *("inference_mode", "megatron_config", "megatron_core", "runtime_config"),
        # training and initial values
        *("lora_dropout", "eva_config", "corda_config", "lora_ga_config", "loftq_config"),
        *("init_ia3_weights", "init_weights", "prompt_tuning_init", "prompt_tuning_init_text"),
        *("prompt_tuning_init_state_dict_path", "tokenizer_name_or_path", "tokenizer_kwargs"),
        *("encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers"),
        *("encoder_dropout", "prefix_projection", "velora_config"),
        # told by the block's modules and tensors
        *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules"),
        *("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
        "feedforward_modules",
        # read only together with another option
        "qalora_group_size",
    )
)

#: initial values that PEFT makes by changing the base's weights, again when it loads the adapter
_CHANGES_BASE = re.compile(r"pissa|olora|corda|lora_ga|loftq", re.IGNORECASE)


def adapter_type(config: Mapping[str, Any]) -> str:
    """The adapter's type in lower case, such as ``"lora"``.

    Raises
    ------
    SourceError
        Where the config names none.
    """
    kind = config.get("peft_type")
    if not isinstance(kind, str) or not kind:
        raise SourceError(
            "adapter_config.json has no peft_type, so what the tensors mean is not known",
            hint="only adapters saved by PEFT are read",
        )
    return kind.lower()


def options(config: Mapping[str, Any]) -> dict[str, Any]:
    """What an adapter block's spec keeps of the config: the options that are set and matter."""
    kept = {key: value for key, value in config.items() if key not in _LEFT_OUT and value}
    if kept.get("bias") == "none":
        del kept["bias"]
    if kept.get("task_type") == "CAUSAL_LM":
        del kept["task_type"]
    if kept.get("num_transformer_submodules") == 1:
        del kept["num_transformer_submodules"]
    if not _CHANGES_BASE.match(str(kept.get("init_lora_weights", ""))):
        kept.pop("init_lora_weights", None)
    return kept


def not_applied(kind: str, kept: Mapping[str, Any]) -> str | None:
    """Why an adapter of this type with these options is not served; None where it is."""
    if kind not in APPLIED:
        return f"adapters of the type {kind!r} are kept, but not run"
    if "init_lora_weights" in kept:
        return f"init_lora_weights={kept['init_lora_weights']!r} changes the base model's weights"
    if "task_type" in kept:
        return f"it was made for the task {kept['task_type']}, not for a causal language model"
    others = sorted(set(kept) - APPLIED[kind])
    if others:
        return f"its option {others[0]} is not applied (it is {str(kept[others[0]])[:60]})"
    if kept.get("bias", "all") not in ("all", "lora_only"):
        return f"its option bias is {str(kept['bias'])[:60]!r}, which is not known"
    return None


def rank_and_alpha(config: Mapping[str, Any], module: str) -> tuple[int, float]:
    """The rank and alpha of a LoRA module, by its full name in transformers' model.

    Raises
    ------
    SourceError
        Where either is not a number.
    """
    ranks, alphas = _mapping(config, "rank_pattern"), _mapping(config, "alpha_pattern")
    rank = ranks.get(_pattern_key(ranks, module), config.get("r", 8))
    alpha = alphas.get(_pattern_key(alphas, module), config.get("lora_alpha", 8))
    if isinstance(rank, bool) or not isinstance(rank, int) or rank <= 0:
        raise SourceError(f"adapter_config.json: the rank of {module} is {str(rank)[:40]!r}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise SourceError(f"adapter_config.json: the alpha of {module} is {str(alpha)[:40]!r}")
    return rank, float(alpha)


def is_feedforward(config: Mapping[str, Any], module: str) -> bool:
    """Whether IA³ scales the module's input, not its output."""
    given = config.get("feedforward_modules")
    if isinstance(given, str):
        return _matches(re.fullmatch, given, module)
    return any(module.endswith(name) for name in _names(given))


def is_targeted(config: Mapping[str, Any], module: str) -> bool:
    """Whether PEFT puts the adapter on this module; what it does not, it ignores in the file."""
    excluded, targets = config.get("exclude_modules"), config.get("target_modules")
    if excluded and _listed(excluded, module):
        return False
    return not targets or targets == "all-linear" or _listed(targets, module)


def _listed(given: Any, module: str) -> bool:
    if isinstance(given, str):
        return _matches(re.fullmatch, given, module)
    return any(module == name or module.endswith(f".{name}") for name in _names(given))


def _pattern_key(patterns: Mapping[str, Any], module: str) -> str:
    """PEFT's ``get_pattern_key``: the first pattern that the end of the name matches."""
    for key in patterns:
        if _matches(re.match, rf"(.*\.)?({key})$", module):
            return key
    return module


def _matches(how: Any, pattern: str, text: str) -> bool:
    try:
        if may_take_forever(pattern, len(text)):
            raise SourceError(
                f"adapter_config.json: the regular expression {pattern[:60]!r} could take for ever",
                hint="name the modules, or write it without repeats inside repeats",
            )
        return how(pattern, text) is not None
    except (re.error, RecursionError, OverflowError) as error:
        raise SourceError(
            f"adapter_config.json: {pattern[:60]!r} is no regular expression: {error}"
        ) from error


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise SourceError(f"adapter_config.json: {key} is {str(value)[:40]!r}, not an object")
    return value


def _names(value: Any) -> Sequence[str]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise SourceError(f"adapter_config.json: {str(value)[:40]!r} is no list of module names")
    return value
