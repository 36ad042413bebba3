"""Policies are functions of numbers, so they are tried with numbers."""

from __future__ import annotations

from dataclasses import replace

from blockzoo_runtime.assembly.leanest import leanest
from blockzoo_runtime.assembly.policy import Candidate
from blockzoo_runtime.assembly.sparing import sparing
from hypothesis import given
from hypothesis import strategies as st

EXACT = Candidate(
    loss=0.0, total=1000, missing=0, over=0, own=1000, share=1000.0, requests=0, current=False
)
#: shares all but a tenth with another model
CERTIFIED = replace(EXACT, loss=0.001, total=1100, own=100, share=600.0)

sizes = st.integers(0, 4000)
others = st.builds(
    Candidate,
    loss=st.floats(1e-6, 0.006),
    total=st.integers(1, 4000),
    missing=sizes,
    over=st.one_of(st.just(0), sizes),
    own=sizes,
    share=st.floats(1, 4000),
    requests=st.integers(0, 9),
    current=st.just(False),
)
several = st.tuples(others, st.lists(others, max_size=5)).map(
    lambda made: [replace(made[0], loss=0.0), *sorted(made[1], key=lambda one: one.loss)]
)


def test_the_exact_chain_serves_where_it_is_here_and_fits() -> None:
    assert sparing([EXACT, CERTIFIED]) == 0
    assert sparing([EXACT, replace(CERTIFIED, current=True)]) == 0


def test_what_is_here_serves_instead_of_what_would_have_to_be_loaded() -> None:
    assert sparing([replace(EXACT, missing=1000), replace(CERTIFIED, missing=100)]) == 1


def test_where_both_would_have_to_be_loaded_whole_the_exact_chain_is() -> None:
    assert sparing([replace(EXACT, missing=1000), replace(CERTIFIED, missing=1100)]) == 0


def test_nobody_is_let_go_of_for_a_chain_that_another_can_stand_in_for() -> None:
    assert sparing([replace(EXACT, over=500), replace(CERTIFIED, missing=100)]) == 1


def test_where_nothing_fits_models_meet_on_what_they_have_in_common() -> None:
    over = [replace(EXACT, over=500), replace(CERTIFIED, missing=1100, over=600)]
    assert sparing(over) == 1


def test_a_model_stays_with_a_chain_that_costs_but_little_more() -> None:
    exact = replace(EXACT, missing=300)
    assert sparing([exact, replace(CERTIFIED, missing=100)]) == 1
    assert sparing([replace(exact, current=True), replace(CERTIFIED, missing=100)]) == 0
    assert sparing([replace(exact, missing=400, current=True), CERTIFIED]) == 1


@given(several)
def test_what_fits_goes_before_what_does_not(candidates: list[Candidate]) -> None:
    if any(not one.over for one in candidates):
        assert not candidates[sparing(candidates)].over


@given(several)
def test_a_lossier_chain_serves_only_where_it_saves(candidates: list[Candidate]) -> None:
    chosen = candidates[sparing(candidates)]
    for one in candidates:
        if one.loss < chosen.loss and bool(one.over) <= bool(chosen.over):
            saves = one.share > chosen.share or one.missing > chosen.missing
            assert saves or one.over > chosen.over


@given(several, st.integers(0, 5))
def test_the_choice_stands_while_nothing_changes(candidates: list[Candidate], before: int) -> None:
    before %= len(candidates)
    for _ in range(3):
        candidates = [replace(one, current=i == before) for i, one in enumerate(candidates)]
        after = sparing(candidates)
        if _:
            assert after == before
        before = after


@given(several)
def test_the_leanest_adds_least(candidates: list[Candidate]) -> None:
    assert candidates[leanest(candidates)].share == min(one.share for one in candidates)
