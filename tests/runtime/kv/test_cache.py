"""Prefixes that are found again, what goes first when memory is short, and what it costs."""

from __future__ import annotations

import threading

import pytest
import torch
from blockzoo_runtime.kv import cache as cache_module
from blockzoo_runtime.kv.cache import KVCache
from blockzoo_runtime.kv.content import extend_chain
from blockzoo_runtime.kv.layout import PAGE, Layout
from blockzoo_runtime.kv.memory import Memory
from blockzoo_runtime.kv.pool import Pool

from tests.runtime.kv.writer import LAYOUT, Row, check, compute, upstream

CPU = torch.device("cpu")
ROUND = sum(LAYOUT.page_bytes(group) for group in range(len(LAYOUT.groups)))  # a page in each
TEXT = list(range(5 * PAGE))


def serve(kv: KVCache, blocks: tuple[int, ...], text: list[int]) -> Row:
    """A sequence that has been computed to its end."""
    row = Row(upstream(blocks), list(text), kv.begin(LAYOUT, upstream(blocks), text))
    assert kv.extend(row.pages, len(text))
    compute(kv, row, len(text))
    check(kv, row)
    return row


def finish(kv: KVCache, blocks: tuple[int, ...], text: list[int]) -> None:
    kv.release(serve(kv, blocks, text).pages)


def starts(kv: KVCache, blocks: tuple[int, ...], text: list[int]) -> list[int]:
    """What stands already for a sequence."""
    pages = kv.begin(LAYOUT, upstream(blocks), text)
    found = list(pages.starts)
    kv.release(pages)
    return found


@pytest.fixture
def kv() -> KVCache:
    return KVCache(Memory(20 * ROUND), CPU)


def test_a_prefix_is_found_in_whole_pages_and_never_the_last_slot(kv: KVCache) -> None:
    finish(kv, (0, 0, 0), TEXT)
    assert starts(kv, (0, 0, 0), TEXT) == [4 * PAGE] * 3
    assert starts(kv, (0, 0, 0), [*TEXT, 7]) == [5 * PAGE] * 3
    assert starts(kv, (0, 0, 0), TEXT[: 2 * PAGE + 3]) == [2 * PAGE] * 3
    assert starts(kv, (0, 0, 0), [9, *TEXT]) == [0] * 3
    assert starts(kv, (1, 0, 0), TEXT) == [0] * 3
    assert kv.stats().slots_reused == (11 * PAGE,) * 3
    assert kv.stats().lookups == 6


def test_some_last_slots_can_be_asked_to_be_computed_anyway(kv: KVCache) -> None:
    finish(kv, (0, 0, 0), TEXT)
    pages = kv.begin(LAYOUT, upstream((0, 0, 0)), TEXT, last=PAGE + 1)
    assert pages.starts == [3 * PAGE] * 3


def test_equal_pages_after_other_tokens_are_not_the_same(kv: KVCache) -> None:
    ones, twos, threes = [1] * PAGE, [2] * PAGE, [3] * PAGE
    finish(kv, (0, 0, 0), ones + twos)
    finish(kv, (0, 0, 0), threes + ones)
    assert starts(kv, (0, 0, 0), threes + twos + ones) == [PAGE] * 3


def test_nothing_is_shared_or_kept_without_an_upstream(kv: KVCache) -> None:
    for _ in range(2):
        pages = kv.begin(LAYOUT, None, TEXT)
        assert pages.starts == [0] * 3
        assert kv.extend(pages, len(TEXT))
        kv.computed(pages, None, TEXT, len(TEXT))
        kv.release(pages)
    assert kv.stats().pages_cached == kv.memory.used() == 0


def test_tenants_that_part_share_nothing_until_the_hidden_states_are_kept(kv: KVCache) -> None:
    finish(kv, (0, 0, 0), TEXT)
    assert starts(kv, (0, 0, 1), TEXT) == [0] * 3
    kv.part_after(LAYOUT, 1)
    # one of them computes it once more, and its pages take the place of those without
    finish(kv, (0, 0, 1), TEXT)
    assert starts(kv, (0, 0, 2), TEXT) == [4 * PAGE, 4 * PAGE, 0]
    finish(kv, (0, 0, 2), TEXT)
    assert starts(kv, (0, 0, 2), TEXT) == [4 * PAGE] * 3
    assert starts(kv, (0, 1, 2), TEXT) == [0] * 3


def test_pages_without_hidden_states_are_replaced_while_they_are_in_use(kv: KVCache) -> None:
    first = serve(kv, (0, 0, 0), TEXT)
    kv.part_after(LAYOUT, 1)
    finish(kv, (0, 0, 1), TEXT)
    check(kv, first)
    kv.release(first.pages)
    assert starts(kv, (0, 0, 2), TEXT) == [4 * PAGE, 4 * PAGE, 0]
    # the ones replaced are free: 5 in group 0, which keeps no hidden states, 5 in group 1, 10
    # in group 2, where the two are different
    assert kv.stats().pages_cached == 20


