"""Plays a workload against an `LLM` and times what its clients see.

Each request is sent at its time, by a thread of its own that reads the answer as it streams.
Times count from when a request was due, so a wait before it could be sent counts too.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from blockzoo.errors import BlockzooError
from blockzoo.explore.table import Column, Table
from blockzoo_runtime.engine.request import Request, Sampling
from blockzoo_runtime.workload import Arrival, Workload

if TYPE_CHECKING:
    from blockzoo_runtime.llm import LLM

_COLUMNS = (
    Column("model"),
    Column("requests", kind="int"),
    Column("failed", kind="int"),
    Column("prompt_tokens", kind="int"),
    Column("new_tokens", kind="int"),
    Column("first_p50", "first token p50, ms", kind="int"),
    Column("first_p95", "p95", kind="int"),
    Column("token_p50", "per token p50, ms", kind="int"),
    Column("token_p95", "p95", kind="int"),
)


@dataclass(frozen=True)
class Outcome:
    """What became of one request; times in seconds after the workload's start.

    Parameters
    ----------
    model : str
    at : float
        When it was due.
    first, end : float or None
        When the first token and when the last one came.
    prompt_tokens, new_tokens : int
    error : str or None
        What it failed of.
    assembly : str or None
        The chain that answered, see `Completion`.
    """

    model: str
    at: float
    first: float | None
    end: float | None
    prompt_tokens: int
    new_tokens: int
    error: str | None = None
    assembly: str | None = None

    @property
    def to_first(self) -> float | None:
        """Seconds to the first token."""
        return None if self.first is None else self.first - self.at

    @property
    def per_token(self) -> float | None:
        """Seconds between tokens after the first; None where there was but one."""
        if self.first is None or self.end is None or self.new_tokens < 2:
            return None
        return (self.end - self.first) / (self.new_tokens - 1)


@dataclass(frozen=True)
class Replayed:
    """A workload's outcomes.

    Parameters
    ----------
    workload : str
        Its name.
    made_up : tuple of str
        The workload's.
    outcomes : tuple of Outcome
        In the order of the arrivals.
    seconds : float
        From the start to the last answer's end.
    """

    workload: str
    made_up: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Stable keys: the totals, a row for each model, and every outcome."""
        return {
            "workload": self.workload,
            "made_up": list(self.made_up),
            "seconds": self.seconds,
            **_figures("", self.outcomes),
            "tokens_per_second": self.tokens_per_second,
            "models": self.table().to_json(),
            "outcomes": [asdict(outcome) for outcome in self.outcomes],
        }

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens of all requests over the whole time."""
        made = sum(outcome.new_tokens for outcome in self.outcomes)
        return made / self.seconds if self.seconds else 0.0

    def table(self) -> Table:
        """A row for each model, and one for all."""
        by_model: dict[str, list[Outcome]] = {}
        for outcome in self.outcomes:
            by_model.setdefault(outcome.model, []).append(outcome)
        rows = [_figures(model, found) for model, found in sorted(by_model.items())]
        rows.append(_figures("all", self.outcomes))
        note = f"{self.seconds:.1f} s, {self.tokens_per_second:,.1f} generated tokens per second"
        if self.made_up:
            note += f"; made up, not in {self.workload}: {', '.join(self.made_up)}"
        return Table(self.workload, _COLUMNS, rows, note)


def replay(
    llm: LLM,
    workload: Workload,
    sampling: Sampling | None = None,
    *,
    at_once: int | None = None,
    tell: Callable[[Outcome], object] = bool,
) -> Replayed:
    """Send a workload's requests at their times and wait for all answers.

    Parameters
    ----------
    llm : LLM
    workload : Workload
    sampling : Sampling, optional
        For all requests, with each one's own ``max_new_tokens``; greedy where None.
    at_once : int, optional
        So many requests are under way at most; later ones wait, and their wait counts.
    tell : callable
        Called with each outcome as it comes, from several threads.

    Returns
    -------
    Replayed
        Requests that failed are in it with their errors.
    """
    outcomes: list[Outcome | None] = [None] * len(workload.arrivals)
    free = threading.Semaphore(at_once) if at_once is not None else None
    threads = []
    began = time.perf_counter()

    def serve(index: int, arrival: Arrival) -> None:
        try:
            outcome = _serve(llm, arrival, sampling or Sampling(), began)
        finally:
            if free is not None:
                free.release()
        outcomes[index] = outcome
        tell(outcome)

    for index, arrival in enumerate(workload.arrivals):
        time.sleep(max(0.0, began + arrival.at - time.perf_counter()))
        if free is not None:
            free.acquire()
        thread = threading.Thread(target=serve, args=(index, arrival), daemon=True)
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    done = tuple(outcome for outcome in outcomes if outcome is not None)
    return Replayed(workload.name, workload.made_up, done, seconds)


def _serve(llm: LLM, arrival: Arrival, sampling: Sampling, began: float) -> Outcome:
    own = replace(sampling, max_new_tokens=arrival.max_new_tokens or sampling.max_new_tokens)
    first = end = None
    made = prompt = 0
    error = assembly = None
    try:
        for piece in llm.stream(Request(arrival.model, arrival.prompt, own)):
            end = time.perf_counter() - began
            first = end if first is None else first
            made += len(piece.token_ids)
            if piece.completion is not None:
                prompt = piece.completion.prompt_tokens
                assembly = piece.completion.assembly
    except BlockzooError as failure:
        error = failure.message
    return Outcome(arrival.model, arrival.at, first, end, prompt, made, error, assembly)


def quantile(values: Iterable[float], share: float) -> float | None:
    """The smallest value that at least this share of them do not exceed; None of none."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _figures(model: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """A row of the table; times in milliseconds."""
    first = [1e3 * t for o in outcomes if (t := o.to_first) is not None]
    token = [1e3 * t for o in outcomes if (t := o.per_token) is not None]
    return {
        **({"model": model} if model else {}),
        "requests": len(outcomes),
        "failed": sum(outcome.error is not None for outcome in outcomes),
        "prompt_tokens": sum(outcome.prompt_tokens for outcome in outcomes),
        "new_tokens": sum(outcome.new_tokens for outcome in outcomes),
        "first_p50": quantile(first, 0.5),
        "first_p95": quantile(first, 0.95),
        "token_p50": quantile(token, 0.5),
        "token_p95": quantile(token, 0.95),
    }
