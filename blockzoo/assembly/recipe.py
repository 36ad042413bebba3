"""A chain back to a recipe: which layers of which named models it is made of.

It tells the chain, not the files beside it: the config and tokenizer of the recipe's model are
those of its first slice's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from blockzoo.assembly.assemble import work_out
from blockzoo.assembly.mergekit import DTYPES, Merge, Slice
from blockzoo.assembly.source import Source, open_source
from blockzoo.errors import BlockzooError, UnservableError
from blockzoo.store.refs import LATEST

if TYPE_CHECKING:
    from blockzoo.zoo import Zoo


def find_merge(zoo: Zoo, name: str) -> Merge:
    """The recipe, of as few slices as can be, that makes a model's chain from other models.

    Raises
    ------
    NotFoundError
    BlockzooError
        Where a block is in no other named model, or the model is not one that can be assembled.
    """
    target = open_source(zoo, name)
    count = len(target.layers)
    others = list(_others(zoo, target))
    begins = [source for source in others if source.embeds_as(target)]
    ends = [source for source in others if source.ends_as(target)]
    if not begins:
        raise _missing(name, "the embedding")
    if not ends:
        raise _missing(name, "the head (final norm and LM head)")
    runs: list[Slice] = []
    position = 0
    while position < count:
        runs.append(_longest(target, others if runs else begins, ends, position))
        assert runs[-1].end is not None
        position += runs[-1].end - runs[-1].start
    used = {r.dtype for block in target.blocks.values() for r in block.tensors.values()}
    dtype = next((word for word, kind in DTYPES.items() if used == {kind}), "")
    merge = Merge(tuple(runs), dtype=dtype)
    work_out(zoo, merge)
    return merge


def _others(zoo: Zoo, target: Source) -> Iterator[Source]:
    """Every other named model of the family, each once."""
    seen = {target.model.digest}
    for ref in zoo.refs.all():
        for tag, to in sorted(ref.tags.items(), key=lambda item: item[0] != LATEST):
            if to.digest in seen or to.kind != "model" or to.family != target.family.name:
                continue
            seen.add(to.digest)
            try:
                yield open_source(zoo, ref.name if tag == LATEST else f"{ref.name}:{tag}")
            except UnservableError:
                continue  # a model that layers cannot be taken from


def _longest(
    target: Source, sources: Sequence[Source], ends: Sequence[Source], position: int
) -> Slice:
    """The longest slice that goes as `target` does from a layer on.

    It reaches the last layer only in a model that also ends alike: the head comes from there.
    """
    best: Slice | None = None
    longest = 0
    for source in sources:
        stop = len(target.layers) - (source not in ends)
        for start in range(len(source.layers)):
            length = 0
            while (
                start + length < len(source.layers)
                and position + length < stop
                and source.layer(start + length) == target.layer(position + length)
            ):
                length += 1
            if length > longest:
                best, longest = Slice(source.name, start, start + length), length
    if best is None:
        beside = "" if position else " with its embedding"
        beside += " with its head" if position + 1 == len(target.layers) else ""
        raise _missing(target.name, f"layer {position}{beside}")
    return best


def _missing(name: str, what: str) -> BlockzooError:
    return BlockzooError(
        f"{what} of {name} is in no other named model, so no recipe makes it",
        hint=f"`blockzoo show {name}` prints who shares each block",
    )
