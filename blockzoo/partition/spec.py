"""What of a config.json changes what a block computes: the spec of a model's blocks.

Values that change nothing (names, ids, dropout, sizes that the tensors' shapes give) are left out
by a list; whatever is not on it stays, since blocks that falsely differ cost some sharing and
blocks that falsely agree cost the truth. For the known families the rest is brought to one form,
so that a fine-tune saved by another version of transformers has the same spec as its base.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blockzoo.errors import SourceError
from blockzoo.partition.family import Family, RopeDefaults

_LARGEST = 1 << 31


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: config keys that never change what a block computes
_WITHOUT_EFFECT = _words(
    # names and provenance
    "_name_or_path name_or_path architectures auto_map model_type transformers_version"
    " _commit_hash unsloth_version unsloth_fixed task_specific_params finetuning_task"
    # ids, labels and the size of the vocabulary, which the embedding's shape gives
    " bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id mask_token_id"
    " unk_token_id decoder_start_token_id vocab_size id2label label2id num_labels problem_type"
    # number formats and implementations
    " dtype torch_dtype attn_implementation _attn_implementation _attn_implementation_autoset"
    " use_flash_attn use_bfloat16 torchscript"
    # what is returned
    " use_cache return_dict output_attentions output_hidden_states output_router_logits"
    " use_return_dict output_scores return_dict_in_generate"
    # training
    " initializer_range init_std initializer_factor attention_dropout hidden_dropout dropout"
    " attn_pdrop embd_pdrop resid_pdrop classifier_dropout activation_dropout layerdrop"
    " hidden_dropout_prob attention_probs_dropout_prob dropout_rate router_aux_loss_coef"
    " router_jitter_noise gradient_checkpointing pretraining_tp chunk_size_feed_forward"
    # heads for other tasks
    " summary_type summary_use_proj summary_activation summary_proj_to_labels"
    " summary_first_dropout"
    # how the generation starts and ends
    " max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty"
    " temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size"
    " encoder_no_repeat_ngram_size bad_words_ids num_return_sequences forced_bos_token_id"
    " forced_eos_token_id remove_invalid_values exponential_decay_length_penalty"
    " suppress_tokens begin_suppress_tokens max_new_tokens prefix"
    # told by the chain itself
    " num_hidden_layers n_layer tie_word_embeddings"
)

#: of the known families: given per layer, or in one form by another key
_TOLD_OTHERWISE = _words(
    "layer_types max_window_layers sliding_window_pattern _sliding_window_pattern rope_theta"
    " rope_scaling rope_local_base_freq rotary_emb_base rotary_pct partial_rotary_factor"
    " original_max_position_embeddings n_positions n_ctx max_position_embeddings"
    " is_encoder_decoder is_decoder"
)

#: kinds of rotary positions that do not look at the longest text the model was made for
_LENGTH_FREE_ROPE = ("default", "linear")


def complete(family: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    """A known family's config with transformers' defaults filled in, in one form.

    Raises
    ------
    SourceError
        Where a value is of the wrong type or far out of range.
    """
    known = {family.aliases.get(key, key): value for key, value in config.items()}
    values = {**family.defaults, **known}
    for key, default in family.defaults.items():
        values[key] = _checked(key, values[key], default)
    if "num_key_value_heads" in family.defaults and values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = values["num_attention_heads"]
    if "head_dim" in family.defaults and values["head_dim"] is None:
        values["head_dim"] = values["hidden_size"] // values["num_attention_heads"]
    if "word_embed_proj_dim" in family.defaults and values["word_embed_proj_dim"] is None:
        values["word_embed_proj_dim"] = values["hidden_size"]
    if "n_inner" in family.defaults and values["n_inner"] is None:
        values["n_inner"] = 4 * values["n_embd"]
    if values.get("use_sliding_window") is False:
        values["sliding_window"] = None
    if family.rope is not None:
        values["rope_parameters"] = _rope(family.rope, family.name, values, known)
    return values


def facts(family: Family, values: Mapping[str, Any]) -> dict[str, Any]:
    """Completed config values and what follows from them, for the expected shapes."""
    derived: dict[str, Any] = {}
    if "hidden_size" in values and not values.get("head_dim"):
        derived["head_dim"] = values["hidden_size"] // values["num_attention_heads"]
    if "word_embed_proj_dim" in values:
        derived["projected"] = values["word_embed_proj_dim"] != values["hidden_size"]
    return {**values, **derived}


def config_of_spec(family: Family, values: Mapping[str, Any]) -> dict[str, Any]:
    """The completed config values that change what a block of a known family computes."""
    left_out = _WITHOUT_EFFECT | _TOLD_OTHERWISE | set(family.split_if)
    kept = {key: value for key, value in values.items() if key not in left_out}
    kept |= {key: values[key] for key in family.split_if}
    if family.rope is not None and not _free_of_length(values["rope_parameters"]):
        kept["max_position_embeddings"] = values["max_position_embeddings"]
        if "original_max_position_embeddings" in values:
            kept["original_max_position_embeddings"] = values["original_max_position_embeddings"]
    return kept


def config_of_unknown(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config values kept in the spec of a family that blockzoo does not know."""
    left_out = _WITHOUT_EFFECT - {"model_type"}
    return {key: value for key, value in config.items() if key not in left_out}


def layer_count(values: Mapping[str, Any]) -> int:
    """How many layers a completed config has."""
    return int(values["n_layer"] if "n_layer" in values else values["num_hidden_layers"])