def test_a_chunk_may_end_before_what_a_group_has(kv: KVCache) -> None:
    kv.part_after(LAYOUT, 1)
    finish(kv, (0, 0, 0), TEXT)
    row = Row(upstream((0, 0, 1)), TEXT, kv.begin(LAYOUT, upstream((0, 0, 1)), TEXT))
    assert row.pages.starts == [4 * PAGE, 4 * PAGE, 0]
    for end in (3, 2 * PAGE + 1, len(TEXT)):
        assert kv.extend(row.pages, end)
        compute(kv, row, end)
        check(kv, row)
        assert row.pages.starts == [max(4 * PAGE, end)] * 2 + [end]
    assert kv.memory.used() == kv.stats().bytes_in_use + kv.stats().bytes_cached


def test_a_prefix_is_evicted_from_its_end_and_the_oldest_first() -> None:
    kv = KVCache(Memory(10 * ROUND), CPU)
    old, new = [1] * 4 * PAGE, [2] * 4 * PAGE
    finish(kv, (0, 0, 0), old)
    finish(kv, (0, 0, 0), new)
    assert kv.memory.reserve("weights", 5 * ROUND)
    assert starts(kv, (0, 0, 0), [*old, 0]) == [PAGE] * 3
    assert starts(kv, (0, 0, 0), [*new, 0]) == [4 * PAGE] * 3
    assert kv.stats().evictions == 9


def test_what_is_used_again_is_evicted_last() -> None:
    kv = KVCache(Memory(10 * ROUND), CPU)
    first, second = [1] * 4 * PAGE, [2] * 4 * PAGE
    finish(kv, (0, 0, 0), first)
    finish(kv, (0, 0, 0), second)
    starts(kv, (0, 0, 0), [*first, 0])
    assert kv.memory.reserve("weights", 6 * ROUND)
    assert starts(kv, (0, 0, 0), [*first, 0]) == [4 * PAGE] * 3
    assert starts(kv, (0, 0, 0), [*second, 0]) == [0] * 3


def test_where_memory_is_out_nothing_is_taken() -> None:
    kv = KVCache(Memory(5 * ROUND), CPU)
    row = serve(kv, (0, 0, 0), TEXT[: 4 * PAGE])
    tables = [list(table) for table in row.pages.tables]
    assert not kv.extend(row.pages, 6 * PAGE)
    assert row.pages.tables == tables
    assert kv.extend(row.pages, 5 * PAGE)
    assert kv.memory.used() == 5 * ROUND


def test_a_device_without_room_is_as_a_budget_without(
    kv: KVCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grow(pool: Pool, pages: int) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Pool, "grow", grow)
    pages = kv.begin(LAYOUT, None, TEXT)
    assert not kv.extend(pages, len(TEXT))
    assert pages.tables == [[], [], []]
    assert kv.memory.used() == 0


def test_a_pool_that_grows_keeps_what_is_in_it() -> None:
    kv = KVCache(Memory(None), CPU)
    kv.part_after(LAYOUT, 0)
    row = serve(kv, (0, 0, 0), TEXT)
    other = kv.begin(LAYOUT, None, [])
    before = kv.pool(LAYOUT, 0).capacity
    assert kv.extend(other, (before + 1) * PAGE)
    assert kv.pool(LAYOUT, 0).capacity == 2 * before
    check(kv, row)
    hidden = kv.begin(LAYOUT, upstream((0, 1, 0)), TEXT)
    assert hidden.starts == [4 * PAGE, 0, 0]
    check(kv, Row(upstream((0, 1, 0)), TEXT, hidden))


def test_a_pool_is_no_larger_than_the_budget_allows(kv: KVCache) -> None:
    serve(kv, (0, 0, 0), TEXT)
    assert all(
        pool.capacity * LAYOUT.page_bytes(pool.group) <= 20 * ROUND for pool in kv.pools(LAYOUT)
    )


def test_pools_without_pages_give_their_tensors_back_when_memory_is_wanted(kv: KVCache) -> None:
    kv.part_after(LAYOUT, 0)
    finish(kv, (0, 0, 0), TEXT)
    assert kv.memory.reserve("weights", 20 * ROUND)
    pool = kv.pool(LAYOUT, 0)
    assert pool.hidden is not None
    assert pool.keys.numel() == pool.values.numel() == pool.hidden.numel() == 0
    assert kv.pool(LAYOUT, 0).hidden is not None
    kv.memory.free("weights", 20 * ROUND)
    serve(kv, (0, 0, 0), TEXT)


