"""What must not grow while `soak` runs, looked at every few seconds."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from blockzoo_runtime import LLM

_EVERY = 2.0
#: what counts as growth between the run's second quarter and its last: share, and at least
_GROWTH = {
    "rss_anon": (0.05, 8_000_000),
    "threads": (0.0, 4),
    "files": (0.25, 64),
    "maps": (0.25, 128),
    "tasks": (0.5, 16),
    "pages_in_use": (0.5, 64),
}


class Watch:
    """Samples of one process and its engine.

    Parameters
    ----------
    budget : int
        Bytes that weights and KV together may take.
    """

    def __init__(self, budget: int) -> None:
        self.samples: list[dict[str, Any]] = []
        self._budget = budget
        self._process = psutil.Process()
        self._next = 0.0
        self._left: list[str] = []

    def look(self, llm: LLM, tasks: int) -> None:
        """Take a sample, where the last one is some seconds old."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _EVERY
        stats = llm.stats()
        status = Path("/proc/self/status").read_text()
        lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        self.samples.append(
            {
                "at": now,
                "rss": self._process.memory_info().rss,
                "rss_anon": 1024 * int(lines["RssAnon"].split()[0]),
                "threads": threading.active_count(),
                "files": self._process.num_fds(),
                "maps": len(Path("/proc/self/maps").read_text().splitlines()),
                "tasks": tasks,
                "running": stats.running,
                "waiting": stats.waiting,
                "pages_in_use": stats.kv.pages_in_use,
                "held": stats.resident_bytes + stats.kv.bytes_in_use + stats.kv.bytes_cached,
                "preempted": stats.preempted,
            }
        )

    def settle(self, llm: LLM) -> None:
        """When all clients have gone, nothing may be left of them; waits a little for it."""
        for _ in range(100):
            stats = llm.stats()
            if not stats.running and not stats.waiting and not stats.kv.pages_in_use:
                return
            time.sleep(0.1)
        self._left.append(
            f"{stats.running} requests run, {stats.waiting} wait and {stats.kv.pages_in_use} "
            "pages are in use when all clients have gone"
        )

    def findings(self) -> list[str]:
        """What grew, or was more than the budget."""
        found = list(self._left)
        most = max((sample["held"] for sample in self.samples), default=0)
        if most > self._budget:
            found.append(f"{most:,} bytes were held, the budget is {self._budget:,}")
        count = len(self.samples)
        for key, (share, least) in _GROWTH.items():
            early = [sample[key] for sample in self.samples[count // 4 : count // 2]]
            late = [sample[key] for sample in self.samples[3 * count // 4 :]]
            if not early or not late:
                continue
            before, after = median(early), median(late)
            if after - before > max(share * before, least):
                found.append(f"{key} grew from {before:,.0f} to {after:,.0f}")
        return found

    def some(self, most: int) -> list[dict[str, Any]]:
        """Samples spread evenly over the run."""
        return self.samples[:: max(1, -(-len(self.samples) // most))]

    def table(self) -> str:
        """Some of the samples, as lines of text."""
        if not self.samples:
            return "no samples"
        keys = [key for key in self.samples[0] if key != "at"]
        lines = ["".join(f"{key:>14}" for key in ("seconds", *keys))]
        for sample in self.some(12):
            seconds = sample["at"] - self.samples[0]["at"]
            lines.append(f"{seconds:14.0f}" + "".join(f"{sample[key]:14,}" for key in keys))
        return "\n".join(lines)
