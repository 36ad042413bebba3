"""Contenders in one run: timed in turns, in alternating order, medians side by side."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from blockzoo_runtime.blocks.profile import device_name
from contenders import Serve
from tenants import Family


@dataclass(frozen=True)
class Entry:
    """A contender in a contest.

    Parameters
    ----------
    name : str
    serve : callable
    tenants : sequence of str
        Request i goes to tenant i modulo their number.
    rounds : int, optional
        It takes part in so many rounds only, being slow.
    """

    name: str
    serve: Serve
    tenants: Sequence[str]
    rounds: int | None = None


@dataclass(frozen=True)
class Load:
    """What each contender is given in a round.

    Parameters
    ----------
    rows : int
        Requests at once.
    length, new : int
        Tokens of each prompt, and of each answer.
    """

    rows: int
    length: int
    new: int


def contest(
    title: str, entries: Sequence[Entry], family: Family, load: Load, rounds: int
) -> dict[str, list[float]]:
    """Seconds of every contender in each round.

    Prompts are new for every contender and round, so that no cache of prefixes can help.
    """
    seconds: dict[str, list[float]] = {entry.name: [] for entry in entries}

    def timed(entry: Entry, new: int, seed: object) -> float:
        prompts = family.prompts(load.rows, load.length, (title, entry.name, load, seed))
        names = [entry.tenants[i % len(entry.tenants)] for i in range(load.rows)]
        began = time.perf_counter()
        made = entry.serve(list(zip(names, prompts, strict=True)), new)
        took = time.perf_counter() - began
        assert [len(row) for row in made] == [new] * load.rows, entry.name
        return took

    for entry in entries:
        if entry.rounds is None:
            timed(entry, 2, "warm")
    for number in range(rounds):
        order = entries if number % 2 == 0 else list(reversed(entries))
        for entry in order:
            if entry.rounds is None or number < entry.rounds:
                seconds[entry.name].append(timed(entry, load.new, number))
    return seconds


@dataclass(frozen=True)
class Bar:
    """A figure beside what was wanted of it."""

    what: str
    value: float
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""

    @property
    def met(self) -> bool | None:
        if self.at_least is not None:
            return self.value >= self.at_least
        if self.at_most is not None:
            return self.value <= self.at_most
        return None

    def __str__(self) -> str:
        text = f"  {self.what:58}{self.value:10.3f} {self.unit}".rstrip()
        if self.met is None:
            return text
        side, bound = (">=", self.at_least) if self.at_least is not None else ("<=", self.at_most)
        return f"{text}   wanted {side} {bound:g}: {'met' if self.met else 'MISSED'}"

    def to_json(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "unit": self.unit,
            "at_least": self.at_least,
            "at_most": self.at_most,
            "met": self.met,
        }


def show(title: str, seconds: dict[str, list[float]], load: Load, bars: Sequence[Bar]) -> None:
    """Print one contest: absolute figures, then ratios."""
    print(f"\n{title}: {load.rows} requests, {load.length} + {load.new} tokens each")
    print(f"  {'':34}{'seconds':>9}{'tokens/s':>10}{'fastest':>9}{'slowest':>9}")
    for name, took in seconds.items():
        middle = median(took)
        print(
            f"  {name:34}{middle:9.2f}{load.rows * load.new / middle:10.1f}"
            f"{min(took):9.2f}{max(took):9.2f}"
        )
    tell(bars)


def tell(bars: Sequence[Bar]) -> None:
    for bar in bars:
        print(bar)


def best_of(count: int, call: Callable[[], object]) -> float:
    """Seconds of the fastest of some calls."""
    best = float("inf")
    for _ in range(count):
        began = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - began)
    return best


def machine() -> dict[str, Any]:
    """What the figures hold for."""
    import peft
    import transformers

    return {
        "device": device_name(torch.device("cpu")),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "python": platform.python_version(),
    }