def test_only_the_slots_of_a_last_page_are_wasted(kv: KVCache) -> None:
    first = serve(kv, (0, 0, 0), TEXT[: 4 * PAGE])
    assert kv.stats().waste == 0
    second = serve(kv, (0, 0, 0), [*TEXT[: 4 * PAGE], 1, 2])
    stats = kv.stats()
    assert stats.pages_in_use == 3 * 5
    assert stats.slots_filled == 3 * (4 * PAGE + 2)
    assert stats.waste == pytest.approx((PAGE - 2) / (5 * PAGE))
    for row in (first, second):
        kv.release(row.pages)
        kv.release(row.pages)  # a second time does nothing
    stats = kv.stats()
    assert (stats.pages_in_use, stats.pages_cached, stats.waste) == (0, 3 * 4, 0)


def test_pages_of_two_layouts_are_apart(kv: KVCache) -> None:
    finish(kv, (0, 0, 0), TEXT)
    other = Layout.of((1, 2, 1), 1, 1, 1, 1, torch.float32)
    assert kv.begin(other, upstream((0, 0, 0)), TEXT).starts == [0] * 3


def test_a_generated_token_costs_no_look_at_those_before(
    kv: KVCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = serve(kv, (0, 0, 0), TEXT)

    def no_digest(*_: object) -> None:
        raise AssertionError("there is no new page")

    monkeypatch.setattr(cache_module, "extend_chain", no_digest)
    for _ in range(PAGE - 1):
        row.slots.append(1)
        assert kv.extend(row.pages, len(row.slots))
        kv.computed(row.pages, row.upstream, row.slots, len(row.slots))


def test_a_digest_says_which_tokens_came_before() -> None:
    chains: list[list[bytes]] = [[], [], []]
    extend_chain(chains[0], TEXT, 1)
    extend_chain(chains[0], TEXT, 3)  # in two goes
    extend_chain(chains[1], TEXT, 3)
    extend_chain(chains[2], [*TEXT[: PAGE - 1], -1, *TEXT[PAGE:]], 3)
    assert chains[0] == chains[1]
    assert not set(chains[0]) & set(chains[2])


def test_a_layer_is_found_in_its_group() -> None:
    assert [LAYOUT.group_of(layer) for layer in range(4)] == [(0, 0), (1, 0), (1, 1), (2, 0)]
    for layer in (4, -1):
        with pytest.raises(IndexError):
            LAYOUT.group_of(layer)


@pytest.mark.timeout(60)
def test_steps_go_on_while_another_thread_loads_weights() -> None:
    kv = KVCache(Memory(12 * ROUND), CPU)
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            if kv.memory.reserve("weights", 3 * ROUND):
                kv.memory.free("weights", 3 * ROUND)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for text in range(60):
            finish(kv, (0, 0, 0), [text % 7] * (4 * PAGE + 1))
    finally:
        stop.set()
        thread.join()
    stats = kv.stats()
    assert stats.pages_in_use == 0
    assert stats.bytes_cached == kv.memory.used("kv") == stats.pages_cached * ROUND // 3


def test_of_equal_pages_the_first_is_found_and_the_second_is_free_afterwards(kv: KVCache) -> None:
    first = Row(upstream((0, 0, 0)), TEXT, kv.begin(LAYOUT, upstream((0, 0, 0)), TEXT))
    finish(kv, (0, 0, 0), TEXT)
    assert kv.extend(first.pages, len(TEXT))
    compute(kv, first, len(TEXT))
    cached = kv.stats().pages_cached
    kv.release(first.pages)
    assert kv.stats().pages_in_use == 0
    assert kv.stats().pages_cached == cached == 3 * 5


def test_of_a_prefixs_last_pages_the_last_groups_goes_first(kv: KVCache) -> None:
    kv.part_after(LAYOUT, 1)
    finish(kv, (0, 0, 0), TEXT)
    free = 20 * ROUND - kv.memory.used()
    assert kv.memory.reserve("weights", free + 1)
    assert starts(kv, (0, 0, 0), [*TEXT, 1]) == [5 * PAGE, 5 * PAGE, 4 * PAGE]


def test_a_page_that_another_still_uses_is_not_evicted(kv: KVCache) -> None:
    first = serve(kv, (0, 0, 0), TEXT)
    second = serve(kv, (0, 0, 0), [*TEXT, 1])
    assert second.pages.tables[0][:5] == first.pages.tables[0]
    kv.release(second.pages)
    assert kv.stats().pages_in_use == 3 * 5
    assert kv.stats().pages_cached == 0
    assert not kv.memory.reserve("weights", 16 * ROUND)
    check(kv, first)
    serve(kv, (1, 0, 0), TEXT)
    check(kv, first)


def test_a_later_group_is_of_no_use_beyond_those_before(kv: KVCache) -> None:
    first = serve(kv, (0, 0, 0), TEXT)
    kv.pool(LAYOUT, 0).content.forget(first.pages.tables[0][2])
    assert starts(kv, (0, 0, 0), TEXT) == [2 * PAGE] * 3
