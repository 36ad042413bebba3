"""Grades go by bounds, in every domain, and never below a model's own noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from blockzoo.equivalence.evidence import Evidence, evaluate
from blockzoo.equivalence.grade import GRADES, bounds, judge, judge_again
from blockzoo.equivalence.losses import Losses


def evidence(
    documents: int = 80, tokens: int = 60, seed: int = 0, **domains: tuple[float, float]
) -> Evidence:
    """Made-up losses: by domain a mean KL, and a share of tokens whose top-1 changes."""
    random = np.random.default_rng(seed)
    kl, differs, names = [], [], []
    for name, (mean, changed) in domains.items():
        names += [name] * documents
        of_document = np.repeat(random.uniform(0.7, 1.3, documents), tokens)
        kl.append(mean * of_document * random.exponential(1, documents * tokens))
        differs.append(random.random(documents * tokens) < changed)
    owners = np.repeat(np.arange(len(names)), tokens)
    return evaluate(Losses(owners, np.concatenate(kl), np.concatenate(differs)), names)


QUIET = (0.00005, 0.002)


@pytest.mark.parametrize(
    ("own", "plain", "verdict"),
    [
        ((0.0003, 0.005), (0.0002, 0.005), "A"),
        ((0.0014, 0.012), (0.0002, 0.005), "B"),
        ((0.004, 0.012), (0.0002, 0.005), "C"),
        ((0.0003, 0.025), (0.0002, 0.005), "C"),  # top-1 alone may cost the grade
        ((0.02, 0.012), (0.0002, 0.005), "rejected"),  # a mean over both would be C
        ((0.0003, 0.08), (0.0002, 0.005), "rejected"),
        ((0.006, 0.012), (0.0002, 0.005), "inconclusive"),  # just at the bound of C
    ],
)
def test_the_worst_domain_decides(
    own: tuple[float, float], plain: tuple[float, float], verdict: str
) -> None:
    floor = evidence(own=QUIET, plain=QUIET)
    found = judge([evidence(seed=1, own=own, plain=plain)], floor)[0]
    assert found.verdict == verdict, found
    if verdict in ("B", "C", "rejected", "inconclusive"):
        assert "own" in found.why


def test_no_bound_is_stricter_than_the_models_own_noise() -> None:
    noisy = evidence(own=(0.003, 0.03))
    candidate = evidence(seed=1, own=(0.0014, 0.02))
    kl, top1 = bounds(GRADES[0], noisy, "own")
    assert kl == noisy.domains["own"].kl and top1 == noisy.domains["own"].top1
    assert judge([candidate], noisy)[0].verdict == "A"
    assert judge([candidate], evidence(own=QUIET))[0].verdict == "B"


def test_few_documents_are_inconclusive_whatever_they_say() -> None:
    floor = evidence(documents=20, own=QUIET)
    found = judge([evidence(documents=20, own=(0.00001, 0.0))], floor)[0]
    assert found.verdict == "inconclusive" and "20 documents" in found.why


def test_one_of_many_must_show_more() -> None:
    """What passes by itself need not pass as the best of two hundred."""
    floor = evidence(own=QUIET)
    near = evidence(documents=30, tokens=40, seed=3, own=(0.0018, 0.01))
    alone = judge([near], floor)[0]
    other = evidence(seed=4, own=(0.02, 0.1))
    among = judge([near, *[other] * 200], floor)[0]
    assert alone.corrected["B"] < among.corrected["B"]
    assert among.corrected["B"] == pytest.approx(min(1, 201 * alone.p_values["B"]))
    assert judge_again(near, floor, among, 201) == among
    # by itself, and with other figures than before, it has the correction of Bonferroni
    changed = replace(among, p_values={})
    assert judge_again(near, floor, changed, 201).corrected["B"] == among.corrected["B"]
