"""Which rows run: fairly between tenants, within memory, and everything ends."""

from __future__ import annotations

import math

import pytest
from blockzoo_runtime.engine.job import Limits
from blockzoo_runtime.errors import BusyError
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.engine.simulation import FakeRoom, OneBudgetRoom, Simulation


def test_a_request_runs_at_once_and_ends() -> None:
    simulation = Simulation()
    job = simulation.add("a", prompt=10, wanted=3)
    simulation.run()
    assert simulation.first[job] == 1 and simulation.last[job] == 3
    assert not simulation.room.held and len(simulation.scheduler) == 0


def test_a_long_prompt_is_read_in_chunks_beside_those_that_generate() -> None:
    simulation = Simulation(limits=Limits(tokens=64))
    short = [simulation.add("short", 1, 40) for _ in range(4)]
    simulation.step()
    long = simulation.add("long", 600, 1)
    stood = 0
    while long not in simulation.first:
        plan = simulation.step()
        assert sum(turn.job in short for turn in plan.turns) == 4  # nobody waits for it
        [end] = [turn.end for turn in plan.turns if turn.job is long]
        assert end - stood <= 60
        stood = end
    assert simulation.now == 1 + math.ceil(600 / 60)
    simulation.run()
    assert {simulation.last[job] for job in short} == {40}


def test_requests_of_a_tenant_start_in_the_order_they_came() -> None:
    simulation = Simulation(limits=Limits(rows=2))
    jobs = [simulation.add("a", 5, 1 + n % 3) for n in range(12)]
    simulation.run()
    started = [simulation.first[job] for job in jobs]
    assert started == sorted(started)


def test_too_many_waiting_requests_are_refused_and_only_that_tenants() -> None:
    simulation = Simulation(limits=Limits(waiting=3))
    for _ in range(3):
        simulation.add("greedy", 5, 5)
    with pytest.raises(BusyError, match="greedy: 3 of its requests"):
        simulation.add("greedy", 5, 5)
    simulation.add("modest", 5, 5)
    simulation.step()
    simulation.add("greedy", 5, 5)
    simulation.run()
    assert len(simulation.last) == 5


def test_a_tenant_that_sends_twenty_times_as_much_does_not_delay_the_others() -> None:
    def others(hog: int) -> list[int]:
        simulation = Simulation(limits=Limits(rows=8, tokens=64))
        waits = []
        for now in range(600):
            for _ in range(hog if now % 40 == 0 else 0):
                simulation.add("hog", 30, 20)
            if now % 40 == 3:
                for tenant in ("b", "c", "d"):
                    simulation.add(tenant, 30, 20)
            simulation.step()
        simulation.run()
        for job, first in simulation.first.items():
            if job.tenant != "hog":
                waits.append(first - simulation.arrived[job])
        return sorted(waits)

    alone, beside = others(0), others(20)
    p95 = int(0.95 * len(alone))
    assert len(alone) == len(beside) == 45
    assert beside[p95] <= alone[p95] + 2


loads = st.lists(
    st.tuples(
        st.integers(0, 60),  # the step it comes in
        st.sampled_from("abcde"),
        st.integers(1, 90),  # prompt
        st.integers(1, 30),  # tokens wanted
    ),
    min_size=1,
    max_size=80,
)


@settings(max_examples=60, deadline=None)
@given(loads, st.sampled_from([1, 3, 8]), st.sampled_from([16, 64]))
def test_backlogged_tenants_are_served_alike_at_all_times(
    load: list[tuple[int, str, int, int]], rows: int, tokens: int
) -> None:
    """Theorem 4.4 of arXiv 2401.00588: over any stretch of time in which both of two tenants
    have something waiting, what they are served differs by a constant at most.
    """
    simulation = Simulation(limits=Limits(rows=rows, tokens=tokens))
    unit = max(tokens, 2.0)  # the most that is charged at once
    pending = sorted(load)
    history: list[tuple[set[str], dict[str, float]]] = []
    while pending or len(simulation.scheduler):
        while pending and pending[0][0] <= simulation.now:
            _, tenant, prompt, wanted = pending.pop(0)
            simulation.add(tenant, prompt, wanted)
        simulation.step()
        waiting = {t for t in "abcde" if simulation.scheduler.waiting(t)}
        history.append((waiting, dict(simulation.service)))
        assert simulation.now < 5000
    for one in "abcde":
        for other in "abcde":
            if one >= other:
                continue
            low = high = None
            for waiting, service in history:
                gap = service.get(one, 0.0) - service.get(other, 0.0)
                if not {one, other} <= waiting:
                    low = high = None
                    continue
                low = gap if low is None else min(low, gap)
                high = gap if high is None else max(high, gap)
                assert high - low <= 2 * unit


