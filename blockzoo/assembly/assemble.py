"""A recipe to a model: others' layers one after another, no tensor written anew.

As mergekit does it, the embedding is the first slice's model's, final norm and LM head are the
last's, and config and other files the base model's (the first's, where none is named). Layers get
new numbers; a block whose result depends on its number is refused. The new model's files are
recipes over tensors that the zoo has, so it is a model like any other.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockzoo.arrival import Ingested, attach_waiting
from blockzoo.assembly.mergekit import DTYPES, Merge, read_merge
from blockzoo.assembly.source import Source, open_source, vocabulary
from blockzoo.equivalence.swap import differences
from blockzoo.errors import BlockzooError, DamagedError, NotFoundError, UnservableError, UsageError
from blockzoo.execution.tokenizer import is_tokenizer_file
from blockzoo.formats.safetensors import header
from blockzoo.partition import Partitioned, partition, why_not_served
from blockzoo.partition import spec as specs
from blockzoo.partition.checks import FLOATS
from blockzoo.partition.names import LM_HEAD
from blockzoo.records import Block, Model, Part, Recipe
from blockzoo.store.refs import LATEST, split_name, tagged
from blockzoo.store.session import NameLock, Session
from blockzoo.tensors import TensorRef

if TYPE_CHECKING:
    from blockzoo.zoo import Zoo

_MOST_LAYERS = 10_000


@dataclass(frozen=True)
class Assembly:
    """A recipe worked out, nothing of it kept.

    Parameters
    ----------
    merge : Merge
    sources : dict of str to Source
        Every model that the recipe names.
    config : dict
        The new config.json.
    tensors : dict of str to TensorRef
        By transformers' name.
    parts : Partitioned
        The new chain.
    tokenizer : Source
        Whose tokenizer it has.
    notes : tuple of str
        What a reader of the recipe may not expect.
    """

    merge: Merge
    sources: Mapping[str, Source]
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorRef]
    parts: Partitioned
    tokenizer: Source
    notes: tuple[str, ...]


def assemble(zoo: Zoo, recipe: str | Path | Mapping[str, Any], name: str) -> Ingested:
    """Put a model together and let a name point to it; see `Zoo.assemble`."""
    began = time.monotonic()
    short, tag = split_name(name)
    assembly = work_out(zoo, read_merge(recipe))
    with NameLock(zoo.objects.layout, short), Session(zoo.objects) as session:
        for source in assembly.sources.values():
            zoo.rely_on(session, source.model)
        _check_there(zoo, assembly)
        for block in assembly.parts.blocks.values():
            session.block(block)
        parts = assembly.parts
        model = Model("model", parts.family, parts.hops, _files(session, assembly), parts.ties)
        _check(model, parts.blocks, assembly.config)
        session.model(model)
        if not session.commit():
            raise NotFoundError("a model that the recipe names has just been collected")
        before = zoo.refs.get(short).tags.get(tag or LATEST)
        already = before is not None and before.digest == model.digest
        if not already:
            zoo.refs.set(short, tag, tagged(model), "assemble", ", ".join(assembly.sources))
    attached = attach_waiting(zoo, short, model)
    return Ingested(
        name,
        model.digest,
        model.kind,
        model.nbytes,
        0,
        time.monotonic() - began,
        already,
        attached=attached,
        notes=assembly.notes,
    )


def work_out(zoo: Zoo, merge: Merge) -> Assembly:
    """What a recipe makes, or why it cannot be made exactly.

    Raises
    ------
    NotFoundError
        Where a model is not in the zoo.
    UsageError
        Where a model has no such layers.
    BlockzooError, UnservableError
        Where the parts do not fit together.
    """
    tokenizer = merge.tokenizer_source
    named = [s.model for s in merge.slices] + [merge.base_model]
    named += [] if tokenizer in ("base", "union") else [tokenizer]
    sources = {name: open_source(zoo, name) for name in dict.fromkeys(named) if name}
    places = _places(merge, sources)
    first, last = places[0][0], places[-1][0]
    base = sources[merge.base_model or first.name]
    _check_alike(base, places, last)
    _check_dtypes(merge.dtype, places, last)
    owner = _tokenizer(zoo, merge, sources, base, first, last)

    tensors = dict(first.embedding.tensors)
    tied, notes = _ends(tensors, first, last)
    for index, (source, of) in enumerate(places):
        prefix = f"{base.family.root}{base.family.layers}{index}."
        for hop in source.layers[of]:
            tensors |= {prefix + n: ref for n, ref in source.blocks[hop.block].tensors.items()}
    config = _config(base, first, places, tied)
    parts = partition(config, tensors)
    _check_blocks(parts, places, first, last)
    return Assembly(merge, sources, config, tensors, parts, owner, notes)


def _places(merge: Merge, sources: Mapping[str, Source]) -> list[tuple[Source, int]]:
    """The model and the layer's number there, for each layer of the result."""
    places: list[tuple[Source, int]] = []
    for one in merge.slices:
        source = sources[one.model]
        count = len(source.layers)
        end = count if one.end is None else one.end
        if not 0 <= one.start < end <= count:
            raise UsageError(
                f"{one.model} has no layers [{one.start}, {end}]: it has {count}",
                hint=f"a layer_range is half-open: [0, {count}] is all of them",
            )
        places += [(source, of) for of in range(one.start, end)]
        if len(places) > _MOST_LAYERS:
            raise UsageError(f"the recipe asks for more than {_MOST_LAYERS} layers")
    return places


