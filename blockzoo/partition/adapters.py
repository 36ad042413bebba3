"""A PEFT adapter's tensors to adapter blocks on the hops of its base's chain.

An adapter block's names are local to its hop, as PEFT has them: ``self_attn.q_proj.lora_A.weight``.
Its spec is::

    {
        "type": "lora",                    # PEFT's type in lower case
        "config": {"use_dora": true},      # the options that matter
        "modules": {"self_attn.q_proj": {"rank": 8, "alpha": 16.0}},
        "replaces": {"lm_head.weight": "lm_head.weight"},   # own name: the base's name
        "untargeted": ["mlp.up_proj"],     # in the file, but PEFT would not apply it
    }

The last three are there where they have something in them. IA³ modules have
``{"feedforward": true}``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from blockzoo.errors import SourceError
from blockzoo.partition import adapter_config as peft
from blockzoo.partition.adapter_places import DetachedPlaces, Place, Places
from blockzoo.partition.adapter_shapes import check_module, check_replaced, check_virtual
from blockzoo.partition.chain import Partitioned
from blockzoo.records import Block, Hop
from blockzoo.tensors import TensorRef

#: what follows a module's name in PEFT's names
_PART = re.compile(
    r"^(?P<module>.+?)\.(?P<part>(?:lora_A|lora_B|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector|ia3_l|base_layer|ln_tuning_layers|modules_to_save)(?:\..+)?)$"
)
_REPLACING = ("base_layer.", "ln_tuning_layers.", "modules_to_save.")
_VIRTUAL_TOKENS = "prompt_embeddings"


@dataclass
class _Draft:
    """An adapter block in the making."""

    tensors: dict[str, TensorRef] = field(default_factory=dict)
    modules: dict[str, dict[str, Any]] = field(default_factory=dict)
    replaces: dict[str, str] = field(default_factory=dict)
    untargeted: list[str] = field(default_factory=list)

    def block(self, kind: str, kept: Mapping[str, Any]) -> Block:
        spec: dict[str, Any] = {"type": kind, "config": dict(kept)}
        for key in ("modules", "replaces", "untargeted"):
            if value := getattr(self, key):
                spec[key] = value
        return Block("adapter", spec, dict(sorted(self.tensors.items())))


def partition_adapter(
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorRef],
    base: Sequence[Hop] | None,
    base_blocks: Mapping[str, Block] | None,
) -> Partitioned:
    """Split an adapter into blocks, one for each hop of the base that it touches.

    Parameters
    ----------
    config : mapping
        Its adapter_config.json.
    tensors : mapping of str to TensorRef
        By the name in the file.
    base : sequence of Hop or None
        The base's chain; None where the base is not at hand, and the adapter is kept detached.
    base_blocks : mapping of str to Block or None
        The base's, by digest.

    Returns
    -------
    Partitioned
        ``family`` is the adapter's type. With a base, ``hops`` is the base's chain with the
        adapter blocks on it; without, it has the touched hops only, with empty ``block``.
        ``blocks`` holds the adapter blocks.

    Raises
    ------
    SourceError
        Where the adapter was made for another base, or its config and tensors disagree.
    """
    kind = peft.adapter_type(config)
    try:
        return _partition(kind, config, tensors, base, base_blocks)
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise SourceError(f"adapter_config.json cannot be read: {error}") from error


def _partition(
    kind: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorRef],
    base: Sequence[Hop] | None,
    base_blocks: Mapping[str, Block] | None,
) -> Partitioned:
    kept = peft.options(config)
    # what is not served is not judged either: it is kept as it is
    strict = peft.not_applied(kind, kept) is None
    places: Places | DetachedPlaces
    places = DetachedPlaces() if base is None else Places(base, base_blocks or {})
    drafts: defaultdict[str, _Draft] = defaultdict(_Draft)
    for name, ref in _local_names(kind, tensors).items():
        if name == _VIRTUAL_TOKENS and kind in peft.VIRTUAL:
            place = places.first()
            drafts[place.hop].tensors[name] = ref
            if strict:
                check_virtual(kind, config, ref, place.base)
            continue
        module, part = _module_and_part(name)
        place = places.of_module(module) or _elsewhere(places, name, strict)
        draft = drafts[place.hop]
        local = name.removeprefix(place.prefix)
        draft.tensors[local] = ref
        if strict:
            _describe(draft, place, module, part, local, kind, config)
            if place.base is not None and not place.base.packed and local in draft.replaces:
                own = f"{module}.{part.rpartition('.')[2]}"
                check_replaced(name, ref, place.base.tensors.get(own))
    if strict:
        for hop, draft in drafts.items():
            _check_modules(places, hop, draft, kind, config)
    return _assemble(kind, kept, drafts, places, base)


def _local_names(kind: str, tensors: Mapping[str, TensorRef]) -> dict[str, TensorRef]:
    """Tensors by their names in transformers' model: without PEFT's wrapper and adapter name."""
    wrapper = "base_model." if kind in peft.VIRTUAL else "base_model.model."
    result: dict[str, TensorRef] = {}
    for name, ref in tensors.items():
        short = name.removeprefix(wrapper)
        if match := _PART.match(short):
            part = re.sub(r"\.default(?=\.|$)", "", match["part"])
            if part == "lora_magnitude_vector.weight":
                part = "lora_magnitude_vector"
            short = f"{match['module']}.{part}"
        result[name if short in result or (short != name and short in tensors) else short] = ref
    return result


def _module_and_part(name: str) -> tuple[str, str]:
    """``model.norm.weight`` to ``model.norm`` and ``weight``; likewise with PEFT's parts."""
    if match := _PART.match(name):
        return match["module"], match["part"]
    module, _, part = name.rpartition(".")
    return module, part


