"""transformers' own modules for a spec, without weights.

A model of the spec's configuration is built on the meta device, with as few layers as will do,
and its modules are taken: a whole layer, the backbone without its layers, the head without its
backbone. Their parameters are bound to real tensors at each call; their buffers (rotary
frequencies, the embedding's scale) are made here, on the CPU, by transformers' code.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from blockzoo.errors import UnservableError
from blockzoo.partition.families import FAMILIES
from blockzoo.partition.family import Family

_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")


def family_of(spec: Mapping[str, Any]) -> Family:
    """The family that a block's spec names.

    Raises
    ------
    UnservableError
        Where blockzoo does not know it.
    """
    family = FAMILIES.get(spec.get("family", ""))
    if family is None:
        raise UnservableError(
            f"blocks of the family {spec.get('family') or 'unknown'!r} cannot be run: "
            f"known are {', '.join(sorted(FAMILIES))}"
        )
    return family


def configuration(model_type: str, values: Mapping[str, Any]) -> Any:
    """Transformers' configuration of the values in a config.json.

    Raises
    ------
    UnservableError
        Where the installed transformers does not take them.
    """
    from transformers import CONFIG_MAPPING

    try:
        return CONFIG_MAPPING[model_type].from_dict(dict(values))
    except Exception as error:  # transformers raises what its validators happen to raise
        raise UnservableError(
            f"transformers does not take this {model_type!r} configuration: {error}"
        ) from error


def causal_lm(
    family: Family,
    values: Mapping[str, Any],
    layer_types: Sequence[str | None],
    layers: int,
    attention: str | None = None,
) -> Any:
    """A causal LM of transformers with parameters on the meta device, in evaluation mode.

    Parameters
    ----------
    family : Family
    values : mapping
        Values of a config.json, those of `Block.spec["config"]`.
    layer_types : sequence of str or None
        The kind of attention of each layer, for families that have several.
    layers : int
        How many layers to build.
    attention : str, optional
        One of transformers' attention functions, or one registered there. None: transformers'
        choice.

    Raises
    ------
    UnservableError
        Where transformers cannot build it.
    """
    from transformers import AutoModelForCausalLM

    model_type = values.get("model_type", family.model_types[0])
    kept = {k: v for k, v in values.items() if k not in _LAYER_COUNTS}
    kept["num_hidden_layers"] = layers
    if layer_types and layer_types[0] is not None:
        kept["layer_types"] = list(layer_types)
    config = configuration(model_type, kept)
    # what a config.json may ask to be returned or done besides, and what is never looked at
    config.output_hidden_states = False
    config.output_attentions = False
    config.pad_token_id = None
    config.dtype = None
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    except Exception as error:  # an activation it does not know, heads that do not divide, …
        raise UnservableError(
            f"transformers builds no {model_type!r} model of this configuration: {error!r}"
        ) from error
    model.eval().requires_grad_(False)
    for module in model.modules():
        if any(buffer.is_meta for buffer in module._buffers.values() if buffer is not None):
            _make_buffers(module)
    return model


def _make_buffers(module: nn.Module) -> None:
    """Give a module that was built on the meta device real buffers."""
    if hasattr(module, "scalar_embed_scale"):
        module._buffers["embed_scale"] = torch.tensor(module.scalar_embed_scale)
    elif "config" in inspect.signature(type(module).__init__).parameters:
        # rotary embeddings: cheap to build again, where their buffers can be real
        fresh = type(module)(config=module.config)
        module._buffers.update(fresh._buffers)
    else:
        raise UnservableError(f"{type(module).__name__} has buffers that blockzoo cannot make")


def submodule(module: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path, a trailing dot allowed; the module itself where empty."""
    return module.get_submodule(path.rstrip("."))


def parameter_slots(module: nn.Module) -> dict[str, tuple[dict[str, Any], str]]:
    """Where each parameter of a module is bound: by its name, the dictionary and the key."""
    return {
        f"{path}.{key}".lstrip("."): (owner._parameters, key)
        for path, owner in module.named_modules()
        for key, parameter in owner._parameters.items()
        if parameter is not None
    }
