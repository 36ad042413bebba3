"""Allocation: in the order of what a byte costs, and never worse than an exhaustive search."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from blockzoo.compact.allocate import Offer, frontier, hull, thin

_COSTS = st.lists(
    st.tuples(st.integers(0, 50), st.floats(0, 10, allow_nan=False)), min_size=1, max_size=5
)


def test_an_option_that_is_larger_and_worse_is_never_taken() -> None:
    assert hull([(10, 0.0), (5, 1.0), (7, 5.0), (0, 9.0)]) == [0, 1, 3]


def test_one_above_the_line_between_two_others_is_left_out() -> None:
    assert hull([(10, 0.0), (5, 9.0), (0, 10.0)]) == [0, 2]


def test_the_exact_one_comes_first_even_if_others_lose_nothing() -> None:
    assert hull([(10, 0.0), (5, 0.0), (0, 0.0), (0, 0.0)]) == [0, 2]


@given(st.lists(_COSTS, min_size=1, max_size=3))
def test_no_choice_of_as_few_bytes_loses_less(costs: list[list[tuple[int, float]]]) -> None:
    offers = [Offer(number, some) for number, some in enumerate(costs)]
    every = [(sum(c[0] for c in some), sum(c[1] for c in some)) for some in product(*costs)]
    before = None
    for choice in frontier(offers):
        size = sum(costs[key][number][0] for key, number in choice.items())
        loss = sum(costs[key][number][1] for key, number in choice.items())
        assert not any(s <= size and lost < loss - 1e-9 for s, lost in every)
        assert before is None or size <= before
        before = size


@given(st.lists(st.floats(0, 5), min_size=1, max_size=60), st.integers(2, 12))
def test_thinning_keeps_the_ends(losses: list[float], most: int) -> None:
    losses.sort()
    places = thin(losses, most)
    assert places[0] == 0 and places[-1] == len(losses) - 1
    assert places == sorted(set(places)) and len(places) <= max(most, 2) + 2
