"""Whether an adapter's tensors fit its config and its base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blockzoo.errors import SourceError
from blockzoo.partition.adapter_places import Base
from blockzoo.partition.families import FAMILIES
from blockzoo.tensors import TensorRef

Shape = tuple[int, ...]


def check_module(
    module: str,
    facts: Mapping[str, Any],
    parts: Mapping[str, TensorRef],
    weight: Shape | None,
    family: str,
    config: Mapping[str, Any],
) -> None:
    """Check one module of a LoRA or IA³ adapter.

    Parameters
    ----------
    module : str
        Full name.
    facts : mapping
        ``rank`` of a LoRA module; ``feedforward`` of an IA³ one.
    parts : mapping of str to TensorRef
        By the name after the module's: ``lora_A.weight``.
    weight : tuple of int or None
        Shape of the base's weight; None where there is no base to compare with.
    family : str
        The base's.
    config : mapping
        The adapter_config.json.

    Raises
    ------
    SourceError
        Where a tensor is missing, has another rank than the config says, or does not fit the
        base's weight.
    """
    embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
    if "rank" in facts:
        names = (
            ("lora_embedding_A", "lora_embedding_B")
            if embedding
            else ("lora_A.weight", "lora_B.weight")
        )
        for name in names:
            if name not in parts:
                raise SourceError(f"the adapter is incomplete: {module}.{name} is missing")
        low, high = (parts[name].shape for name in names)
        if len(low) != 2 or len(high) != 2 or low[0] != high[1]:
            raise SourceError(f"{module}: {names[0]} {list(low)} does not go with {list(high)}")
        if low[0] != facts["rank"]:
            raise SourceError(
                f"adapter_config.json gives {module} the rank {facts['rank']}, "
                f"its tensors have {low[0]}"
            )
        if config.get("use_dora") and "lora_magnitude_vector" not in parts:
            raise SourceError(f"the adapter is incomplete: {module} has no lora_magnitude_vector")
        found: Shape = (high[0], low[1])
        if embedding:
            found = found[::-1]
    else:
        vector = parts["ia3_l"].shape
        if weight is None or len(weight) != 2:
            return
        rows, columns = weight[::-1] if _transposed(module, family) else weight
        expected = (1, columns) if facts["feedforward"] else (rows, 1)
        if vector != expected:
            raise _other_base(f"{module}.ia3_l is {list(vector)}, not {list(expected)}")
        return
    if weight is None:
        return
    fits = [weight[::-1] if _transposed(module, family) and not embedding else weight]
    if not family:
        fits.append(weight[::-1])
    if found not in fits:
        raise _other_base(
            f"its tensors are for {module} of {list(found)}, the base's is {list(fits[0])}"
        )


def check_replaced(name: str, ref: TensorRef, base: TensorRef | None) -> None:
    """Check a tensor that takes the place of one of the base's.

    Raises
    ------
    SourceError
        Where the base has none of that name, or one of another shape.
    """
    if base is None:
        raise _other_base(f"it brings {name}, which the base does not have")
    if ref.shape != base.shape:
        raise _other_base(f"{name} is {list(ref.shape)}, the base's is {list(base.shape)}")


def check_virtual(kind: str, config: Mapping[str, Any], ref: TensorRef, base: Base | None) -> None:
    """Check a prompt's embeddings or a prefix's keys and values.

    Raises
    ------
    SourceError
        Where their shape is not what the config says, or not the base's.
    """
    tokens = config.get("num_virtual_tokens")
    if len(ref.shape) != 2 or ref.shape[0] != tokens:
        raise SourceError(
            f"adapter_config.json says {str(tokens)[:40]} virtual tokens, "
            f"prompt_embeddings is {list(ref.shape)}"
        )
    if base is None or not base.family:
        return
    if kind == "prefix_tuning":
        expected = base.layers * 2 * _cached_width(base.config)
        what = f"keys and values of {base.layers} layers"
    else:
        family = FAMILIES[base.family]
        weight = base.weight(f"{family.root}{family.tokens}")
        if weight is None:
            return
        expected, what = weight[-1], "the embedding's width"
    if ref.shape[1] != expected:
        raise _other_base(
            f"prompt_embeddings has {ref.shape[1]} columns, {what} would be {expected}"
        )


def _cached_width(config: Mapping[str, Any]) -> int:
    """Values that one key has over all its heads."""
    width = config.get("hidden_size") or config["n_embd"]
    heads = config.get("num_attention_heads") or config["n_head"]
    head = config.get("head_dim") or width // heads
    return int(head * (config.get("num_key_value_heads") or heads))


def _transposed(module: str, family: str) -> bool:
    """Whether the base keeps this module's weight as (in, out)."""
    return family == "gpt2" and module != "lm_head"


def _other_base(what: str) -> SourceError:
    return SourceError(
        f"the adapter was made for another base: {what}",
        hint="give the model it was trained on as the base",
    )