@settings(max_examples=60, deadline=None)
@given(loads)
def test_no_tenant_waits_while_others_are_served_more(
    load: list[tuple[int, str, int, int]],
) -> None:
    """A backlogged tenant gets at least its share of all service, less a constant."""
    simulation = Simulation(limits=Limits(rows=4, tokens=32))
    pending = sorted(load)
    began: dict[str, tuple[dict[str, float], int]] = {}
    while pending or len(simulation.scheduler):
        while pending and pending[0][0] <= simulation.now:
            _, tenant, prompt, wanted = pending.pop(0)
            simulation.add(tenant, prompt, wanted)
        simulation.step()
        for tenant in "abcde":
            if not simulation.scheduler.waiting(tenant):
                began.pop(tenant, None)
            elif tenant not in began:
                began[tenant] = dict(simulation.service), simulation.now
            else:
                since = began[tenant][0]
                got = {t: simulation.service[t] - since.get(t, 0.0) for t in "abcde"}
                assert got[tenant] >= sum(got.values()) / 5 - 2 * 32


def test_unused_share_cannot_be_saved_up() -> None:
    simulation = Simulation(limits=Limits(rows=4, tokens=64))
    for _ in range(40):
        simulation.add("steady", 8, 50)
    simulation.add("sparse", 8, 300)  # one row: less than its half
    for _ in range(200):
        simulation.step()
    for _ in range(40):
        simulation.add("sparse", 8, 50)
    before = dict(simulation.service)
    for _ in range(50):
        simulation.step()
    got = {t: simulation.service[t] - before[t] for t in before}
    assert got["steady"] >= 0.45 * sum(got.values())


@settings(max_examples=60, deadline=None)
@given(loads, st.integers(16, 60))
def test_everything_ends_when_kv_is_short(
    load: list[tuple[int, str, int, int]], pages: int
) -> None:
    simulation = Simulation(FakeRoom(pages=pages), Limits(rows=8, tokens=64))
    pending = sorted(load)
    while pending or len(simulation.scheduler):
        while pending and pending[0][0] <= simulation.now:
            _, tenant, prompt, wanted = pending.pop(0)
            simulation.add(tenant, prompt, wanted)
        simulation.step()
        assert sum(simulation.room.held.values()) <= pages
        assert simulation.now < 5000
    assert not simulation.stuck and len(simulation.last) == len(load)


def test_what_does_not_fit_alone_is_given_up_and_the_rest_goes_on() -> None:
    simulation = Simulation(FakeRoom(pages=10))
    never = simulation.add("a", 100, 5)
    outgrown = simulation.add("b", 60, 40)
    fine = [simulation.add("c", 20, 20) for _ in range(3)]
    simulation.run()
    assert simulation.stuck == [never, outgrown]
    assert all(job in simulation.last for job in fine)


def test_the_newest_of_the_most_charged_tenant_gives_way() -> None:
    simulation = Simulation(FakeRoom(pages=14))
    old, new = (simulation.add("much", 32, 60) for _ in range(2))
    for _ in range(20):
        simulation.step()
    assert old.started and new.started
    little = simulation.add("little", 16, 4)
    while little not in simulation.first:
        simulation.step()
    assert old.started and not new.started
    simulation.run()
    assert simulation.preempted >= 1 and not simulation.stuck
    assert {old, new, little} == set(simulation.last)


def test_being_preempted_is_not_charged() -> None:
    free, tight = Simulation(FakeRoom()), Simulation(FakeRoom(pages=14))
    for simulation in (free, tight):
        for _ in range(4):
            simulation.add("a", 30, 40)
        simulation.run()
    assert tight.preempted > 0 == free.preempted
    assert tight.service == free.service


def test_models_that_do_not_fit_together_take_turns() -> None:
    sizes = {"a": 6, "b": 5, "c": 4}
    simulation = Simulation(FakeRoom(weights=10, sizes=sizes))
    jobs = [simulation.add(model, 10, 100) for model in sizes for _ in range(2)]
    seen: list[frozenset[str]] = []
    while len(simulation.scheduler):
        models = frozenset(turn.job.model for turn in simulation.step().turns)
        assert sum(sizes[model] for model in models) <= 10
        seen.append(models)
        assert simulation.now < 2000
    assert set(simulation.last) == set(jobs)
    for model in sizes:  # nobody waits long, and a change is not for a step or two
        runs = "".join("x" if model in models else "." for models in seen).strip(".")
        assert max(map(len, runs.split("x"))) <= 40
        assert min(map(len, filter(None, runs.split(".")[:-1])), default=8) >= 8


