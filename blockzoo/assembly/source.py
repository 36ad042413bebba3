"""A model of the zoo as something that layers can be taken from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blockzoo.errors import BlockzooError, UnservableError
from blockzoo.execution.tokenizer import is_vocabulary
from blockzoo.formats import jsonfile
from blockzoo.partition import Family, family_of_config
from blockzoo.partition import spec as specs
from blockzoo.partition.names import LM_HEAD, resolve_ties
from blockzoo.records import Block, Hop, Model
from blockzoo.tensors import TensorRef, bytes_digest

if TYPE_CHECKING:
    from blockzoo.zoo import Zoo


@dataclass(frozen=True)
class Source:
    """A model whose every layer is known by number.

    Parameters
    ----------
    name : str
        As it was asked for.
    model : Model
    blocks : dict of str to Block
        By digest.
    config : dict
        Its config.json.
    family : Family
    layers : tuple of tuple of Hop
        The one or two hops of each layer that runs.
    embedding, head : Block
    tokens, lm_head : TensorRef
        What embeds tokens and what the LM head multiplies with; one tensor where they are tied.
    """

    name: str
    model: Model
    blocks: Mapping[str, Block]
    config: Mapping[str, Any]
    family: Family
    layers: tuple[tuple[Hop, ...], ...]
    embedding: Block
    head: Block
    tokens: TensorRef
    lm_head: TensorRef

    @property
    def token_name(self) -> str:
        """The token embedding's name in transformers."""
        return f"{self.family.root}{self.family.tokens}.weight"

    def layer(self, index: int) -> tuple[str, ...]:
        """The digests of a layer's blocks."""
        return tuple(hop.block for hop in self.layers[index])

    def embeds_as(self, other: Source) -> bool:
        """Whether both begin alike."""
        return _whole(self.embedding, {self.token_name: self.tokens}) == _whole(
            other.embedding, {other.token_name: other.tokens}
        )

    def ends_as(self, other: Source) -> bool:
        """Whether both end alike: final norm and LM head, tied or not."""
        return _whole(self.head, {LM_HEAD: self.lm_head}) == _whole(
            other.head, {LM_HEAD: other.lm_head}
        )


def open_source(zoo: Zoo, name: str) -> Source:
    """A model as a source of layers.

    Raises
    ------
    NotFoundError
    BlockzooError
        Where it is an adapter, or has adapters on its layers.
    UnservableError
        Where it is not known exactly what its blocks compute.
    """
    model = zoo.model(name)
    if model.kind != "model":
        raise BlockzooError(
            f"{name} is an adapter ({model.family}), and has no layers of its own",
            hint="name its base, or merge the adapter into it and ingest the result",
        )
    if model.compact:
        raise BlockzooError(
            f"{name} is compact: its layers are another model's and what they differ by",
            hint="take them from its exact version, or export it and ingest that",
        )
    if reason := zoo.why_not_served(model):
        raise UnservableError(f"layers of {name} cannot be taken: {reason}")
    config, blocks = zoo.config(model), zoo.blocks_of(model)
    family = family_of_config(config)
    assert family is not None  # else it is not served
    values = specs.complete(family, config)
    inner = re.compile(re.escape(family.root + family.layers) + r"(\d+)\.")
    layers: dict[int, tuple[Hop, ...]] = {}
    outer: dict[str, Block] = {}
    for hop in model.chain:
        match = inner.fullmatch(hop.prefix)
        if match and hop.kind in ("attention", "mlp", "moe", "layer"):
            layers[int(match[1])] = (*layers.get(int(match[1]), ()), hop)
        elif hop.kind in ("embedding", "head"):
            outer[hop.kind] = blocks[hop.block]
        else:
            raise UnservableError(f"layers of {name} cannot be taken: it has the hop {hop.name}")
    embedding, head = outer["embedding"], outer["head"]
    tensors = {**embedding.tensors, **head.tensors}
    tensors |= {n: tensors[to] for n, to in resolve_ties(family, values, tensors).items()}
    return Source(
        name,
        model,
        blocks,
        config,
        family,
        tuple(layers[index] for index in range(specs.layer_count(values))),
        embedding,
        head,
        tensors[f"{family.root}{family.tokens}.weight"],
        tensors[LM_HEAD],
    )


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer's ids stand for: the entries it was made with, and those added to it."""

    entries: Any
    added: Mapping[str, int] | None = None

    @property
    def largest_added(self) -> int:
        return max((self.added or {"": -1}).values())


def vocabulary(zoo: Zoo, source: Source) -> Vocabulary | None:
    """A model's vocabulary; None where it has no tokenizer."""
    data = zoo.file(source.model, "tokenizer.json")
    if data is not None:
        value = jsonfile.parse(data, where=f"the tokenizer.json of {source.name}")
        try:
            added = {str(e["content"]): int(e["id"]) for e in value.get("added_tokens") or ()}
            return Vocabulary(value["model"]["vocab"], added)
        except (AttributeError, KeyError, TypeError, ValueError):
            return Vocabulary(bytes_digest(data))
    files = {r.path: r.parts for r in source.model.files if is_vocabulary(r.path)}
    return Vocabulary(files) if files else None


def _whole(block: Block, more: Mapping[str, TensorRef]) -> tuple[Any, Any]:
    return block.spec, {**block.tensors, **more}
