"""From figures to a grade: A, B or C, or rejected, or inconclusive.

A grade is given where the swap holds its bounds in **every** domain: each bound is tested with
an error of 5%, and all of them must pass, so the whole has an error of at most 5% without any
correction (Berger 1982, intersection–union). A mean over domains could hide the one that
matters. Where many candidates are tried, Holm's correction stands over them.

No bound is stricter than what rounding to bfloat16 does to the receiving model by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from blockzoo.equivalence.evidence import Evidence
from blockzoo.equivalence.statistics import ALPHA, holm

Verdict = Literal["A", "B", "C", "rejected", "inconclusive"]

#: fewer than these in a domain say nothing
LEAST_DOCUMENTS = 30
LEAST_TOKENS = 1000


@dataclass(frozen=True)
class Grade:
    """The bounds of a grade.

    Parameters
    ----------
    name : str
    kl : float
        The most that the mean KL of a domain may be, in nats a token.
    top1 : float
        The least share of tokens whose most likely successor stays the same.
    """

    name: Literal["A", "B", "C"]
    kl: float
    top1: float


#: best first
GRADES = (Grade("A", 0.001, 0.985), Grade("B", 0.002, 0.975), Grade("C", 0.006, 0.96))
DEFAULT = "B"


@dataclass(frozen=True)
class Judgement:
    """A verdict and why.

    Parameters
    ----------
    verdict : str
    why : str
        In words.
    p_values : dict of str to float
        For each grade, how likely such figures are for a swap that just breaks one of its
        bounds.
    corrected : dict of str to float
        The same, corrected for the number of candidates: what the verdict goes by.
    """

    verdict: Verdict
    why: str
    p_values: Mapping[str, float]
    corrected: Mapping[str, float]

    @property
    def passed(self) -> bool:
        return self.verdict in ("A", "B", "C")

    def to_json(self) -> dict[str, Any]:
        p_values, corrected = dict(self.p_values), dict(self.corrected)
        return {**vars(self), "p_values": p_values, "corrected": corrected}

    def at_least(self, grade: str) -> bool:
        """Whether the verdict is this grade or a better one."""
        return self.passed and self.verdict <= grade


def bounds(grade: Grade, floor: Evidence, domain: str) -> tuple[float, float]:
    """A grade's bounds on KL and on top-1 for a model of that noise floor."""
    own = floor.domains[domain]
    return max(grade.kl, own.kl), min(grade.top1, own.top1)


def judge(candidates: Sequence[Evidence], floor: Evidence) -> list[Judgement]:
    """Grade candidates that were tried together.

    Parameters
    ----------
    candidates : sequence of Evidence
        Fresh ones: with the rates that the figures were told from.
    floor : Evidence
        The receiving model in bfloat16 against itself in float32, on the same texts.
    """
    raw = [_p_values(one, floor) for one in candidates]
    corrected = {
        grade.name: holm(np.array([p_values[grade.name] for p_values in raw])) for grade in GRADES
    }
    return [
        _judge(evidence, floor, p_values, {name: float(c[i]) for name, c in corrected.items()})
        for i, (evidence, p_values) in enumerate(zip(candidates, raw, strict=True))
    ]


def judge_again(
    evidence: Evidence, floor: Evidence, before: Judgement, candidates: int
) -> Judgement:
    """Grade one of several candidates again, by itself.

    Where its p-values are what they were, so is their correction; else it is Bonferroni's,
    which needs no other candidate and is never smaller.
    """
    p_values = _p_values(evidence, floor)
    if p_values == dict(before.p_values):
        return _judge(evidence, floor, p_values, dict(before.corrected))
    corrected = {name: min(1.0, p * candidates) for name, p in p_values.items()}
    return _judge(evidence, floor, p_values, corrected)


def _judge(
    evidence: Evidence, floor: Evidence, p_values: dict[str, float], corrected: dict[str, float]
) -> Judgement:
    verdict, why = _verdict(evidence, floor, corrected)
    return Judgement(verdict, why, p_values, corrected)


def _verdict(
    evidence: Evidence, floor: Evidence, corrected: Mapping[str, float]
) -> tuple[Verdict, str]:
    for name, figures in evidence.domains.items():
        if figures.documents < LEAST_DOCUMENTS or figures.tokens < LEAST_TOKENS:
            why = (
                f"{name} has {figures.documents} documents and {figures.tokens} tokens; at least "
                f"{LEAST_DOCUMENTS} and {LEAST_TOKENS} are needed"
            )
            return "inconclusive", why
    for number, grade in enumerate(GRADES):
        if corrected[grade.name] <= ALPHA:
            why = f"every domain holds the bounds of {grade.name}"
            if number:
                why += f"; {_obstacle(evidence, floor, GRADES[number - 1])}"
            return grade.name, why
    last = GRADES[-1]
    for name, figures in evidence.domains.items():
        kl, top1 = bounds(last, floor, name)
        if figures.kl_low > kl:
            why = f"KL in {name} is at least {figures.kl_low:.2g}, over the {kl:.2g} of {last.name}"
            return "rejected", why
        if figures.top1_high < top1:
            why = (
                f"top-1 in {name} is at most {100 * figures.top1_high:.1f} %, "
                f"under the {100 * top1:.1f} % of {last.name}"
            )
            return "rejected", why
    return "inconclusive", f"{_obstacle(evidence, floor, last)}, or not: more text would tell"


def _obstacle(evidence: Evidence, floor: Evidence, grade: Grade) -> str:
    """What keeps a swap from a grade."""
    for name, figures in evidence.domains.items():
        kl, top1 = bounds(grade, floor, name)
        if figures.kl_high > kl:
            return f"KL in {name} may be {figures.kl_high:.2g}, over the {kl:.2g} of {grade.name}"
        if figures.top1_low < top1:
            return (
                f"top-1 in {name} may be {100 * figures.top1_low:.1f} %, "
                f"under the {100 * top1:.1f} % of {grade.name}"
            )
    return f"among so many candidates {grade.name} may be held by chance"


def _p_values(evidence: Evidence, floor: Evidence) -> dict[str, float]:
    """For each grade the largest p-value over domains and bounds."""
    found: dict[str, float] = {}
    for grade in GRADES:
        largest = 0.0
        for name in evidence.domains:
            kl, top1 = bounds(grade, floor, name)
            of_kl, of_top1 = evidence.kl[name].p_value(kl), evidence.differs[name].p_value(1 - top1)
            largest = max(largest, of_kl, of_top1)
        found[grade.name] = largest
    return found