def _check_alike(base: Source, places: list[tuple[Source, int]], last: Source) -> None:
    """Every block must be of the base model's family, widths, rotary positions and so on."""
    first = places[0][0]
    used = [(first, "the embedding", first.embedding), (last, "the head", last.head)]
    for source, of in places:
        used += [(source, f"layer {of}", source.blocks[digest]) for digest in source.layer(of)]
    wanted = base.embedding.spec
    for source, what, block in used:
        if block.spec["family"] != wanted["family"]:
            raise BlockzooError(
                f"{source.name} is of the family {block.spec['family']}, and {base.name} of "
                f"{wanted['family']}",
                hint="only layers of one family can follow each other",
            )
        if found := differences(wanted["config"], block.spec["config"]):
            raise BlockzooError(
                f"{what} of {source.name} does not go with {base.name}: {', '.join(found)}",
                hint="layers that follow each other need the same widths, rotary positions and "
                "activations",
            )


def _check_dtypes(wanted: str, places: list[tuple[Source, int]], last: Source) -> None:
    """Nothing is cast: neither to the recipe's dtype, nor to that of other layers."""
    first = places[0][0]
    used = [(first, "", first.embedding), (last, "", last.head)]
    if LM_HEAD not in last.head.tensors:  # its embedding is its LM head
        used.append((last, "", last.embedding))
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for source, of in places:
        used += [(source, f"layer {of}: ", source.blocks[d]) for d in source.layer(of)]
    for source, where, block in used:
        for name, ref in block.tensors.items():
            if ref.dtype not in FLOATS:
                continue
            what = f"{where}{name} of {source.name}"
            if wanted and ref.dtype != DTYPES[wanted]:
                raise BlockzooError(
                    f"dtype {wanted} would cast {what}, which is {ref.dtype}",
                    hint="leave dtype out: the weights stay what they are",
                )
            before = found.setdefault((block.kind, name), (ref.dtype, what))
            if before[0] != ref.dtype:
                raise BlockzooError(
                    f"{what} is {ref.dtype}, and {before[1]} {before[0]}",
                    hint="cast one of the models with transformers, and ingest it anew",
                )


def _ends(
    tensors: dict[str, TensorRef], first: Source, last: Source
) -> tuple[bool, tuple[str, ...]]:
    """Add the last model's head; tells whether both ends are one tensor, and what is unexpected.

    A last model whose LM head is its embedding has that as its LM head here: it stays what the
    layers before it were made for.
    """
    tensors |= last.head.tensors
    rows = first.tokens.shape[0], last.lm_head.shape[0]
    if rows[0] != rows[1]:
        raise BlockzooError(
            f"the embedding of {first.name} has {rows[0]} tokens, and the head of {last.name} "
            f"has {rows[1]}",
            hint="begin and end with models of one vocabulary",
        )
    if first.tokens.digest == last.lm_head.digest and (first.model.ties or last.model.ties):
        if LM_HEAD not in tensors:
            tensors[first.token_name] = first.tokens
        return True, ()
    tensors |= {first.token_name: first.tokens, LM_HEAD: last.lm_head}
    if LM_HEAD in last.head.tensors:
        return False, ()
    return False, (
        f"the LM head is the embedding of {last.name}, and no longer tied to that of {first.name}",
    )


def _tokenizer(
    zoo: Zoo, merge: Merge, sources: Mapping[str, Source], base: Source, first: Source, last: Source
) -> Source:
    """Whose tokenizer it has; its ids must mean what they mean to the embedding and the head."""
    wanted = merge.tokenizer_source
    owner = base if wanted in ("", "base", "union") else sources[wanted]
    of_owner = vocabulary(zoo, owner)
    if of_owner is None:
        return owner
    exact = wanted not in ("", "base")
    for source in sources.values() if wanted == "union" else (first, last):
        other = vocabulary(zoo, source)
        same = other is None or (other == of_owner if exact else other.entries == of_owner.entries)
        if not same:
            raise BlockzooError(
                f"the tokenizer of {owner.name} has another vocabulary than that of {source.name}",
                hint="tokenizer_source would have to rearrange the embedding's rows; take models "
                "of one vocabulary",
            )
    if of_owner.largest_added >= first.tokens.shape[0]:
        raise BlockzooError(
            f"the tokenizer of {owner.name} has tokens that the embedding of {first.name}, of "
            f"{first.tokens.shape[0]} rows, does not",
            hint=f"write tokenizer_source: {first.name}",
        )
    return owner