def _elsewhere(places: Places | DetachedPlaces, name: str, strict: bool) -> Place:
    if strict and isinstance(places, Places):
        raise SourceError(
            f"the adapter was made for another base: it has {name}, "
            "and the base has no such module",
            hint="give the model it was trained on as the base",
        )
    return places.near(name)


def _describe(
    draft: _Draft,
    place: Place,
    module: str,
    part: str,
    local: str,
    kind: str,
    config: Mapping[str, Any],
) -> None:
    """Note in the draft what a tensor of a served type does."""
    path = module.removeprefix(place.prefix)
    if "." not in part and part in ("weight", "bias"):
        draft.replaces[local] = local
    elif part.startswith(_REPLACING):
        draft.replaces[local] = f"{path}.{part.rpartition('.')[2]}"
    elif part.startswith("lora_") and kind == "lora":
        rank, alpha = peft.rank_and_alpha(config, module)
        draft.modules[path] = {"rank": rank, "alpha": alpha}
    elif part == "ia3_l" and kind == "ia3":
        draft.modules[path] = {"feedforward": peft.is_feedforward(config, module)}
    else:
        raise SourceError(f"the tensor {local} has no place in an adapter of the type {kind!r}")
    if path in draft.modules and not peft.is_targeted(config, module):
        draft.untargeted = sorted({*draft.untargeted, path})


def _check_modules(
    places: Places | DetachedPlaces,
    hop: str,
    draft: _Draft,
    kind: str,
    config: Mapping[str, Any],
) -> None:
    prefix = places.prefix(hop)
    for path, facts in draft.modules.items():
        place = places.of_module(prefix + path)
        weight = None if place is None or place.base is None else place.base.weight(prefix + path)
        family = "" if place is None or place.base is None else place.base.family
        parts = {
            name.removeprefix(f"{path}."): ref
            for name, ref in draft.tensors.items()
            if name.startswith(f"{path}.")
        }
        check_module(prefix + path, facts, parts, weight, family, config)


def _assemble(
    kind: str,
    kept: Mapping[str, Any],
    drafts: Mapping[str, _Draft],
    places: Places | DetachedPlaces,
    base: Sequence[Hop] | None,
) -> Partitioned:
    made = {hop: draft.block(kind, kept) for hop, draft in drafts.items()}
    blocks = {block.digest: block for block in made.values()}
    if base is not None:
        hops = tuple(
            Hop(h.name, h.kind, h.prefix, h.block, (*h.adapters, made[h.name].digest))
            if h.name in made
            else h
            for h in base
        )
        return Partitioned(kind, hops, blocks)
    assert isinstance(places, DetachedPlaces)
    hops = tuple(
        Hop(
            places.name_in_chain(hop), places.kind(hop), places.prefix(hop), "", (made[hop].digest,)
        )
        for hop in places.in_order()
        if hop in made
    )
    return Partitioned(kind, hops, blocks)
