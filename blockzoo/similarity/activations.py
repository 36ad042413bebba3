"""What two models' blocks do to a text: on the same inputs, and each in its own model.

Both models go through the text hop after hop, with one block of each in memory; what is kept is
the text's hidden states, and of each hop a Gram matrix of a few hundred tokens (`cka`). So models
larger than memory can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch
from numpy.typing import NDArray

from blockzoo.execution.chain import RunnableChain
from blockzoo.execution.passage import Batch, Passage
from blockzoo.progress import Progress, silent
from blockzoo.similarity.cka import cka_matrix, layer_vector

#: tokens that CKA is told from at most
SAMPLES = 768
#: with fewer tokens, CKA is off by more than a few hundredths
FEW = 256
_VECTOR_BYTES = 64 << 20  # of all hops' vectors: models of very many hops get fewer samples
_ROWS = 256  # hidden states that are compared at a time
_LOGITS = 1 << 21  # logits at a time
_DEAD = 1e-6  # of the mean energy: a dimension that moves less counts as if it moved so much

EMBEDDING, HEAD = "embedding", "head"


@dataclass(frozen=True)
class HopActivations:
    """What a hop of the first model and its counterpart in the second do.

    Parameters
    ----------
    hop : str
        The name that both have in their chains.
    error : float or None
        ‖g(x)−f(x)‖ / ‖f(x)−x‖ over all tokens, on the first model's own inputs x: how far the
        counterpart g is from f, by what f does. For embedding and head, which add to nothing,
        ‖g−f‖ / ‖f‖; logits without their mean. An embedding that is the LM head, too, has the
        larger of its two errors. None where widths differ.
    error_by_dimension : float or None
        The same in each dimension by itself, and the root mean square of that: one huge
        dimension hides nothing in it.
    drift : float or None
        ‖g(x)−f(x)‖ / ‖f(x)‖: how far the hidden states that flow on are from what they were.
    cka : float or None
        Debiased CKA of the two updates, each in its own model. None for heads.
    """

    hop: str
    error: float | None
    error_by_dimension: float | None
    drift: float | None
    cka: float | None


@dataclass(frozen=True)
class Activations:
    """Two models on one text.

    Parameters
    ----------
    hops : tuple of HopActivations
        Those that both have.
    first, second : tuple of str
        The hops of each that have a place in `cka`: all but the head.
    cka : numpy.ndarray
        float64, (first + second, first + second): CKA of each with each, the first model's hops
        first.
    tokens, sampled : int
        How many were run, and how many CKA was told from.
    """

    hops: tuple[HopActivations, ...]
    first: tuple[str, ...]
    second: tuple[str, ...]
    cka: NDArray[np.float64]
    tokens: int
    sampled: int

    @property
    def few(self) -> bool:
        """Whether the tokens were too few to say much."""
        return self.sampled < FEW


def compare_activations(
    first: tuple[RunnableChain, Sequence[str]],
    second: tuple[RunnableChain, Sequence[str]],
    batches: Sequence[Batch],
    ends: Mapping[str, RunnableChain],
    progress: Progress = silent,
) -> Activations:
    """Take two models through a text side by side.

    Parameters
    ----------
    first, second : (RunnableChain, sequence of str)
        Each with the names of its hops between embedding and head.
    batches : sequence of Batch
        Tokens that mean the same to both.
    ends : mapping of str to RunnableChain
        The first model with the second's block at `EMBEDDING`, and at `HEAD`; absent where that
        cannot be.
    progress : Progress
        Told hops.
    """
    (a, a_names), (b, b_names) = first, second
    rows = _sampled_rows(batches, len(a_names) + len(b_names) + 2)
    left, right = Passage(a, batches), Passage(b, batches)
    layers, others = ([_vector(p, p.hidden, rows)] for p in (left, right))
    nothing = [torch.zeros(1)] * len(batches)
    errors = {EMBEDDING: _errors(left, left.hidden, right.hidden, nothing)}
    total = max(len(a_names), len(b_names)) + 1
    for number, (name, other) in enumerate(zip_longest(a_names, b_names)):
        if name is not None:
            before = left.hidden if name in b_names else []
            layers.append(_vector(left, _updates(left), rows))
            if before:
                errors[name] = _block_errors(left, right, b_names.index(name), before)
            del before
        if other is not None:
            others.append(_vector(right, _updates(right), rows))
        progress("hops", number + 1, total, 0)
    matrix = cka_matrix([*layers, *others])
    # done with: heads are the largest of blocks
    right.hidden = []
    del layers, others
    errors[HEAD] = _head_errors(left, ends.get(HEAD))
    pair = zip(errors[EMBEDDING], _head_errors(left, ends.get(EMBEDDING)), strict=True)
    first_error, by_dimension, drift = (_larger(*each) for each in pair)
    errors[EMBEDDING] = first_error, by_dimension, drift
    progress("hops", total, total, 0)
    firsts, seconds = (EMBEDDING, *a_names), (EMBEDDING, *b_names)
    hops = tuple(
        HopActivations(name, *found, _cka(matrix, firsts, seconds, name))
        for name, found in errors.items()
    )
    tokens = sum(int(batch.mask.sum()) for batch in batches)
    return Activations(hops, firsts, seconds, matrix, tokens, sum(map(len, rows)))


Errors = tuple[float | None, float | None, float | None]
_UNKNOWN: Errors = (None, None, None)


def _cka(
    matrix: NDArray[np.float64], first: Sequence[str], second: Sequence[str], name: str
) -> float | None:
    if name not in first or name not in second:
        return None
    found = float(matrix[first.index(name), len(first) + second.index(name)])
    return found if math.isfinite(found) else None


def _sampled_rows(batches: Sequence[Batch], hops: int) -> list[NDArray[np.intp]]:
    """For each batch, which of its tokens CKA is told from: evenly spread over the text."""
    counts = [int(batch.mask.sum()) for batch in batches]
    fitting = max(FEW, math.isqrt(2 * _VECTOR_BYTES // (4 * hops)))  # a vector is n²/2 float32
    count = min(SAMPLES, fitting, sum(counts))
    chosen = np.unique(np.linspace(0, sum(counts) - 1, count).astype(np.intp))
    ends = np.cumsum(counts)
    return [
        chosen[(chosen >= end - count) & (chosen < end)] - (end - count)
        for count, end in zip(counts, ends, strict=True)
    ]


def _vector(
    passage: Passage, values: Iterable[torch.Tensor], rows: Sequence[NDArray[np.intp]]
) -> NDArray[np.float32]:
    picked = [
        passage.select(number, value)[torch.from_numpy(rows[number])]
        for number, value in enumerate(values)
    ]
    return layer_vector(torch.cat(picked).float().numpy())


def _updates(passage: Passage) -> Iterator[torch.Tensor]:
    """Run the next hop; what it adds to each batch's hidden states."""
    for before, after in passage.stepping():
        yield after - before


