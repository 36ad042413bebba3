"""A merged LoRA that was found is an adapter again: a PEFT model on its base."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from blockzoo.compact.laying import Laid
from blockzoo.compact.weights import is_weights
from blockzoo.equivalence.swap import swapped
from blockzoo.formats.safetensors import header
from blockzoo.partition.adapters import partition_adapter
from blockzoo.records import Model, Part, Recipe
from blockzoo.store.reach import first_names
from blockzoo.store.refs import Refs
from blockzoo.store.session import Session
from blockzoo.tensors import TensorRef

if TYPE_CHECKING:
    from blockzoo.zoo import Zoo

#: PEFT's names in a file begin so
_PREFIX = "base_model.model."
_SETTINGS = "generation_config.json"
#: files of a full model that an adapter has none of, beside those of its weights
_NOT = ("config.json", _SETTINGS)


def is_adapter(zoo: Zoo, exact: Model, base: Model, laid: Laid) -> bool:
    """Whether a choice is a LoRA on the base's blocks and nothing else.

    An adapter is generated from as its base's settings say; where the exact model's say
    otherwise, it is none.
    """
    blocks = laid.blocks.values()
    low = all(
        facts["method"] == "lowrank" and not facts.get("transposed")
        for block in blocks
        for facts in block.spec["modules"].values()
    )
    chains = swapped(exact, laid.swaps).chain, base.chain
    whole = [hop.block for hop in chains[0]] == [hop.block for hop in chains[1]]
    replaced = any(block.spec["replaces"] for block in blocks)
    alike = exact.ties == base.ties and _settings(zoo, exact) == _settings(zoo, base)
    return bool(blocks) and low and whole and not replaced and alike


def _settings(zoo: Zoo, model: Model) -> dict[str, Any]:
    """How a model is generated from: where there is no file of that, when it ends."""
    if (data := zoo.file(model, _SETTINGS)) is None:
        return {"eos_token_id": zoo.config(model).get("eos_token_id")}
    told = json.loads(data)
    return {key: value for key, value in told.items() if key != "transformers_version"}


def adapter_of(
    zoo: Zoo, session: Session, exact: Model, base: str, laid: Laid, evidence: str
) -> Model:
    """The adapter as a model record, its files PEFT's; its blocks written.

    Parameters
    ----------
    zoo : Zoo
    session : Session
    exact : Model
        The merged one.
    base : str
        The base's digest.
    laid : Laid
        Of which `is_adapter` holds.
    evidence : str
        The digest of the record that certifies it.
    """
    prefixes = {hop.name: hop.prefix for hop in exact.chain}
    ranks: dict[str, int] = {}
    tensors: dict[str, TensorRef] = {}
    for swap in laid.swaps:
        for block in (laid.blocks[digest] for digest in swap.adapters):
            for path, facts in block.spec["modules"].items():
                ranks[f"{prefixes[swap.hop]}{path}"] = facts["rank"]
            for name, ref in block.tensors.items():
                tensors[f"{_PREFIX}{prefixes[swap.hop]}{name}"] = ref
    config = _config(ranks, zoo.refs, base)
    model = zoo.model(base)
    zoo.rely_on(session, model)
    parts = partition_adapter(config, tensors, model.chain, zoo.blocks_of(model))
    for made in parts.blocks.values():
        session.block(made)
    text = json.dumps(config, indent=2) + "\n"
    weights = [session.literal(header(tensors))]
    weights += [Part("tensor", ref.nbytes, ref.digest) for ref in tensors.values()]
    files = [
        *(r for r in exact.files if r.path not in _NOT and not is_weights(r)),
        Recipe("adapter_config.json", (session.literal(text.encode()),)),
        Recipe("adapter_model.safetensors", tuple(weights)),
    ]
    return Model(
        "adapter",
        parts.family,
        parts.hops,
        tuple(sorted(files, key=lambda recipe: recipe.path)),
        {**model.ties, **parts.ties},
        base,
        config["base_model_name_or_path"],
        evidence,
    )


def _config(ranks: dict[str, int], refs: Refs, base: str) -> dict[str, Any]:
    """PEFT's config: scaling is 1 everywhere, since the factors are what they are."""
    [(most, _)] = Counter(ranks.values()).most_common(1)
    others = {name: rank for name, rank in ranks.items() if rank != most}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": first_names(refs).get(base, base[:12]),
        "inference_mode": True,
        "r": most,
        "lora_alpha": most,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }
