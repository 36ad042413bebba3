"""The first layers of one model, a stitch, and the last layers of another: whether and how.

The stitch stands for the difference in width; everything else that layers are given from outside
(positions, masks) is made once for the whole chain, so it must be the same for both models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blockzoo.assembly.source import Source, open_source, vocabulary
from blockzoo.equivalence.swap import differences
from blockzoo.errors import BlockzooError, UsageError
from blockzoo.execution.stitch import KIND
from blockzoo.execution.tokenizer import is_tokenizer_file
from blockzoo.partition import spec as specs
from blockzoo.partition.names import LM_HEAD
from blockzoo.records import Block, Hop, Model, Recipe
from blockzoo.store.session import Session

if TYPE_CHECKING:
    from blockzoo.zoo import Zoo

#: config values that only the block that has them looks at: they may differ
_OF_A_BLOCK = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
    *("n_embd", "n_inner", "n_head", "ffn_dim", "word_embed_proj_dim"),
    *("hidden_act", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"),
)
_LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx")


@dataclass(frozen=True)
class Joint:
    """Two models that can be stitched.

    Parameters
    ----------
    source, target : Source
        Whose first and whose last layers are taken.
    """

    source: Source
    target: Source

    @property
    def widths(self) -> tuple[int, int]:
        """Of the hidden states on either side."""
        return self.source.tokens.shape[1], self.target.lm_head.shape[1]

    def check(self, at: tuple[int, int]) -> None:
        """Refuse a position that there is not, or where layers would be renumbered that may not.

        Raises
        ------
        UsageError, BlockzooError
        """
        first, last = len(self.source.layers), len(self.target.layers)
        if not 0 <= at[0] <= first:
            raise UsageError(
                f"{self.source.name} has {first} layers, so nothing stands after {at[0]} of them",
                hint=f"{self.source.name}@0 takes its embedding alone, @{first} all its layers",
            )
        if not 0 <= at[1] < last:
            raise UsageError(
                f"{self.target.name} has no layer {at[1]}: it has {last}",
                hint=f"{self.target.name}@0 takes all its layers, @{last - 1} the last one",
            )
        for number, of in enumerate(range(at[1], last), at[0]):
            for digest in self.target.layer(of):
                if number != of and "index" in self.target.blocks[digest].spec["layer"]:
                    raise BlockzooError(
                        f"layer {of} of {self.target.name} computes something else as layer "
                        f"{number}",
                        hint=f"stitch after {of - number + at[0]} layers: it keeps its number",
                    )

    def model(
        self, at: tuple[int, int], stitch: Block, files: tuple[Recipe, ...] = ()
    ) -> tuple[Model, dict[str, Block]]:
        """The chain with a stitch at a position, and its blocks by digest."""
        source, target = self.source, self.target
        head = Block("head", target.head.spec, {**target.head.tensors, LM_HEAD: target.lm_head})
        blocks = {block.digest: block for block in (source.embedding, stitch, head)}
        start = f"{target.family.root}{target.family.layers}"
        hops = [Hop("embedding", "embedding", "", source.embedding.digest)]
        places = [(source, of) for of in range(at[0])]
        places += [(target, of) for of in range(at[1], len(target.layers))]
        for number, (owner, of) in enumerate(places):
            if number == at[0]:
                hops.append(Hop("stitch", KIND, "stitch.", stitch.digest, at=at))
            for hop in owner.layers[of]:
                blocks[hop.block] = owner.blocks[hop.block]
                name = f"layers.{number}" + ("" if hop.kind == "layer" else f".{hop.kind}")
                hops.append(Hop(name, hop.kind, f"{start}{number}.", hop.block))
        hops.append(Hop("head", "head", "", head.digest))
        return Model("model", target.family.name, tuple(hops), files), blocks

    def config(self, at: tuple[int, int]) -> dict[str, Any]:
        """The target's config.json with as many layers as the chain has, and what was stitched."""
        source, target = self.source, self.target
        kept = range(at[1], len(target.layers))
        places = [*((source, of) for of in range(at[0])), *((target, of) for of in kept)]
        config = dict(target.config)
        keys = [key for key in ("num_hidden_layers", "n_layer") if key in config]
        config |= dict.fromkeys(keys or ["num_hidden_layers"], len(places))
        if target.family.layer_types is not None:
            config["layer_types"] = [_layer_type(owner, of) for owner, of in places]
        elif config.get("layer_types"):
            config["layer_types"] = ["full_attention"] * len(places)
        for key in _LENGTHS:
            lengths = [one.config[key] for one in (source, target) if key in one.config]
            if key in config and lengths:
                config[key] = min(lengths)
        config["tie_word_embeddings"] = False
        config["blockzoo_stitch"] = {"at": list(at), "widths": list(self.widths)}
        return config

    def files(self, session: Session, at: tuple[int, int]) -> tuple[Recipe, ...]:
        """The stitched model's files: config, tokenizer. No format has a place for its weights."""
        owner = self.target
        if not any(is_tokenizer_file(recipe.path) for recipe in owner.model.files):
            owner = self.source
        kept = [r for r in owner.model.files if is_tokenizer_file(r.path)]
        kept += [r for r in self.target.model.files if r.path == "generation_config.json"]
        text = json.dumps(self.config(at), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        kept.append(Recipe("config.json", (session.literal(text.encode()),)))
        return tuple(sorted(kept, key=lambda recipe: recipe.path))


def find_joint(zoo: Zoo, source: str, target: str) -> Joint:
    """Two models, checked to go with each other.

    Raises
    ------
    NotFoundError
        Where one is not in the zoo.
    BlockzooError, UnservableError
        Where one cannot be run layer by layer, or they do not go together.
    """
    joint = Joint(open_source(zoo, source), open_source(zoo, target))
    first, last = joint.source, joint.target
    if first.family.name != last.family.name:
        raise BlockzooError(
            f"{source} is of the family {first.family.name}, and {target} of {last.family.name}",
            hint="only models of one family can be stitched: layers are given other things",
        )
    values = [specs.config_of_spec(one.family, specs.complete(one.family, one.config))
              for one in (first, last)]  # fmt: skip
    ours, theirs = ({k: v for k, v in one.items() if k not in _OF_A_BLOCK} for one in values)
    if found := differences(ours, theirs):
        raise BlockzooError(
            f"layers of {source} and {target} are given other things from outside: "
            f"{', '.join(found)}",
            hint="models that are stitched need equal head sizes and rotary positions",
        )
    rows = first.tokens.shape[0], last.lm_head.shape[0]
    if rows[0] != rows[1]:
        raise BlockzooError(
            f"{source} reads a vocabulary of {rows[0]:,} tokens, and {target} foretells one of "
            f"{rows[1]:,}",
            hint="stitch models of one vocabulary",
        )
    vocabularies = [vocabulary(zoo, one) for one in (first, last)]
    if None not in vocabularies and vocabularies[0] != vocabularies[1]:
        raise BlockzooError(
            f"{source} and {target} have different tokenizers",
            hint="a token must mean the same to both; stitch models of one tokenizer",
        )
    return joint


def _layer_type(source: Source, of: int) -> str:
    found: list[Mapping[str, Any]] = [source.blocks[d].spec["layer"] for d in source.layer(of)]
    return next((str(spec["layer_type"]) for spec in found if "layer_type" in spec), "")
