"""How well a chain foretells text: the loss of each next token.

For a model of its own, such as a stitched one, that is the natural measure; whether it may stand
in for another is told by the distance of their distributions (`losses`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from blockzoo.equivalence.statistics import rate
from blockzoo.execution.chain import RunnableChain
from blockzoo.execution.passage import Passage, batches, piece_length
from blockzoo.progress import Progress, silent

_LOGITS = 1 << 23  # at a time


@dataclass(frozen=True)
class Surprise:
    """What a chain did not foresee, one entry a token; the first of a piece is not foretold.

    Parameters
    ----------
    documents : numpy.ndarray
        (tokens,) int64: the document of each.
    nats : numpy.ndarray
        (tokens,) float64: minus the logarithm of the probability that it was given.
    """

    documents: NDArray[np.int64]
    nats: NDArray[np.float64]

    def perplexity(self, first: int = 0, last: int | None = None) -> float:
        """``exp`` of the mean loss over the tokens of documents first … last − 1."""
        inside = self.documents >= first
        if last is not None:
            inside &= self.documents < last
        return math.exp(float(self.nats[inside].mean()))

    def above(self, other: Surprise) -> float:
        """By how many nats a token this is worse than another on the same text, at least.

        A one-sided 95% bound of the paired difference, by document; less than nought where this
        is the better one.
        """
        return rate(self.nats - other.nats, self.documents).low


def surprise(
    chain: RunnableChain,
    documents: Sequence[Sequence[int]],
    progress: Progress = silent,
    what: str = "perplexity",
) -> Surprise:
    """Take texts through a chain, a batch at a time.

    Parameters
    ----------
    chain : RunnableChain
    documents : sequence of sequence of int
        The tokens of each.
    progress : Progress
        Told tokens of `what`.
    """
    made = batches(list(enumerate(documents)), min(piece_length(chain), 256), 2048)
    total, done = sum(int(batch.mask.sum()) for batch in made), 0
    owners, nats = [], []
    for batch in made:
        passage = Passage(chain, [batch])
        while passage.done < passage.hops:
            passage.step()
        mask = batch.mask.bool()
        foretold = mask[:, 1:] & mask[:, :-1]
        [hidden] = passage.hidden
        before, after = hidden[:, :-1][foretold], batch.ids[:, 1:][foretold]
        start, step = 0, 1  # until it is known how many logits a token has
        while start < len(before):
            logits = passage.logits(before[start : start + step]).double()
            told = torch.log_softmax(logits, -1)
            nats.append(-told.gather(-1, after[start : start + len(told), None])[:, 0])
            start += len(told)
            step = max(1, _LOGITS // logits.shape[-1])
        owners.append(batch.documents[:, None].expand(foretold.shape)[foretold])
        progress(what, done := done + int(mask.sum()), total, 0)
    return Surprise(torch.cat(owners).numpy(), torch.cat(nats).numpy())
