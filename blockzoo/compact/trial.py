"""The text that a plan is made on: one part of it to fit, the other to see what that is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from blockzoo.equivalence.losses import Losses, Variant, measure
from blockzoo.errors import SourceError
from blockzoo.execution.chain import RunnableChain
from blockzoo.execution.passage import Batch, batch_size, batches, piece_length
from blockzoo.execution.texts import Text
from blockzoo.progress import Progress, silent

if TYPE_CHECKING:
    from typing import Any

_FIT = 16_000  # tokens of a text that codes are fitted on
_PROBED = 1_000  # tokens of a text that every matrix's factor is measured on
_CHECKED = 4_000  # tokens of a text that chains are compared on
_BESIDE = 32  # chains that go through a text together: the hidden states of all are in memory
_FEWEST_DOCUMENTS = 8
_FEWEST_TOKENS = 1_000

Documents = list[list[int]]


@dataclass(frozen=True)
class Loss:
    """What a chain costs on text that it was not fitted on.

    Parameters
    ----------
    kl : float
        Mean KL in the worst domain, nats a token.
    top1 : float
        The share of tokens whose likeliest successor stays the same, in the worst domain.
    """

    kl: float
    top1: float


@dataclass(frozen=True)
class Trial:
    """A tuned model and the calibration text, by domain.

    Parameters
    ----------
    chain : RunnableChain
    fit, check : dict of str to list of list of int
        Tokens of documents.
    """

    chain: RunnableChain
    fit: Mapping[str, Documents]
    check: Mapping[str, Documents]

    def batches(self) -> list[Batch]:
        """What codes are fitted on."""
        documents = [d for name in self.fit for d in _some(self.fit[name], _FIT)]
        return batches([*enumerate(documents)], piece_length(self.chain), batch_size(self.chain))

    def probe(self, variants: Sequence[Variant], progress: Progress = silent) -> list[float]:
        """The mean KL of each variant in the domain where it is worst, on a little of the text."""
        losses = self._measure(self.fit, _PROBED, variants, progress)
        return [max(float(kl.mean()) for kl, _ in each) for each in losses]

    def loss(self, variants: Sequence[Variant], progress: Progress = silent) -> list[Loss]:
        """What each variant costs."""
        return [
            Loss(
                max(float(kl.mean()) for kl, _ in each),
                min(1 - float(differs.mean()) for _, differs in each),
            )
            for each in self._measure(self.check, _CHECKED, variants, progress)
        ]

    def _measure(
        self,
        text: Mapping[str, Documents],
        most: int,
        variants: Sequence[Variant],
        progress: Progress,
    ) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        documents, domains = [], []
        for number, name in enumerate(text):
            some = _some(text[name], most)
            documents += some
            domains += [number] * len(some)
        of_document = np.array(domains)

        def split(losses: Losses) -> list[tuple[np.ndarray, np.ndarray]]:
            numbers = of_document[losses.documents]
            return [
                (losses.kl[numbers == n], losses.differs[numbers == n]) for n in range(len(text))
            ]

        found = []
        for first in range(0, len(variants), _BESIDE):
            beside = variants[first : first + _BESIDE]
            tell = _PartOf(progress, first, len(beside), len(variants))
            found += [split(losses) for losses in measure(self.chain, beside, documents, tell)]
        return found


@dataclass(frozen=True)
class _PartOf:
    """What is told of some variants as a part of what all of them take."""

    progress: Progress
    first: int
    count: int
    all: int

    def __call__(self, what: str, done: int, total: int, new: int) -> None:
        self.progress(what, self.first * total + self.count * done, self.all * total, new)


def make_trial(chain: RunnableChain, texts: Sequence[Text], tokenizer: Any) -> Trial:
    """Part each text's documents in two, every other one.

    Raises
    ------
    SourceError
        Where there is no text, or one is too small.
    """
    if not texts:
        raise SourceError(
            "there is no text to fit on", hint="give --calibration FILE, of the model's own domain"
        )
    fit, check = {}, {}
    for text in texts:
        documents = text.tokens(tokenizer, 2 * _FIT)
        tokens = sum(map(len, documents))
        if len(documents) < _FEWEST_DOCUMENTS or tokens < _FEWEST_TOKENS:
            raise SourceError(
                f"{text.path} is too small to fit on: {len(documents)} documents and {tokens:,} "
                f"tokens, where at least {_FEWEST_DOCUMENTS} and {_FEWEST_TOKENS:,} are needed",
                hint="documents stand between blank lines",
            )
        fit[text.domain], check[text.domain] = documents[::2], documents[1::2]
    return Trial(chain, fit, check)


def _some(documents: Documents, most: int) -> Documents:
    """Whole documents with so many tokens, evenly taken."""
    total = sum(map(len, documents))
    if total <= most:
        return documents
    step = total / most
    return [documents[int(i * step)] for i in range(int(len(documents) / step))] or documents[:1]