def _block_errors(
    left: Passage, right: Passage, number: int, before: Sequence[torch.Tensor]
) -> Errors:
    """The error of a block of `right` on what the same-named one of `left` was given."""
    if before[0].shape != right.hidden[0].shape:  # of another width, or with virtual tokens
        return _UNKNOWN
    return _errors(left, left.hidden, right.applied(number, before), before)


def _errors(
    passage: Passage,
    ours: Sequence[torch.Tensor],
    theirs: Iterable[torch.Tensor],
    inputs: Sequence[torch.Tensor],
) -> Errors:
    width = ours[0].shape[-1]
    apart, moved, flowing = np.zeros(width), np.zeros(width), 0.0
    for number, (f, g, x) in enumerate(zip(ours, theirs, inputs, strict=True)):
        if g.shape[-1] != width:
            return _UNKNOWN
        base = passage.select(number, x) if x.ndim > 1 else torch.zeros(1, width)
        kept = passage.select(number, f), passage.select(number, g)
        base = base.expand_as(kept[0])
        # in float64, so a few rows at a time
        for some in zip(*(torch.split(each, _ROWS) for each in (*kept, base)), strict=True):
            f_tokens, g_tokens, x_tokens = (each.double() for each in some)
            apart += (g_tokens - f_tokens).square_().sum(0).numpy()
            moved += (f_tokens - x_tokens).square_().sum(0).numpy()
            flowing += float(f_tokens.square_().sum())
    return _told(apart, moved, flowing)


def _head_errors(left: Passage, other: RunnableChain | None) -> Errors:
    """The error of another head on the first model's last hidden states, piece by piece."""
    if other is None:
        return _UNKNOWN
    apart: NDArray[np.float64] | float = 0.0
    moved: NDArray[np.float64] | float = 0.0
    for hidden in _pieces(left):
        ours, theirs = left.logits(hidden), other.end(hidden[None])[0]
        f, g = (x - x.mean(-1, keepdim=True) for x in (ours, theirs))
        apart = apart + (g - f).square().sum(0, dtype=torch.float64).numpy()
        moved = moved + f.square().sum(0, dtype=torch.float64).numpy()
    return _told(np.asarray(apart), np.asarray(moved), float(np.sum(moved)))


def _larger(first: float | None, second: float | None) -> float | None:
    known = [value for value in (first, second) if value is not None]
    return max(known) if known else None


def _pieces(passage: Passage) -> Iterator[torch.Tensor]:
    step = 1  # until it is known how many logits a token has
    for number in range(len(passage.batches)):
        hidden = passage.tokens(number)
        if step == 1:
            step = max(1, _LOGITS // passage.logits(hidden[:1]).shape[-1])
        yield from torch.split(hidden, step)


def _told(apart: NDArray[np.float64], moved: NDArray[np.float64], flowing: float) -> Errors:
    """From sums of squares over tokens, by dimension, to the three errors."""
    if not apart.any():
        return 0.0, 0.0, 0.0
    if not moved.any() or not flowing:
        return math.inf, math.inf, math.inf
    each = apart / np.maximum(moved, _DEAD * moved.mean())
    total = float(apart.sum())
    by_dimension = math.sqrt(float(each.mean()))
    return math.sqrt(total / float(moved.sum())), by_dimension, math.sqrt(total / flowing)
