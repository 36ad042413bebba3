"""Any use of the cache, against a model that writes what must stand in every slot."""

from __future__ import annotations

from collections import Counter

import torch
from blockzoo_runtime.kv.cache import KVCache
from blockzoo_runtime.kv.layout import PAGE
from blockzoo_runtime.kv.memory import Memory
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from tests.runtime.kv.writer import LAYOUT, Row, check, compute, upstream

GROUPS = range(len(LAYOUT.groups))
BUDGET = 20 * sum(LAYOUT.page_bytes(group) for group in GROUPS)
#: few texts and few models, so that they meet
PARTS = st.sampled_from([(1,) * 8, (2,) * 8, (3,) * 8, (1,) * 11, (-1, -2)])
TEXTS = st.lists(PARTS, min_size=1, max_size=5).map(lambda parts: [i for p in parts for i in p])
BLOCKS = st.tuples(st.just(0), st.integers(0, 1), st.integers(0, 2))


class Uses(RuleBasedStateMachine):
    """Requests come, are computed in chunks, grow and go, while weights press on the budget."""

    rows = Bundle("rows")

    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory(BUDGET)
        self.kv = KVCache(self.memory, torch.device("cpu"))
        self.memory.add_reclaimer("weights", self.let_go)
        self.live: list[Row] = []
        self.idle = 0  # bytes of weights that nobody needs now

    def let_go(self, wanted: int) -> int:
        freed = min(wanted, self.idle)
        self.idle -= freed
        self.memory.free("weights", freed)
        return freed

    @rule(target=rows, blocks=BLOCKS, text=TEXTS, last=st.integers(1, 9))
    def begin(self, blocks: tuple[int, ...], text: list[int], last: int) -> Row:
        pages = self.kv.begin(LAYOUT, upstream(blocks), text, last)
        assert max(pages.starts) <= max(0, len(text) - last)
        row = Row(upstream(blocks), text, pages)
        self.live.append(row)
        return row

    @rule(row=rows, more=st.integers(1, 40))
    def step(self, row: Row, more: int) -> None:
        end = min(row.pages.starts[-1] + more, len(row.slots))
        before = [list(table) for table in row.pages.tables]
        if self.kv.extend(row.pages, end):
            compute(self.kv, row, end)
        else:
            assert row.pages.tables == before

    @rule(blocks=BLOCKS, text=TEXTS, chunk=st.integers(4, 48), keep=st.booleans())
    def serve(self, blocks: tuple[int, ...], text: list[int], chunk: int, keep: bool) -> None:
        row = self.begin(blocks, text, 1)
        while row.pages.starts[-1] < len(text):
            end = min(row.pages.starts[-1] + chunk, len(text))
            if not self.kv.extend(row.pages, end):
                break
            compute(self.kv, row, end)
            check(self.kv, row)
        if not keep or len(self.live) > 4:
            self.release(row)

    @rule(row=rows, token=st.integers(1, 2))
    def generate(self, row: Row, token: int) -> None:
        row.slots.append(token)

    @rule(row=consumes(rows))
    def release(self, row: Row) -> None:
        self.kv.release(row.pages)
        self.live.remove(row)

    @rule(group=st.sampled_from(GROUPS))
    def part(self, group: int) -> None:
        self.kv.part_after(LAYOUT, group)
        # nothing comes in after the last
        assert (self.kv.pool(LAYOUT, group).hidden is not None) == (group < GROUPS[-1])

    @rule(nbytes=st.integers(1, BUDGET // 2), idle=st.booleans())
    def load_weights(self, nbytes: int, idle: bool) -> None:
        if self.memory.reserve("weights", nbytes):
            if idle:
                self.idle += nbytes
        else:
            # refused: then nothing idle is left
            assert self.idle == 0 and self.kv.stats().pages_cached == 0

    @rule()
    def unload_weights(self) -> None:
        self.memory.free("weights", self.memory.used("weights"))
        self.idle = 0

    @invariant()
    def what_stands_is_right(self) -> None:
        for row in self.live:
            check(self.kv, row)

    @invariant()
    def every_page_is_accounted_for(self) -> None:
        stats = self.kv.stats()
        in_use = empty = nbytes = occupied = 0
        for group in GROUPS:
            pool = self.kv.pool(LAYOUT, group)
            references = Counter(page for row in self.live for page in row.pages.tables[group])
            assert all(pool.references(page) == n for page, n in references.items())
            in_use += len(references)
            occupied += pool.occupied
            nbytes += sum(pool.bytes_of(page) for page in references)
            filled = {
                (page, slot)
                for row in self.live
                for index, page in enumerate(row.pages.tables[group])
                for slot in range(min(PAGE, max(0, row.pages.starts[group] - index * PAGE)))
            }
            empty += len(references) * PAGE - len(filled)
        assert stats.pages_in_use == in_use
        assert stats.pages_in_use + stats.pages_cached == occupied
        assert stats.bytes_in_use == nbytes
        assert stats.bytes_in_use + stats.bytes_cached == self.memory.used("kv")
        assert stats.slots_filled == in_use * PAGE - empty
        assert self.memory.used() <= BUDGET


Uses.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestAnyUse = Uses.TestCase
