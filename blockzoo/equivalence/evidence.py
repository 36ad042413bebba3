"""The figures of a certification: what a swap costs in each domain, and over all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from blockzoo.equivalence.statistics import Rate, rate, tail

if TYPE_CHECKING:
    from blockzoo.equivalence.losses import Losses

_DIGITS = 6  # significant ones that are kept


@dataclass(frozen=True)
class Figures:
    """What a variant did to a model's next-token distributions on some text.

    Parameters
    ----------
    documents, tokens : int
        How much was measured.
    kl, kl_low, kl_high : float
        The mean of KL(original ‖ variant) over tokens in nats, and its one-sided 95% bounds.
    kl_p99, kl_p99_high : float
        The loss that one token in a hundred exceeds, and its upper bound.
    top1, top1_low, top1_high : float
        The share of tokens whose most likely successor stays the same, and its bounds.
    """

    documents: int
    tokens: int
    kl: float
    kl_low: float
    kl_high: float
    kl_p99: float
    kl_p99_high: float
    top1: float
    top1_low: float
    top1_high: float

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Figures:
        return cls(**data)


@dataclass(frozen=True)
class Evidence:
    """A variant's figures, by domain and together.

    Parameters
    ----------
    domains : dict of str to Figures
    together : Figures
        All tokens of all domains.
    kl, differs : dict of str to Rate
        By domain, what the figures were told from; absent in a record that was read.
    """

    domains: Mapping[str, Figures]
    together: Figures
    kl: Mapping[str, Rate] = field(default_factory=dict, repr=False, compare=False)
    differs: Mapping[str, Rate] = field(default_factory=dict, repr=False, compare=False)

    @property
    def worst(self) -> str:
        """The domain with the largest mean loss."""
        return max(self.domains, key=lambda name: self.domains[name].kl)

    def to_json(self) -> dict[str, Any]:
        domains = {name: figures.to_json() for name, figures in self.domains.items()}
        return {"domains": domains, "together": self.together.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evidence:
        domains = {name: Figures.from_json(figures) for name, figures in data["domains"].items()}
        return cls(domains, Figures.from_json(data["together"]))


def evaluate(losses: Losses, domains: Sequence[str], *, resamples: int = 0) -> Evidence:
    """Figures from token losses.

    Parameters
    ----------
    losses : Losses
    domains : sequence of str
        The domain of each document, by its number.
    resamples : int
        See `statistics.rate`.
    """
    names = list(dict.fromkeys(domains))
    numbers = np.array([names.index(name) for name in domains])
    of_token = numbers[losses.documents]
    kl, differs, figures = {}, {}, {}
    for number, name in enumerate(names):
        part = of_token == number
        some = replace(
            losses,
            documents=losses.documents[part],
            kl=losses.kl[part],
            differs=losses.differs[part],
        )
        kl[name], differs[name], figures[name] = _figures(some, resamples)
    _, _, together = _figures(losses, resamples)
    return Evidence(figures, together, kl, differs)


def _figures(losses: Losses, resamples: int) -> tuple[Rate, Rate, Figures]:
    kl = rate(losses.kl, losses.documents, resamples=resamples)
    changed = losses.differs.astype(np.float64)
    differs = rate(changed, losses.documents, counted=True, resamples=resamples)
    p99, p99_high = tail(losses.kl, losses.documents)
    told = [kl.value, kl.low, kl.high, p99, p99_high]
    told += [1 - differs.value, 1 - differs.high, 1 - differs.low]
    count = len(np.unique(losses.documents))
    rounded = [float(f"{value:.{_DIGITS}g}") for value in told]
    return kl, differs, Figures(count, len(losses.kl), *rounded)
