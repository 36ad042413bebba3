"""The names of a known family's tensors: transformers' for them, and which stands for which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from blockzoo.partition.family import Family
from blockzoo.tensors import TensorRef

#: the LM head's weight, in every family
LM_HEAD = "lm_head.weight"


def canonical_names(family: Family, names: Iterable[str]) -> dict[str, str]:
    """File names to the names of transformers' causal LM, as its checkpoints have them.

    A checkpoint of the bare model (``h.0.attn…``) gets the prefix that the causal LM adds. A name
    whose canonical form is taken by another tensor stays as it is.
    """
    prefix = family.base_prefix
    modules = (family.tokens, family.positions, family.project, *family.head)
    starts = (family.layers, *(f"{name}." for name in modules if name))
    if family.root != prefix:
        starts = (family.root.removeprefix(prefix),)
    names = list(names)
    result: dict[str, str] = {}
    taken = set(names)
    for name in names:
        canonical = name.removeprefix(prefix) if name == prefix + LM_HEAD else name
        for start, replacement in family.renames.items():
            if canonical.startswith(start):
                canonical = replacement + canonical.removeprefix(start)
        if canonical.startswith(starts):
            canonical = prefix + canonical
        # two tensors for one: the first keeps the place, the other its name in the file
        if canonical == name or canonical in taken:
            canonical = name
        taken.add(canonical)
        result[name] = canonical
    return result


def resolve_ties(
    family: Family, values: Mapping[str, Any], tensors: Mapping[str, TensorRef]
) -> dict[str, str]:
    """Which tensor stands for which, as transformers' ``tie_weights`` resolves it at load.

    With both in the checkpoint they are tied only where they are equal; with one of the two, that
    one is taken for both.
    """
    if not values["tie_word_embeddings"]:
        return {}
    tokens = f"{family.root}{family.tokens}.weight"
    if tokens in tensors:
        tied = LM_HEAD not in tensors or tensors[LM_HEAD].digest == tensors[tokens].digest
        return {LM_HEAD: tokens} if tied else {}
    return {tokens: LM_HEAD} if LM_HEAD in tensors else {}
