"""The KV of all sequences: pages, shared by content, under the memory budget.

Equal tokens after an equal upstream have equal KV, so a page can serve any sequence that begins
as its first one did. What is findable stays after its sequences have gone, until memory is
wanted. Safe to call from several threads; no step's work here grows with the length of a text,
but for the digest of a page that has become full.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import chain

import torch

from blockzoo_runtime.kv.content import extend_chain
from blockzoo_runtime.kv.layout import PAGE, Layout
from blockzoo_runtime.kv.memory import Memory
from blockzoo_runtime.kv.pages import Pages
from blockzoo_runtime.kv.pool import Pool
from blockzoo_runtime.kv.stats import KVStats

_OWNER = "kv"


class KVCache:
    """Pools, sequences' pages in them, and what is cached.

    Parameters
    ----------
    memory : Memory
        Pages in use and cached are accounted for there, as ``"kv"``.
    device : torch.device
    """

    def __init__(self, memory: Memory, device: torch.device) -> None:
        self.memory = memory
        self.device = device
        self._pools: dict[Layout, tuple[Pool, ...]] = {}
        self._cached: OrderedDict[tuple[Pool, int], None] = OrderedDict()  # oldest first
        self._live: set[Pages] = set()
        self._cached_bytes = 0
        self._bytes = 0
        self._reused: list[int] = []
        self._lookups = 0
        self._evictions = 0
        self._lock = threading.RLock()
        memory.add_reclaimer(_OWNER, self._reclaim)

    def pools(self, layout: Layout) -> tuple[Pool, ...]:
        """The pages of each group."""
        pools = self._pools.get(layout)
        if pools is None:
            most = [self._most(layout.page_bytes(group)) for group in range(len(layout.groups))]
            pools = tuple(
                Pool(layout, group, self.device, pages) for group, pages in enumerate(most)
            )
            pools = self._pools.setdefault(layout, pools)
        return pools

    def _most(self, page_bytes: int) -> int | None:
        budget = self.memory.budget
        return None if budget is None else budget // page_bytes

    def pool(self, layout: Layout, group: int) -> Pool:
        """The pages of one group."""
        return self.pools(layout)[group]

    def part_after(self, layout: Layout, group: int) -> None:
        """Keep the hidden states after a group from now on: tenants part there."""
        if group < len(layout.groups) - 1:
            with self._lock:
                self.pool(layout, group).keep_hidden()

    def begin(
        self,
        layout: Layout,
        upstream: Sequence[str] | None,
        slots: Sequence[int],
        last: int = 1,
    ) -> Pages:
        """Pages for a new sequence: those that stand already, found by content.

        Parameters
        ----------
        layout : Layout
        upstream : sequence of str or None
            For each group, a digest of all that determines its KV beside the tokens. None:
            nothing is shared.
        slots : sequence of int
            The sequence's token ids so far.
        last : int
            How many of the last slots are to be computed in any case.
        """
        count = len(layout.groups)
        pages = Pages(layout, [[] for _ in range(count)], [0] * count)
        with self._lock:
            self._live.add(pages)
            if upstream is None:
                return pages
            self._lookups += 1
            self._reused.extend([0] * (count - len(self._reused)))
            pools = self.pools(layout)
            most = max(0, len(slots) - max(1, last)) // PAGE
            found = self._find(pools, pages, upstream, slots, most)
            for group, length in enumerate(_lengths(pools, found)):
                table = found[group][:length]
                for page in table:
                    self._retain(pools[group], page)
                pages.tables[group] = table
                pages.starts[group] = length * PAGE
                self._reused[group] += length * PAGE
            pages.published = pages.starts[-1] // PAGE
        return pages

    def _find(
        self,
        pools: Sequence[Pool],
        pages: Pages,
        upstream: Sequence[str],
        slots: Sequence[int],
        most: int,
    ) -> list[list[int]]:
        """The pages of the longest prefix in each group, none longer than in the group before."""
        found: list[list[int]] = []
        for pool, above in zip(pools, upstream, strict=True):
            table: list[int] = []
            for index in range(most):
                extend_chain(pages.chain, slots, index + 1)
                page = pool.content.find(above, pages.chain[index])
                if page is None:
                    break
                table.append(page)
            most = len(table)
            found.append(table)
        return found

    def _retain(self, pool: Pool, page: int) -> None:
        if pool.retain(page) == 1:
            del self._cached[pool, page]
            self._cached_bytes -= pool.bytes_of(page)

    def extend(self, pages: Pages, end: int) -> bool:
        """Have pages for the slots up to ``end`` in every group.

        Returns
        -------
        bool
            False, and nothing has been taken, where memory is out.
        """
        count = -(-end // PAGE)
        if all(len(table) >= count for table in pages.tables):
            return True
        pools = self.pools(pages.layout)
        # a group may stand further than the others, and than this step goes
        lacking = [max(0, count - len(table)) for table in pages.tables]
        hidden = [pool.hidden is not None for pool in pools]
        nbytes = sum(
            number * pool.page_bytes(kept)
            for pool, number, kept in zip(pools, lacking, hidden, strict=True)
        )
        # not under the lock: reclaimers of others take theirs
        if not self.memory.reserve(_OWNER, nbytes):
            return False
        with self._lock:
            try:
                for pool, number in zip(pools, lacking, strict=True):
                    pool.grow(number)
            except torch.OutOfMemoryError:
                self.memory.free(_OWNER, nbytes)
                return False
            for group, pool in enumerate(pools):
                taken = (pool.take(hidden[group]) for _ in range(lacking[group]))
                pages.tables[group].extend(taken)
            self._bytes += nbytes
        return True

    def computed(
        self, pages: Pages, upstream: Sequence[str] | None, slots: Sequence[int], end: int
    ) -> None:
        """Note that every group's KV stands up to slot ``end``; full pages become findable.

        Where another page with the same content is findable already, this one stays private;
        unless only this one has the hidden states that are kept now.
        """
        pages.starts = [max(start, end) for start in pages.starts]
        full = end // PAGE
        if upstream is None or full <= pages.published:
            return
        extend_chain(pages.chain, slots, full)
        with self._lock:
            for pool, table, above in zip(
                self.pools(pages.layout), pages.tables, upstream, strict=True
            ):
                for index in range(pages.published, full):
                    self._publish(pool, table[index], above, pages.chain[index])
            pages.published = full

    def _publish(self, pool: Pool, page: int, upstream: str, digest: bytes) -> None:
        other = pool.content.find(upstream, digest)
        if other is not None:
            if pool.has_hidden(other) or not pool.has_hidden(page):
                return
            if (pool, other) in self._cached:
                self._free(self._drop(pool, other))
            else:
                pool.content.forget(other)
        pool.content.publish(upstream, digest, page)

    def release(self, pages: Pages) -> None:
        """Let go of a sequence's pages; those that can be found stay cached."""
        with self._lock:
            if pages not in self._live:
                return
            self._live.remove(pages)
            pools, freed = self.pools(pages.layout), 0
            # what is left of a prefix is of use only from its beginning, and in a group only
            # where the groups before have it: evicted in the other order
            for index in reversed(range(max(map(len, pages.tables)))):
                for pool, table in zip(reversed(pools), reversed(pages.tables), strict=True):
                    if index < len(table):
                        freed += self._release(pool, table[index])
            self._free(freed)
            pages.tables = [[] for _ in pools]
            pages.starts = [0] * len(pools)
            pages.chain, pages.published = [], 0

    def _release(self, pool: Pool, page: int) -> int:
        """One reference less to a page; returns how many bytes are free now."""
        if pool.release(page):
            return 0
        nbytes = pool.bytes_of(page)
        if page in pool.content:
            self._cached[pool, page] = None
            self._cached_bytes += nbytes
            return 0
        pool.free(page)
        return nbytes

    def _drop(self, pool: Pool, page: int) -> int:
        """Free a cached page; returns its bytes."""
        del self._cached[pool, page]
        pool.content.forget(page)
        pool.free(page)
        nbytes = pool.bytes_of(page)
        self._cached_bytes -= nbytes
        return nbytes

    def _free(self, nbytes: int) -> None:
        self._bytes -= nbytes
        self.memory.free(_OWNER, nbytes)

    def _reclaim(self, wanted: int) -> int:
        """Evict the pages that were used longest ago; returns how many bytes that freed."""
        freed = 0
        with self._lock:
            while freed < wanted and self._cached:
                freed += self._drop(*next(iter(self._cached)))
                self._evictions += 1
            self._free(freed)
            for pool in self._all_pools():
                pool.shrink()
        return freed

    def _all_pools(self) -> Iterator[Pool]:
        return chain.from_iterable(list(self._pools.values()))

    def stats(self) -> KVStats:
        """Figures as of now."""
        with self._lock:
            cached = len(self._cached)
            used = sum(pool.occupied for pool in self._all_pools()) - cached
            empty = sum(
                len(table) * PAGE - start
                for pages in self._live
                for table, start in zip(pages.tables, pages.starts, strict=True)
            )
            return KVStats(
                pages_in_use=used,
                pages_cached=cached,
                bytes_in_use=self._bytes - self._cached_bytes,
                bytes_cached=self._cached_bytes,
                slots_filled=used * PAGE - empty,
                waste=empty / (used * PAGE) if used else 0.0,
                slots_reused=tuple(self._reused),
                lookups=self._lookups,
                evictions=self._evictions,
            )


def _lengths(pools: Sequence[Pool], found: Sequence[Sequence[int]]) -> list[int]:
    """How many of the pages found can be used in each group.

    Where a group has fewer than the one before, its input between must be at hand: the hidden
    states in the pages of the one before. From the last group to the first, each is as long as
    the hidden states reach; a shorter later group would never let an earlier one be longer.
    """
    lengths = [len(table) for table in found]
    for group in range(len(found) - 2, -1, -1):
        length = lengths[group + 1]
        table, pool = found[group], pools[group]
        while length < len(table) and pool.has_hidden(table[length]):
            length += 1
        lengths[group] = length
    return lengths
