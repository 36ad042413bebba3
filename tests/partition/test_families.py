"""Every family, held to transformers: defaults, layer types, tensors, shapes, one spec."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from partition_models import CONFIGS, config_of, family_name, random_model, saved
from transformers import CONFIG_MAPPING, PreTrainedConfig

from blockzoo.partition import FAMILIES, partition
from blockzoo.partition import spec as specs
from blockzoo.partition.checks import expected_tensors
from blockzoo.partition.names import resolve_ties

# in which transformers has no value of its own: it is popped from the config.json
NOT_FIELDS = {"sliding_window_pattern": 6}


def test_every_family_of_the_issue_is_here_and_tested() -> None:
    assert (
        {family_name(v) for v in CONFIGS}
        == set(FAMILIES)
        == {
            *("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2"),
            *("gpt_neox", "opt", "mixtral"),
        }
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_defaults_are_transformers(name: str) -> None:
    family = FAMILIES[name]
    fields = CONFIG_MAPPING[family.model_types[0]].__dataclass_fields__
    theirs = {key: fields[key].default for key in family.defaults if key not in NOT_FIELDS}
    ours = {key: value for key, value in family.defaults.items() if key not in NOT_FIELDS}
    assert ours == theirs


@pytest.mark.parametrize("name", FAMILIES)
def test_no_config_value_of_transformers_is_forgotten(name: str) -> None:
    """What is neither a default here nor known to change nothing would be unset in a spec."""
    family = FAMILIES[name]
    fields = set(CONFIG_MAPPING[family.model_types[0]].__dataclass_fields__)
    fields -= set(PreTrainedConfig.__dataclass_fields__)
    known = set(family.defaults) | specs._WITHOUT_EFFECT | specs._TOLD_OTHERWISE
    assert fields - known - {"rope_parameters"} == set()


@pytest.mark.parametrize("variant", CONFIGS)
def test_layer_types_are_transformers(variant: str) -> None:
    family = FAMILIES[family_name(variant)]
    values = specs.complete(family, CONFIGS[variant])
    found = specs.layer_types(family, values, specs.layer_count(values))
    assert found == getattr(config_of(variant), "layer_types", None)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"num_hidden_layers": 13},
        {"sliding_window_pattern": 4},
        {"use_sliding_window": True, "max_window_layers": 5},
        {"layer_types": ["full_attention", "sliding_attention"], "num_hidden_layers": 2},
    ],
)
def test_layer_types_follow_the_config_as_transformers_does(
    name: str, more: dict[str, Any]
) -> None:
    family = FAMILIES[name]
    values = specs.complete(family, more)
    found = specs.layer_types(family, values, specs.layer_count(values))
    theirs = CONFIG_MAPPING[family.model_types[0]](**more).layer_types
    assert found == theirs


@pytest.mark.parametrize("variant", CONFIGS)
def test_expected_tensors_are_what_transformers_saves(variant: str, tmp_path: Path) -> None:
    config, tensors = saved(random_model(variant), tmp_path)
    family = FAMILIES[family_name(variant)]
    values = specs.complete(family, config)
    expected = dict(expected_tensors(family, values))
    found = {name: ref.shape for name, ref in tensors.items()}
    found = {name.replace("embed_out.", "lm_head."): shape for name, shape in found.items()}
    assert found == {n: s for n, s in expected.items() if n in found or n != "lm_head.weight"}
    tied = resolve_ties(family, values, tensors)
    assert ("lm_head.weight" in found) != bool(tied)


@pytest.mark.parametrize("variant", CONFIGS)
def test_spec_does_not_depend_on_who_wrote_the_config(variant: str) -> None:
    """The values given, and all that transformers writes back, make the same blocks."""
    short = partition(CONFIGS[variant], {})
    full = partition(json.loads(config_of(variant).to_json_string(use_diff=False)), {})
    assert [hop.block for hop in short.hops] == [hop.block for hop in full.hops]
    spec = short.blocks[short.hops[0].block].spec
    again = CONFIG_MAPPING[CONFIGS[variant]["model_type"]].from_dict(dict(spec["config"]))
    theirs = config_of(variant)
    for key in spec["config"]:
        # where theirs is None, the modules work it out as it is written out here
        assert getattr(theirs, key) in (None, getattr(again, key)), key


LEGACY: dict[str, tuple[str, dict[str, Any]]] = {
    "theta beside": ("llama", {"rope_theta": 5e5}),
    "scaling": ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "llama 3": (
        "llama",
        {
            "rope_theta": 500000.0,
            "max_position_embeddings": 131072,
            "rope_scaling": {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
        },
    ),
    "dynamic": ("qwen2", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    "yarn": ("qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "rope_theta": 1e6}),
    "none": ("llama", {"rope_scaling": None, "rope_theta": 10000}),
    "mixtral": ("mixtral", {}),
    "neox": ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 20000}),
    "neox default": ("gpt_neox", {}),
    "gemma 3": (
        "gemma3_text",
        {
            "rope_theta": 2e6,
            "rope_local_base_freq": 9999.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
    "gemma 3 default": ("gemma3_text", {}),
    "phi 3 longrope": (
        "phi3",
        {
            "max_position_embeddings": 131072,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0] * 48,
                "long_factor": [2.0] * 48,
            },
        },
    ),
}


@pytest.mark.parametrize("name", LEGACY)
def test_older_rotary_parameters_are_read_as_transformers_reads_them(name: str) -> None:
    kind, values = LEGACY[name]
    family = next(f for f in FAMILIES.values() if kind in f.model_types)
    theirs = CONFIG_MAPPING[kind].from_dict({"model_type": kind, **values}).rope_parameters

    def plain(parameters: dict[str, Any]) -> dict[str, Any]:
        nested = {k: plain(v) if isinstance(v, dict) else v for k, v in parameters.items()}
        return {k: v for k, v in nested.items() if k != "type"}

    # partial_rotary_factor is written beside where transformers adds it only for validation
    assert specs.complete(family, values)["rope_parameters"] == plain(theirs)


def test_depths_differ_only_where_they_compute_differently() -> None:
    def layers(variant: str, kind: str) -> set[str]:
        config = CONFIGS[variant]
        family = FAMILIES[family_name(variant)]
        values = specs.complete(family, config)
        types = specs.layer_types(family, values, specs.layer_count(values))
        count = specs.layer_count(values)
        return {json.dumps(specs.layer_spec(family, values, kind, i, types)) for i in range(count)}

    assert len(layers("llama", "attention")) == 1
    assert len(layers("gemma3", "attention")) == 2
    assert len(layers("gemma3", "mlp")) == 1
    assert len(layers("gpt2", "attention")) == 1
    assert len(layers("gpt2, by depth", "attention")) == 3
    assert len(layers("gpt2, by depth", "mlp")) == 1


def test_a_value_that_is_not_known_stays_in_the_spec() -> None:
    plain = partition(CONFIGS["llama"], {})
    other = partition({**CONFIGS["llama"], "new_in_2030": 7}, {})
    assert plain.hops[0].block != other.hops[0].block


def test_what_changes_nothing_is_left_out_of_the_spec() -> None:
    plain = partition(CONFIGS["llama"], {})
    other = partition(
        {
            **CONFIGS["llama"],
            "vocab_size": 50,
            "dtype": "bfloat16",
            "attention_dropout": 0.5,
            "max_position_embeddings": 77,
            "num_hidden_layers": 2,
            "_name_or_path": "somewhere",
        },
        {},
    )
    assert [hop.block for hop in plain.hops] == [hop.block for hop in other.hops]


def test_a_family_is_plain_data() -> None:
    for family in FAMILIES.values():
        assert replace(family) == family
