"""One budget for all."""

from __future__ import annotations

import threading

import pytest
from blockzoo_runtime.kv.memory import Memory


class Idle:
    """Bytes that are held and may be let go of."""

    def __init__(self, memory: Memory, owner: str, nbytes: int) -> None:
        self.memory, self.owner, self.nbytes = memory, owner, nbytes
        self.lock = threading.RLock()
        assert memory.reserve(owner, nbytes)
        memory.add_reclaimer(owner, self.reclaim)

    def reclaim(self, wanted: int) -> int:
        with self.lock:
            freed = min(wanted, self.nbytes)
            self.nbytes -= freed
            self.memory.free(self.owner, freed)
            return freed


def test_without_a_budget_all_fits() -> None:
    memory = Memory(None)
    assert memory.reserve("weights", 1 << 60)
    assert memory.used() == 1 << 60


def test_what_does_not_fit_is_refused_and_nothing_is_taken() -> None:
    memory = Memory(10)
    assert memory.reserve("weights", 6)
    assert not memory.reserve("kv", 5)
    assert memory.reserve("kv", 4)
    assert (memory.used("weights"), memory.used("kv"), memory.used()) == (6, 4, 10)
    memory.free("weights", 6)
    assert memory.used() == 4


def test_cached_pages_go_before_idle_weights() -> None:
    memory = Memory(10)
    weights, pages = Idle(memory, "weights", 5), Idle(memory, "kv", 5)
    assert memory.reserve("weights", 3)
    assert (weights.nbytes, pages.nbytes) == (5, 2)
    assert memory.reserve("kv", 4)
    assert (weights.nbytes, pages.nbytes) == (3, 0)
    assert memory.used() == 10


def test_more_than_the_budget_lets_nothing_go() -> None:
    memory = Memory(10)
    pages = Idle(memory, "kv", 5)
    assert not memory.reserve("weights", 11)
    assert pages.nbytes == 5


@pytest.mark.timeout(30)
def test_two_that_reserve_under_their_own_locks_do_not_wait_for_each_other() -> None:
    """A reclaimer's owner may hold its lock when it frees, while another thread asks it."""
    memory = Memory(100)
    weights, pages = Idle(memory, "weights", 50), Idle(memory, "kv", 50)

    def use(mine: Idle) -> None:
        for _ in range(2000):
            if memory.reserve(mine.owner, 7):
                with mine.lock:
                    mine.nbytes += 7

    threads = [threading.Thread(target=use, args=(idle,)) for idle in (weights, pages)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert memory.used() == weights.nbytes + pages.nbytes <= 100
