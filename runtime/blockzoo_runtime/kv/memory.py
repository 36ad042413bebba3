"""One byte budget for weights and KV together.

Whoever keeps something reserves its bytes first. Where there is no room, the others are asked to
let go of what is idle: cached pages first, which are cheaply computed again, then weights.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

Reclaim = Callable[[int], int]
"""Lets go of about so many idle bytes, tells `Memory.free`, and returns how many it freed."""


class Memory:
    """The bytes that may be used, and by what they are.

    Reclaimers are called outside the lock, so they may take their own and call `free`.

    Parameters
    ----------
    budget : int or None
        Bytes; None: no limit.
    """

    def __init__(self, budget: int | None) -> None:
        self.budget = budget
        self._used: Counter[str] = Counter()
        self._reclaimers: list[tuple[str, Reclaim]] = []
        self._lock = threading.Lock()

    def add_reclaimer(self, owner: str, callback: Reclaim) -> None:
        """Ask this one too where memory is short; ``"kv"`` before all others."""
        self._reclaimers.append((owner, callback))
        self._reclaimers.sort(key=lambda one: one[0] != "kv")

    def used(self, owner: str | None = None) -> int:
        """Bytes that one owner holds, or all do."""
        with self._lock:
            return self._used.total() if owner is None else self._used[owner]

    def reserve(self, owner: str, nbytes: int) -> bool:
        """Take bytes; False, and nothing is taken, where there is no room even without the idle.

        Parameters
        ----------
        owner : str
            ``"weights"`` or ``"kv"``.
        nbytes : int
        """
        while True:
            lacking = self._take(owner, nbytes)
            if lacking <= 0:
                return True
            if self.budget is not None and nbytes > self.budget:
                return False
            freed = 0
            for _, reclaim in self._reclaimers:
                if freed < lacking:
                    freed += reclaim(lacking - freed)
            if not freed:
                return self._take(owner, nbytes) <= 0

    def _take(self, owner: str, nbytes: int) -> int:
        """Take bytes where they fit; how many are lacking where they do not."""
        with self._lock:
            if self.budget is not None:
                lacking = self._used.total() + nbytes - self.budget
                if lacking > 0 and nbytes > 0:
                    return lacking
            self._used[owner] += nbytes
            return 0

    def free(self, owner: str, nbytes: int) -> None:
        """Give bytes back."""
        with self._lock:
            self._used[owner] -= nbytes
