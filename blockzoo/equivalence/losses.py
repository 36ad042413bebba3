"""What swapped blocks do to a model's next-token distributions, token by token.

The original and its variants go through the same texts side by side, hop after hop, with one
block of each in memory at a time. A variant that swaps a late block shares the original's
hidden states up to there. Logits are made for a few tokens at a time and reduced at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from blockzoo.execution.chain import RunnableChain
from blockzoo.execution.passage import Passage, batch_size, batches, embedded_width, piece_length
from blockzoo.progress import Progress, silent

_HIDDEN_BYTES = 128 << 20  # of hidden states at a time, over all chains
_LOGITS = 1 << 21  # logits of one chain at a time
_LEAST_TOKENS = 2048  # at a time, whatever they take


@dataclass(frozen=True)
class Variant:
    """A chain to be compared with the original.

    Parameters
    ----------
    chain : RunnableChain
        Of as many hops as the original where it is the original for some of them.
    start : int or None
        How many hops behind the embedding are the original's, tensors and arithmetic; None
        where already the embedding is not.
    """

    chain: RunnableChain
    start: int | None = None

    @classmethod
    def changed_from(cls, hop: int, chain: RunnableChain) -> Variant:
        """One that is the original up to a hop, by its number in the model's chain."""
        return cls(chain, min(hop - 1, len(chain.compiled.hops)) if hop else None)


@dataclass(frozen=True)
class Losses:
    """A variant against the original, one entry a token.

    Parameters
    ----------
    documents : numpy.ndarray
        (tokens,) int64: the document of each.
    kl : numpy.ndarray
        (tokens,) float64: KL(original ‖ variant) of the next token's distribution, in nats.
    differs : numpy.ndarray
        (tokens,) bool: whether the most likely next token is another.
    """

    documents: NDArray[np.int64]
    kl: NDArray[np.float64]
    differs: NDArray[np.bool_]


def measure(
    original: RunnableChain,
    variants: Sequence[Variant],
    documents: Sequence[Sequence[int]],
    progress: Progress = silent,
) -> list[Losses]:
    """Take texts through a model and its variants.

    Parameters
    ----------
    original : RunnableChain
    variants : sequence of Variant
    documents : sequence of sequence of int
        The tokens of each.
    progress : Progress
        Told tokens, not bytes: after each hop, as if all hops took as long.

    Returns
    -------
    list of Losses
        One a variant, all with the same tokens in the same order.
    """
    total, done = sum(len(ids) for ids in documents), 0
    parts: list[list[Losses]] = [[] for _ in variants]
    for shard in _shards(original, len(variants), documents):
        size = sum(len(ids) for _, ids in shard)

        def tell(share: float, before: int = done, size: int = size) -> None:
            progress("tokens", before + int(share * size), total, 0)

        for found, losses in zip(parts, _measure(original, variants, shard, tell), strict=True):
            found.append(losses)
        done += size
        progress("tokens", done, total, 0)
    return [
        Losses(
            np.concatenate([part.documents for part in found]),
            np.concatenate([part.kl for part in found]),
            np.concatenate([part.differs for part in found]),
        )
        for found in parts
    ]


Shard = list[tuple[int, Sequence[int]]]


def _shards(chain: RunnableChain, variants: int, documents: Sequence[Sequence[int]]) -> list[Shard]:
    """Documents in groups whose hidden states fit in memory."""
    states = 4 * embedded_width(chain) * (variants + 2)
    most = max(_LEAST_TOKENS, _HIDDEN_BYTES // states)
    shards: list[Shard] = [[]]
    size = 0
    for number, ids in enumerate(documents):
        if shards[-1] and size + len(ids) > most:
            shards.append([])
            size = 0
        shards[-1].append((number, ids))
        size += len(ids)
    return shards


def _measure(
    original: RunnableChain,
    variants: Sequence[Variant],
    shard: Shard,
    tell: Callable[[float], None],
) -> list[Losses]:
    base = Passage(original, batches(shard, piece_length(original), batch_size(original)))
    passages = {
        number: Passage(variant.chain, base.batches)
        for number, variant in enumerate(variants)
        if variant.start is None
    }
    for hop in range(base.hops + 1):
        for number, variant in enumerate(variants):
            if variant.start == hop:
                passages[number] = base.fork(variant.chain)
        if hop < base.hops:
            base.step()
        for passage in passages.values():
            if passage.done < min(hop + 1, passage.hops):
                passage.step()
        tell((hop + 1) / (base.hops + 2))  # the heads take their time, too
    for passage in passages.values():  # a stitched chain may have more hops than the original
        while passage.done < passage.hops:
            passage.step()
    owners = torch.cat([batch.owners for batch in base.batches]).numpy()
    found = _heads(base, [passages[number] for number in range(len(variants))])
    return [Losses(owners, kl, differs) for kl, differs in found]


def _heads(
    base: Passage, passages: Sequence[Passage]
) -> list[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    kl: list[list[torch.Tensor]] = [[] for _ in passages]
    differs: list[list[torch.Tensor]] = [[] for _ in passages]
    step = 1  # until it is known how many logits a token has
    for batch in range(len(base.batches)):
        hidden = base.tokens(batch)
        others = [passage.tokens(batch) for passage in passages]
        start = 0
        while start < len(hidden):
            rows = slice(start, start + step)
            logits = base.logits(hidden[rows])
            expected = torch.log_softmax(logits, -1)
            top, weights = expected.argmax(-1), expected.exp()
            for number, passage in enumerate(passages):
                got = torch.log_softmax(passage.logits(others[number][rows]), -1)
                # rounding may leave a little less than zero of two equal distributions
                apart = (weights * (expected - got)).sum(-1).clamp_min(0)
                kl[number].append(apart.double())
                differs[number].append(got.argmax(-1) != top)
            start += len(logits)
            step = max(1, _LOGITS // logits.shape[-1])
    return [(torch.cat(k).numpy(), torch.cat(d).numpy()) for k, d in zip(kl, differs, strict=True)]
