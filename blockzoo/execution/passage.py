"""Texts on their way through a chain, hop after hop: one block's weights in memory at a time.

The hidden states of the texts are kept instead, so that a model larger than memory can be
looked at block by block, and several chains can be taken through the same texts side by side.
Similarity by activations and certification are made of this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace

import torch

from blockzoo.execution.chain import RunnableChain
from blockzoo.execution.context import Context

#: tokens of a piece; longer documents are cut into several
LENGTH = 512
#: tokens of a batch, padding included
BATCH = 4096
_NUMBERS = 1 << 20  # in a batch's hidden states: what a block computes inside is several times it


@dataclass(frozen=True)
class Batch:
    """Pieces of documents, padded on the left to one length.

    Parameters
    ----------
    ids : torch.Tensor
        (B, T) int64.
    mask : torch.Tensor
        (B, T) int64, 0 at padding.
    documents : torch.Tensor
        (B,) int64: which document each row is of.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    documents: torch.Tensor

    @property
    def owners(self) -> torch.Tensor:
        """(tokens,) int64: the document of each token that is no padding, row after row."""
        return self.documents[:, None].expand(self.mask.shape)[self.mask.bool()]


def batches(
    documents: Sequence[tuple[int, Sequence[int]]], length: int = LENGTH, size: int = BATCH
) -> list[Batch]:
    """Cut documents into pieces and put pieces of like lengths together.

    Parameters
    ----------
    documents : sequence of (int, sequence of int)
        A number that says which document it is, and its tokens.
    length : int
        Tokens of a piece at most.
    size : int
        Tokens of a batch at most, padding included.
    """
    pieces = [
        (number, list(ids[start : start + length]))
        for number, ids in documents
        for start in range(0, len(ids), length)
    ]
    pieces.sort(key=lambda piece: -len(piece[1]))
    made: list[Batch] = []
    rows: list[tuple[int, list[int]]] = []
    for piece in pieces:
        if rows and (len(rows) + 1) * len(rows[0][1]) > size:
            made.append(_batch(rows))
            rows = []
        rows.append(piece)
    return [*made, _batch(rows)] if rows else made


def piece_length(chain: RunnableChain) -> int:
    """Tokens of a piece that suit a model: `LENGTH`, or what it was made for if that is less."""
    return min(LENGTH, chain.context_length or LENGTH)


def batch_size(chain: RunnableChain) -> int:
    """Tokens of a batch that suit a model: `BATCH`, or fewer for a wide one, to save memory."""
    return min(BATCH, max(LENGTH, _NUMBERS // embedded_width(chain)))


def embedded_width(chain: RunnableChain) -> int:
    """How many numbers a token is at the embedding."""
    return next(iter(chain.compiled.embedding.refs())).shape[-1]


def _batch(rows: Sequence[tuple[int, list[int]]]) -> Batch:
    longest = len(rows[0][1])
    ids = torch.zeros((len(rows), longest), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, (_, tokens) in enumerate(rows):
        ids[row, longest - len(tokens) :] = torch.tensor(tokens)
        mask[row, longest - len(tokens) :] = 1
    return Batch(ids, mask, torch.tensor([number for number, _ in rows]))


class Passage:
    """Some batches in one chain, at one hop.

    Parameters
    ----------
    chain : RunnableChain
        Embeds the batches at once.
    batches : sequence of Batch

    Attributes
    ----------
    hidden : list of torch.Tensor
        For each batch the hidden states (B, P + T, width) before the hop that is next; P counts
        an adapter's virtual tokens. Neither list nor states are ever changed in place.
    done : int
        Hops behind the embedding that have run.
    """

    def __init__(self, chain: RunnableChain, batches: Sequence[Batch]) -> None:
        self.chain = chain
        self.batches = batches
        contexts = self._begin()
        self.hidden = [context.hidden for context in contexts]
        # hidden states would stay in memory there
        self._contexts = [replace(context, hidden=torch.empty(0)) for context in contexts]
        self.done = 0

    @property
    def hops(self) -> int:
        """How many hops there are between embedding and head."""
        return len(self.chain.compiled.hops)

    def step(self) -> None:
        """Run the next hop."""
        for _ in self.stepping():
            pass

    def stepping(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Run the next hop, a batch at a time; to be run through to the end.

        Yields
        ------
        (torch.Tensor, torch.Tensor)
            A batch's hidden states before and after.
        """
        # a list of its own, as a fork may have the other; a batch is let go of when it has run
        waiting, after = self.hidden[::-1], []
        self.hidden = []
        with self.chain.hop(self.done) as run:
            for context in self._contexts:
                hidden = waiting.pop()
                after.append(run(hidden, context))
                yield hidden, after[-1]
        self.hidden = after
        self.done += 1

    def applied(self, number: int, hidden: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """One of this chain's hops on other hidden states of the same texts; nothing moves on.

        Yields
        ------
        torch.Tensor
            A batch's hidden states after the hop.
        """
        contexts = self._begin() if self._cached else self._contexts
        with self.chain.hop(number) as run:
            for h, context in zip(hidden, contexts, strict=True):
                yield run(h, context)

    def fork(self, chain: RunnableChain) -> Passage:
        """The same texts here in another chain that was equal up to this hop."""
        if self._cached:  # keys and values of a prefix: each passage needs its own
            other = Passage(chain, self.batches)
            while other.done < self.done:
                other.step()
            return other
        other = copy(self)
        other.chain = chain
        return other

    def tokens(self, number: int) -> torch.Tensor:
        """The hidden states of a batch's tokens, (tokens, width), in the order of `owners`."""
        return self.select(number, self.hidden[number])

    def select(self, number: int, hidden: torch.Tensor) -> torch.Tensor:
        """Of hidden states (B, P + T, width) those of tokens, (tokens, width)."""
        mask = self.batches[number].mask.bool()
        return hidden[:, -mask.shape[1] :][mask]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(tokens, V) float32 of hidden states after the last hop, (tokens, width)."""
        return self.chain.end(hidden[None])[0]

    @property
    def _cached(self) -> bool:
        virtual = self.chain.compiled.virtual
        return virtual is not None and virtual.needs_cache

    def _begin(self) -> list[Context]:
        return [self.chain.begin(batch.ids, batch.mask) for batch in self.batches]
