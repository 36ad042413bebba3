"""Whether a model can be served exactly, and if not, what stands in the way, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blockzoo.errors import SourceError
from blockzoo.partition import spec as specs
from blockzoo.partition.adapter_serving import adapter_not_served
from blockzoo.partition.checks import FLOATS, QUANTISED, expected_tensors
from blockzoo.partition.families import family_of_config
from blockzoo.partition.family import Family
from blockzoo.partition.names import canonical_names, resolve_ties
from blockzoo.records import Block, Model

_ROPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")
_ATTENTIONS = ("full_attention", "sliding_attention")
_MOST_LAYERS = 10_000  # a config may say any number
_NAMED = 3  # names in a message before it says how many more


def why_not_served(
    model: Model, blocks: Mapping[str, Block], config: Mapping[str, Any]
) -> str | None:
    """What keeps a model from being served exactly.

    Parameters
    ----------
    model : Model
    blocks : mapping of str to Block
        The chain's, by digest; for an attached adapter the base's and its own.
    config : mapping
        The config.json of the model, of the base for an adapter.

    Returns
    -------
    str or None
        The reason; None where it can be served.
    """
    if model.detached:
        wanted = f", {model.wants!r}," if model.wants else ""
        return f"the base model{wanted} that the adapter was made for is not in the zoo"
    reason = _of_config(config)
    if reason is not None:
        return reason
    family = family_of_config(config)
    assert family is not None  # _of_config has said so otherwise
    reason = _of_tensors(model, blocks, family, specs.complete(family, config))
    if reason is not None:
        return reason
    return adapter_not_served(model, blocks, family)


def _of_config(config: Mapping[str, Any]) -> str | None:
    family = family_of_config(config)
    if family is None:
        kind = config.get("model_type")
        if not kind:
            return "its config.json has no model_type, so how to run it is not known"
        return f"models of the type {kind!r} are kept, but not run"
    for key in QUANTISED:
        if config.get(key):
            given = config[key]
            method = given.get("quant_method") if isinstance(given, dict) else None
            return f"its weights are quantised ({method or key})"
    for key in ("per_layer_config", "pruned_heads", "use_bidirectional_attention"):
        if config.get(key):
            return f"its config.json has {key}, which is not applied"
    try:
        values = specs.complete(family, config)
        count = min(specs.layer_count(values), _MOST_LAYERS)
        kinds = specs.layer_types(family, values, count)
    except SourceError as error:
        return error.message
    given = config.get("layer_types")
    plain = isinstance(given, list) and set(map(str, given)) == {"full_attention"}
    if kinds is None and given and not plain:
        return f"its config.json has layer_types, which {family.name} models do not have"
    strange = [kind for kind in kinds or () if kind not in _ATTENTIONS]
    if strange:
        return f"its layers have {strange[0]!r}, which is not known"
    return _of_rope(values)


def _of_rope(values: Mapping[str, Any]) -> str | None:
    parameters = values.get("rope_parameters")
    if parameters is None:
        return None
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    for one in nested or [parameters]:
        if one["rope_type"] not in _ROPES:
            return f"rotary positions of the type {one['rope_type']!r} are not known"
    return None


def _of_tensors(
    model: Model, blocks: Mapping[str, Block], family: Family, values: Mapping[str, Any]
) -> str | None:
    tensors = model.tensors(blocks)
    expected = {name for name, _ in _bounded(family, values, len(tensors))}
    ties = resolve_ties(family, values, tensors)
    missing = [n for n in sorted(expected) if n not in tensors and ties.get(n) not in tensors]
    if missing:
        return f"tensors are missing: {_some(missing)}"
    start = family.root + family.layers
    # names that stayed as they were in the file, since another tensor has their place
    doubled = [name for name in tensors if canonical_names(family, [name])[name] != name]
    unexpected = doubled or [
        name
        for name in sorted(tensors)
        if name.startswith(start) and name not in expected and not name.endswith(family.ignored)
    ]
    if unexpected:
        return f"tensors have no place in a {family.name} model: {_some(unexpected)}"
    packed = [n for n in sorted(expected) if n in tensors and tensors[n].dtype not in FLOATS]
    if packed:
        return f"weights are {tensors[packed[0]].dtype}, not floating point: {_some(packed)}"
    return None


def _bounded(
    family: Family, values: Mapping[str, Any], stored: int
) -> list[tuple[str, tuple[int, ...]]]:
    """The expected tensors, no more than tell that some are missing: a config may say anything."""
    found = []
    for item in expected_tensors(family, values):
        found.append(item)
        if len(found) > stored + 64:
            break
    return found


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
