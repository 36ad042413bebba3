"""How much each matrix gets: the least loss for every number of bytes, as it is foretold.

To second order the loss of a chain is the sum of its matrices' losses, and each of those is
proportional to the mean squared error of the matrix's outputs. The factor is measured, once for
each matrix. Options then trade bytes for loss; on the lower convex hull of each matrix's, steps
are taken in the order of what they save for what they cost.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Offer(Generic[K]):
    """Something to be chosen for, and what there is to choose from.

    Parameters
    ----------
    key : hashable
    costs : sequence of (int, float)
        For each option its bytes and its foretold loss.
    """

    key: K
    costs: Sequence[tuple[int, float]]


def hull(costs: Sequence[tuple[int, float]]) -> list[int]:
    """The options of the lower convex hull, the most bytes first.

    Only these are the best for some price of a byte; what loses as little for more bytes is
    there, too, so that the exact one always comes first.
    """
    best: list[int] = []  # from few bytes to many: loss must not rise
    for i in sorted(range(len(costs)), key=lambda i: costs[i]):
        if not best or (costs[i][1] <= costs[best[-1]][1] and costs[i] != costs[best[-1]]):
            best.append(i)
    kept: list[int] = []
    for i in reversed(best):
        while len(kept) > 1 and _slope(costs, kept[-2], kept[-1]) >= _slope(costs, kept[-1], i):
            kept.pop()
        kept.append(i)
    return kept


def _slope(costs: Sequence[tuple[int, float]], more: int, less: int) -> float:
    """Loss for each byte saved on the way from one option to a cheaper one."""
    saved = costs[more][0] - costs[less][0]
    lost = costs[less][1] - costs[more][1]
    return lost / saved if saved else float("inf")


def frontier(offers: Sequence[Offer[K]]) -> list[Mapping[K, int]]:
    """Choices, from the most bytes to the fewest; neighbours differ in one.

    Parameters
    ----------
    offers : sequence of Offer

    Returns
    -------
    list of dict
        The number of an option for every key.
    """
    hulls = {offer.key: hull(offer.costs) for offer in offers}
    costs = {offer.key: offer.costs for offer in offers}
    steps = sorted(
        (_slope(costs[key], more, less), number, place)
        for number, (key, options) in enumerate(hulls.items())
        for place, (more, less) in enumerate(pairwise(options))
    )
    keys = list(hulls)
    choice = {key: options[0] for key, options in hulls.items()}
    found: list[Mapping[K, int]] = [dict(choice)]
    for _, number, place in steps:
        choice[keys[number]] = hulls[keys[number]][place + 1]
        found.append(dict(choice))
    return found


def thin(losses: Sequence[float], most: int) -> list[int]:
    """Some places of a rising sequence, evenly spread by its logarithm; ends included."""
    if len(losses) <= most:
        return list(range(len(losses)))
    floor = max(losses[-1] * 1e-6, 1e-12)
    logs = [math.log(max(loss, floor)) for loss in losses]
    step = (logs[-1] - logs[0]) / (most - 1)
    wanted = [logs[0] + step * i for i in range(most)]
    apart = [[abs(log - want) for log in logs] for want in wanted]
    return sorted({each.index(min(each)) for each in apart} | {0, len(losses) - 1})