def test_a_small_model_comes_along_but_does_not_make_another_wait_for_longer() -> None:
    def steps(small: bool) -> tuple[int, int]:
        room = FakeRoom(weights=10, sizes={"a": 6, "b": 6, "small": 1})
        simulation = Simulation(room)
        simulation.add("a", 10, 500)
        simulation.step()
        waiting = simulation.add("b", 10, 5)
        beside = simulation.add("small", 10, 5) if small else None
        simulation.run()
        return simulation.first[waiting], simulation.first[beside] if beside else 0

    alone, _ = steps(small=False)
    waited, came_along = steps(small=True)
    assert came_along < waited == alone


@settings(max_examples=60, deadline=None)
@given(loads, st.integers(16, 60), st.integers(5, 12))
def test_everything_ends_when_weights_and_kv_are_short(
    load: list[tuple[int, str, int, int]], pages: int, weights: int
) -> None:
    sizes = dict(zip("abcde", (5, 4, 3, 2, 1), strict=True))
    room = FakeRoom(pages, weights, sizes)
    room.turns = 4
    simulation = Simulation(room, Limits(rows=8, tokens=64))
    pending = sorted(load)
    while pending or len(simulation.scheduler):
        while pending and pending[0][0] <= simulation.now:
            _, tenant, prompt, wanted = pending.pop(0)
            simulation.add(tenant, prompt, wanted)
        simulation.step()
        assert simulation.now < 5000
    assert not simulation.stuck and len(simulation.last) == len(load)


@settings(max_examples=150, deadline=None)
@given(loads, st.integers(22, 60))
def test_everything_ends_when_weights_and_kv_share_a_budget(
    load: list[tuple[int, str, int, int]], pages: int
) -> None:
    room = OneBudgetRoom(pages, dict(zip("abcde", (6, 5, 4, 3, 2), strict=True)))
    room.turns = 4
    simulation = Simulation(room, Limits(rows=8, tokens=64))
    pending = sorted(load)
    while pending or len(simulation.scheduler):
        while pending and pending[0][0] <= simulation.now:
            _, tenant, prompt, wanted = pending.pop(0)
            simulation.add(tenant, prompt, wanted)
        simulation.step()
        assert room.used() <= pages
        assert simulation.now < 5000
    assert not simulation.stuck and len(simulation.last) == len(load)


def test_a_model_that_loads_holds_up_nobody_and_earns_no_credit() -> None:
    room = FakeRoom()
    room.loading.add("slow")
    simulation = Simulation(room, Limits(rows=4))
    for _ in range(60):
        simulation.add("fast", 8, 20)
        simulation.add("slow", 8, 20)
    for _ in range(100):
        simulation.step()
    assert simulation.service["slow"] == 0 and simulation.service["fast"] > 700
    room.loading.clear()
    before = dict(simulation.service)
    for _ in range(50):
        simulation.step()
    assert simulation.service["fast"] - before["fast"] >= 0.4 * 50 * 4 * 2
    simulation.run()


def test_what_must_be_computed_whole_is() -> None:
    simulation = Simulation(FakeRoom(pages=20), Limits(tokens=32))
    whole = simulation.add("a", 100, 20, atomic=100)
    simulation.add("b", 40, 30)
    ends = []
    for _ in range(3):
        ends += [turn.end for turn in simulation.step().turns if turn.job is whole]
    assert ends[0] == 100
    simulation.scheduler.restart(whole)
    length = whole.length
    ends = []
    while len(ends) < 3:
        ends += [turn.end for turn in simulation.step().turns if turn.job is whole]
    assert length > 101 and ends == [100, 101, 102]  # the rest one by one, as before
    simulation.run()


def test_a_cancelled_request_gives_everything_back() -> None:
    simulation = Simulation(limits=Limits(rows=1))
    running, waiting = simulation.add("a", 10, 50), simulation.add("a", 10, 50)
    simulation.step()
    simulation.scheduler.remove(running)
    simulation.scheduler.remove(waiting)
    assert not simulation.room.held and len(simulation.scheduler) == 0