def _config(
    base: Source, first: Source, places: list[tuple[Source, int]], tied: bool
) -> dict[str, Any]:
    """The base model's config.json with what the new chain has otherwise."""
    family = base.family
    config = dict(base.config)
    taken = ["dtype", "torch_dtype"]
    taken += ["n_positions", "n_ctx", "max_position_embeddings"] if family.positions else []
    for key in taken:
        config.pop(key, None)
        if key in first.config:
            config[key] = first.config[key]
    count = len(places)
    keys = [key for key in ("num_hidden_layers", "n_layer") if key in config]
    config |= dict.fromkeys(keys or ["num_hidden_layers"], count)
    kinds = [_layer_type(source, of) for source, of in places]
    if family.layer_types is not None:
        config["layer_types"] = kinds
    elif config.get("layer_types"):
        config["layer_types"] = ["full_attention"] * count
    values = specs.complete(family, config)
    if values["tie_word_embeddings"] != tied:
        config["tie_word_embeddings"] = tied
    if values["vocab_size"] != first.tokens.shape[0]:
        config["vocab_size"] = first.tokens.shape[0]
    return config


def _layer_type(source: Source, of: int) -> str:
    specs_of = [source.blocks[digest].spec["layer"] for digest in source.layer(of)]
    return next((str(spec["layer_type"]) for spec in specs_of if "layer_type" in spec), "")


def _check_blocks(
    parts: Partitioned, places: list[tuple[Source, int]], first: Source, last: Source
) -> None:
    """Each block of the new chain must be the very block that it was taken from."""
    taken = [(source, hop) for source, of in places for hop in source.layers[of]]
    inner = [hop for hop in parts.hops if hop.kind not in ("embedding", "head")]
    for hop, (source, old) in zip(inner, taken, strict=True):
        if hop.block != old.block:
            found = differences(parts.blocks[hop.block].spec, source.blocks[old.block].spec)
            raise BlockzooError(
                f"{old.name} of {source.name} computes something else as {hop.name}: "
                f"{', '.join(found) or 'it is another block'}",
                hint="its result depends on the layer's number, so it can only stay where it is",
            )
    for kind, source, old_block in (
        ("embedding", first, first.embedding),
        ("head", last, last.head),
    ):
        new = next(parts.blocks[hop.block] for hop in parts.hops if hop.kind == kind)
        if found := differences(new.spec, old_block.spec):
            raise BlockzooError(f"the {kind} of {source.name} does not fit: {', '.join(found)}")


def _check(model: Model, blocks: Mapping[str, Block], config: Mapping[str, Any]) -> None:
    if reason := why_not_served(model, blocks, config):
        raise UnservableError(f"the recipe makes a model that cannot be run: {reason}")


def _check_there(zoo: Zoo, assembly: Assembly) -> None:
    """Nothing that the new model needs of the zoo may be missing from it."""
    needed = [("tensors", ref.digest) for ref in assembly.tensors.values()]
    needed += [
        ("tensors" if part.source == "tensor" else "files", part.digest)
        for recipe in _taken_over(assembly)
        for part in recipe.parts
        if part.digest
    ]
    for folder, digest in needed:
        if zoo.objects.find(folder, digest) is None:
            raise DamagedError(
                f"{folder[:-1]} {digest[:12]} is missing from the zoo",
                hint="`blockzoo verify` tells what else is; `blockzoo repair` restores it",
            )


def _taken_over(assembly: Assembly) -> list[Recipe]:
    """The recipes of files that the new model has from others as they are."""
    base = assembly.sources[assembly.merge.base_model or assembly.merge.slices[0].model]
    files = [r for r in base.model.files if r.path == "generation_config.json"]
    return files + [r for r in assembly.tokenizer.model.files if is_tokenizer_file(r.path)]


def _files(session: Session, assembly: Assembly) -> tuple[Recipe, ...]:
    """Recipes of the new model's files, and what they need that the zoo has not."""

    def keep(path: str, data: bytes) -> Recipe:
        return Recipe(path, (session.literal(data),))

    config = json.dumps(assembly.config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    files = [
        *_taken_over(assembly),
        keep("config.json", config.encode()),
        keep("mergekit_config.yml", assembly.merge.to_yaml().encode()),
        _weights(session, assembly.tensors),
    ]
    return tuple(sorted(files, key=lambda recipe: recipe.path))


def _weights(session: Session, tensors: Mapping[str, TensorRef]) -> Recipe:
    """One safetensors file: a header, and tensors that the zoo has."""
    parts = [session.literal(header(tensors))]
    parts += [Part("tensor", ref.nbytes, ref.digest) for ref in tensors.values()]
    return Recipe("model.safetensors", tuple(parts))