def layer_types(family: Family, values: Mapping[str, Any], count: int) -> list[str] | None:
    """Which attention each of the first ``count`` layers has; None where all have the same.

    Raises
    ------
    SourceError
        Where the config's list is not one of names, one a layer.
    """
    if family.layer_types is None:
        return None
    given = values.get("layer_types")
    if given is None:
        return family.layer_types({**values, "num_hidden_layers": count})
    if not isinstance(given, list) or not all(isinstance(kind, str) for kind in given):
        raise SourceError(f"config.json: layer_types is {given!r}, not a list of names")
    if len(given) != layer_count(values):
        raise SourceError(
            f"config.json: layer_types names {len(given)} layers, "
            f"num_hidden_layers is {layer_count(values)}"
        )
    types = ["full_attention" if kind == "attention" else str(kind) for kind in given]
    # layers beyond the config's are kept, never run
    return types + ["full_attention"] * (count - len(types))


def layer_spec(
    family: Family, values: Mapping[str, Any], kind: str, index: int, types: list[str] | None
) -> dict[str, Any]:
    """The facts of one layer: its ``layer_type``, and its ``index`` where the result needs it."""
    spec: dict[str, Any] = {}
    if kind not in ("attention", "layer"):
        return spec
    if types is not None:
        spec["layer_type"] = types[index]
    if values.get("scale_attn_by_inverse_layer_idx"):
        spec["index"] = index
    return spec


def _checked(key: str, value: Any, default: Any) -> Any:
    """A config value of the default's type; None is taken where the default may be left out."""

    def wrong(expected: str) -> SourceError:
        return SourceError(
            f"config.json: {key} is {str(value)[:40]!r}, expected {expected}",
            hint="compare the file with the model's original config.json",
        )

    if value is None:
        if default is None or key in ("sliding_window", "num_key_value_heads", "head_dim"):
            return None
        if isinstance(default, float) and key.endswith("softcapping"):
            return None
        raise wrong(f"something like {default!r}")
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise wrong("true or false")
    elif isinstance(default, int):
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong("an integer")
        if not 0 <= value < _LARGEST or (value == 0 and key != "max_window_layers"):
            raise wrong("a positive 32-bit integer")
    elif isinstance(default, float):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong("a number")
        value = float(value)
    elif isinstance(default, str):
        if not isinstance(value, str):
            raise wrong("a name")
    elif key != "use_bidirectional_attention" and not key.endswith("softcapping"):
        return _checked(key, value, 1)
    return value


def _rope(
    rope: RopeDefaults, family: str, values: Mapping[str, Any], known: Mapping[str, Any]
) -> dict[str, Any]:
    """Rotary parameters in transformers 5's form, from whichever form the config has.

    Follows ``convert_rope_params_to_dict`` and ``standardize_rope_params``.
    """
    scaling, given = known.get("rope_scaling"), known.get("rope_parameters")
    for name, value in (("rope_scaling", scaling), ("rope_parameters", given)):
        if not isinstance(value, dict | None):
            raise SourceError(f"config.json: {name} is {str(value)[:40]!r}, expected an object")
    theta = known.get(rope.theta_key)
    theta = rope.theta if theta is None else theta
    partial = known.get(rope.partial_key)
    partial = rope.partial if partial is None else partial
    if rope.local_theta is not None:
        local = known.get("rope_local_base_freq", rope.local_theta)
        nested = {kind: dict((given or {}).get(kind) or {}) for kind in _both(given)}
        nested["full_attention"].update(scaling or {})
        nested["full_attention"].setdefault("rope_theta", theta)
        nested["sliding_attention"].setdefault("rope_theta", local)
        return {kind: _one_rope(rope, family, p, values, partial) for kind, p in nested.items()}
    given = scaling or given or {}
    if given and all(isinstance(value, dict) for value in given.values()):
        return {
            kind: _one_rope(rope, family, {"rope_theta": theta} | p, values, partial)
            for kind, p in given.items()
        }
    return _one_rope(rope, family, {"rope_theta": theta} | given, values, partial)


def _both(given: Mapping[str, Any] | None) -> tuple[str, ...]:
    for kind in ("full_attention", "sliding_attention"):
        if not isinstance((given or {}).get(kind), dict | None):
            raise SourceError(f"config.json: rope_parameters[{kind!r}] is not an object")
    return ("full_attention", "sliding_attention")


def _one_rope(
    rope: RopeDefaults,
    family: str,
    given: Mapping[str, Any],
    values: Mapping[str, Any],
    partial: Any,
) -> dict[str, Any]:
    parameters = {key: value for key, value in given.items() if key != "type"}
    kind = parameters.setdefault("rope_type", given.get("type", "default"))
    if not isinstance(kind, str):
        raise SourceError(f"config.json: the rope_type is {str(kind)[:40]!r}, expected a name")
    if partial is not None:
        parameters.setdefault("partial_rotary_factor", partial)
    if kind in ("llama3", "yarn", "longrope"):
        if "original_max_position_embeddings" in values and family == "phi3":
            original = values["original_max_position_embeddings"]
            parameters["original_max_position_embeddings"] = original
        else:
            longest = values["max_position_embeddings"]
            parameters.setdefault("original_max_position_embeddings", longest)
    parameters["rope_type"] = rope.renamed.get(kind, kind)
    for key in ("rope_theta", "partial_rotary_factor", "factor"):
        if isinstance(parameters.get(key), int) and not isinstance(parameters[key], bool):
            parameters[key] = float(parameters[key])
    return parameters


def _free_of_length(parameters: Mapping[str, Any]) -> bool:
    """Whether rotary positions do not depend on ``max_position_embeddings``."""
    nested: list[Mapping[str, Any]] = [v for v in parameters.values() if isinstance(v, dict)]
    return all(one.get("rope_type") in _LENGTH_FREE_ROPE for one in nested or [parameters])
