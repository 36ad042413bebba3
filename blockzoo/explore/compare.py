"""Comparing two models block by block: what `Similarity` shows is made here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from blockzoo.errors import SourceError, UsageError
from blockzoo.explore.similarity import ACTIVATIONS, WEIGHTS, Similarity
from blockzoo.explore.table import Table
from blockzoo.progress import Progress, silent
from blockzoo.records import Block, Hop, Model
from blockzoo.similarity.ranking import block_sketches, comparable, exact_likeness, likeness
from blockzoo.similarity.sketches import Sketches

if TYPE_CHECKING:
    from blockzoo.execution.chain import RunnableChain
    from blockzoo.similarity.activations import Activations
    from blockzoo.zoo import Zoo

#: tokens of the calibration text that are run
TOKENS = 8192
_FEWEST_TOKENS = 64


def similarity(
    zoo: Zoo,
    first: str,
    second: str,
    text: str | Path | None = None,
    *,
    tokens: int = TOKENS,
    progress: Progress = silent,
) -> Similarity:
    """Compare two models block by block.

    Parameters
    ----------
    zoo : Zoo
    first, second : str
        Names.
    text : path, optional
        A calibration text; then both models are run on it, and blocks are compared by what
        they do, too.
    tokens : int
        Of the text at most.
    progress : Progress
        Of the sketches that have to be made, in bytes; then of the hops.

    Raises
    ------
    SourceError
        Where the text cannot be used.
    UsageError
        Where the models read text as different tokens.
    UnservableError
        Where one of them cannot be run.
    """
    models = [zoo.model(name) for name in (first, second)]
    for name, model in zip((first, second), models, strict=True):
        if text is not None and any(hop.kind == "stitch" for hop in model.chain):
            raise UsageError(
                f"{name} is stitched: what its blocks do cannot be compared hop by hop",
                hint="compare the models that it was made of, or leave out the text",
            )
    blocks = {d: b for model in models for d, b in zoo.blocks_of(model).items()}
    chains = [[(hop, blocks[hop.block]) for hop in m.chain if hop.block] for m in models]
    told = _activations(zoo, models, text, tokens, progress) if text is not None else None
    rows = _rows(zoo, chains, told)
    notes = []
    if any(row["adapters"] for row in rows):
        notes.append("where an adapter is on a hop, distances are those of the blocks under it")
    if told is not None:
        notes.append(f"{told.tokens:,} tokens, CKA from {told.sampled}")
        if told.few:
            notes.append("too few tokens: CKA is off by more than a few hundredths")
    columns = (*WEIGHTS, *ACTIVATIONS) if told is not None else WEIGHTS
    table = Table(f"{first} and {second}", columns, rows, "; ".join(notes))
    both = [*chains[0], *chains[1]]
    names = [first] * len(chains[0]) + [second] * len(chains[1])
    labels = tuple(f"{name}@{hop.name}" for name, (hop, _) in zip(names, both, strict=True))
    weights = _distances(zoo, [block for _, block in both], progress)
    return Similarity(first, second, table, labels, len(chains[0]), weights, told)


Chain = Sequence[tuple[Hop, Block]]


def _rows(zoo: Zoo, chains: Sequence[Chain], told: Activations | None) -> list[dict[str, Any]]:
    others = {hop.name: (hop, block) for hop, block in chains[1]}
    by_hop = {found.hop: found for found in told.hops} if told is not None else {}
    rows = []
    for hop, block in chains[0]:
        if hop.name not in others:
            continue
        other_hop, other = others[hop.name]
        row: dict[str, Any] = {"hop": hop.name, "kind": hop.kind}
        row |= {"block": block.digest, "other": other.digest}
        row["adapters"] = hop.adapters != other_hop.adapters
        if comparable(block, other):
            like = exact_likeness(zoo.objects, block, other)
            row |= {"distance": _finite(like.largest), "tensor": like.tensor}
            row["mean"] = _finite(like.mean)
        if (found := by_hop.get(hop.name)) is not None:
            row |= {"error": _finite(found.error), "cka": found.cka}
            row["error_by_dimension"] = _finite(found.error_by_dimension)
            row["drift"] = _finite(found.drift)
        rows.append(row)
    return rows


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _distances(zoo: Zoo, blocks: Sequence[Block], progress: Progress) -> NDArray[np.float64]:
    """The largest relative distance over the tensors of each two blocks, from sketches."""
    sketches = block_sketches(Sketches(zoo.objects), blocks, progress)
    found = np.full((len(blocks), len(blocks)), np.inf)
    for i, block in enumerate(blocks):
        for j, other in enumerate(blocks):
            if block.digest == other.digest:
                found[i, j] = 0.0
            elif comparable(block, other):
                found[i, j] = likeness(block, other, sketches).largest
    return found


def _activations(
    zoo: Zoo, models: Sequence[Model], text: str | Path, tokens: int, progress: Progress
) -> Activations:
    from blockzoo.execution.passage import batch_size, batches, piece_length
    from blockzoo.similarity.activations import compare_activations

    documents = _documents(zoo, models, text, tokens)
    chains = [zoo.chain(model) for model in models]
    length, size = (min(map(fitting, chains)) for fitting in (piece_length, batch_size))
    cut = batches(list(enumerate(documents)), length, size)
    first, second = (
        (chain, [hop.name for hop in model.chain[1:-1]][: len(chain.compiled.hops)])
        for chain, model in zip(chains, models, strict=True)
    )
    return compare_activations(first, second, cut, _ends(zoo, models), progress)


def _ends(zoo: Zoo, models: Sequence[Model]) -> dict[str, RunnableChain]:
    """The first model with the second's embedding, and with its head, where these fit."""
    model, other = models
    found = {}
    for place in (0, -1):
        hop, its = model.chain[place], other.chain[place]
        if comparable(zoo.block(hop.block), zoo.block(its.block)):
            chain = list(model.chain)
            chain[place] = replace(hop, block=its.block)
            found[hop.name] = zoo.chain(replace(model, chain=tuple(chain)))
    return found


def _documents(zoo: Zoo, models: Sequence[Model], path: str | Path, most: int) -> list[list[int]]:
    """The calibration text as tokens, which must be the same for both models."""
    from blockzoo.execution.texts import read_text

    text = read_text(path)
    read = [text.tokens(zoo.tokenizer(model), most) for model in models]
    count = sum(map(len, read[0]))
    if count < _FEWEST_TOKENS:
        raise SourceError(
            f"{path} is too small: {count} tokens, of which no likeness can be told",
            hint=f"give at least {_FEWEST_TOKENS}; some thousands are better",
        )
    if read[0] != read[1]:
        raise UsageError(
            "the two models read this text as different tokens, so their activations cannot be "
            "compared token by token",
            hint="compare their weights, without a text",
        )
    return read[0]
