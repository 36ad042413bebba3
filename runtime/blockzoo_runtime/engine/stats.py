"""What the engine has done: totals, and figures of the last steps."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from blockzoo.explore.table import Column, Table
from blockzoo.explore.values import format_bytes

if TYPE_CHECKING:
    from blockzoo_runtime.blocks.runner import StepReport
    from blockzoo_runtime.kv.stats import KVStats

#: how many of the last steps and requests percentiles are over
_WINDOW = 10_000


@dataclass(frozen=True)
class StepStats:
    """One step.

    Parameters
    ----------
    seconds : float
    rows, tokens, lanes : int
        Rows, slots computed, groups of tenants of one make.
    generated : int
        New tokens.
    weight_bytes, separate_bytes : int
        Bytes of weights read; and what a step of each tenant by itself would have read.
    kv_bytes : int
        Bytes of keys and values read.
    """

    seconds: float
    rows: int
    tokens: int
    lanes: int
    generated: int
    weight_bytes: int
    separate_bytes: int
    kv_bytes: int


@dataclass(frozen=True)
class Percentiles:
    """Of seconds; None where there were none."""

    p50: float | None
    p95: float | None
    p99: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> Percentiles:
        """By nearest rank."""
        ordered = sorted(values)
        if not ordered:
            return cls(None, None, None)
        most = len(ordered) - 1
        return cls(*(ordered[round(share * most)] for share in (0.5, 0.95, 0.99)))


@dataclass(frozen=True, repr=False)
class EngineStats:
    """What an engine has done since it was made, or since `LLM.stats` was reset.

    Parameters
    ----------
    steps : int
    seconds : float
        Spent in steps.
    requests, finished, cancelled, failed, refused : int
        Taken on; and how they ended. Refused ones were not taken on.
    preempted : int
        How many times a request gave its pages back and was computed again.
    prompt_tokens, reused_tokens, generated_tokens : int
        Prompts' tokens of the requests that ended, those of them that stood already, new tokens.
    tokens : int
        Slots computed, of prompts and of generated tokens.
    tokens_per_second : float
        Generated tokens over the seconds spent in steps.
    rows_per_step : float
    first_token_seconds, token_seconds, step_seconds : Percentiles
        From a request to its first token; between a request's later tokens, on average; of a step.
    weight_bytes, separate_bytes, kv_bytes : int
        Read in all steps, see `StepStats`.
    last : StepStats or None
        The last step.
    running, waiting : int
        Requests at this moment.
    kv : KVStats
    resident_bytes : int
        Of all weights.
    resident_by_model : dict of str to int
        Bytes of resident weights that each model uses, by its names; shared ones count for each.
    chains : dict of str to dict of str to int
        By model, how many of its requests each chain served, by `Completion.assembly`.
    certified_tokens : int
        Tokens of answers that certified chains gave, instead of the exact ones.
    certified_kl : float
        What that cost: the mean over all tokens of answers of the KL that is certified for
        their chain, in nats a token; 0 for exact ones.
    """

    steps: int
    seconds: float
    requests: int
    finished: int
    cancelled: int
    failed: int
    refused: int
    preempted: int
    prompt_tokens: int
    reused_tokens: int
    generated_tokens: int
    tokens: int
    tokens_per_second: float
    rows_per_step: float
    first_token_seconds: Percentiles
    token_seconds: Percentiles
    step_seconds: Percentiles
    weight_bytes: int
    separate_bytes: int
    kv_bytes: int
    last: StepStats | None
    running: int
    waiting: int
    kv: KVStats
    resident_bytes: int
    resident_by_model: dict[str, int]
    chains: dict[str, dict[str, int]]
    certified_tokens: int
    certified_kl: float

    def to_json(self) -> dict[str, Any]:
        """All of it; keys are stable."""
        return asdict(self)

    def table(self) -> Table:
        """The figures people ask for first."""
        steps = max(self.steps, 1)
        rows = [
            ("requests", f"{self.finished:,} finished, {self.running:,} running, "
                         f"{self.waiting:,} waiting"),
            ("not finished", f"{self.cancelled:,} cancelled, {self.failed:,} failed, "
                             f"{self.refused:,} refused"),
            ("generated", f"{self.generated_tokens:,} tokens, {self.tokens_per_second:,.1f}/s"),
            ("first token", _seconds(self.first_token_seconds)),
            ("time per token", _seconds(self.token_seconds)),
            ("steps", f"{self.steps:,}, {self.rows_per_step:.1f} rows each"),
            ("weights read a step", f"{format_bytes(self.weight_bytes // steps)}, separate models "
                                    f"{format_bytes(self.separate_bytes // steps)}"),
            ("weights resident", format_bytes(self.resident_bytes)),
            ("KV", f"{format_bytes(self.kv.bytes_in_use)} in use, "
                   f"{format_bytes(self.kv.bytes_cached)} cached, {self.kv.waste:.1%} empty"),
            ("prompt tokens reused", f"{self.reused_tokens:,} of {self.prompt_tokens:,}"),
            ("preempted", f"{self.preempted:,}"),
        ]  # fmt: skip
        if self.certified_tokens:
            rows.append(("certified chains", f"{self.certified_tokens:,} tokens, KL over all "
                                             f"{self.certified_kl:.2g}"))  # fmt: skip
        columns = (Column("figure", ""), Column("value"))
        return Table("engine", columns, [{"figure": a, "value": b} for a, b in rows])

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def _seconds(of: Percentiles) -> str:
    if of.p50 is None or of.p95 is None or of.p99 is None:
        return "—"
    return ", ".join(
        f"{name} {value * 1000:,.1f} ms"
        for name, value in (("p50", of.p50), ("p95", of.p95), ("p99", of.p99))
    )


@dataclass
class Tally:
    """Counts while the engine runs; one thread writes."""

    steps: int = 0
    seconds: float = 0.0
    rows: int = 0
    tokens: int = 0
    generated: int = 0
    weight_bytes: int = 0
    separate_bytes: int = 0
    kv_bytes: int = 0
    requests: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    refused: int = 0
    preempted: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    last: StepStats | None = None
    chains: dict[str, Counter[str]] = field(default_factory=dict)
    answered: int = 0
    certified: int = 0
    certified_kl: float = 0.0
    step_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    first_token: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    per_token: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))

    def step(self, seconds: float, reports: Sequence[StepReport], generated: int) -> None:
        """A step was taken."""
        self.last = StepStats(
            seconds,
            rows=sum(report.rows for report in reports),
            tokens=sum(report.tokens for report in reports),
            lanes=sum(report.lanes for report in reports),
            generated=generated,
            weight_bytes=sum(report.weight_bytes for report in reports),
            separate_bytes=sum(report.separate_bytes for report in reports),
            kv_bytes=sum(report.kv_bytes for report in reports),
        )
        self.steps += 1
        self.seconds += seconds
        self.rows += self.last.rows
        self.tokens += self.last.tokens
        self.generated += generated
        self.weight_bytes += self.last.weight_bytes
        self.separate_bytes += self.last.separate_bytes
        self.kv_bytes += self.last.kv_bytes
        self.step_seconds.append(seconds)

    def ended(self, prompt: int, reused: int, first: float | None, each: float | None) -> None:
        """A request has its answer."""
        self.finished += 1
        self.prompt_tokens += prompt
        self.reused_tokens += reused
        if first is not None:
            self.first_token.append(first)
        if each is not None:
            self.per_token.append(each)

    def assembled(self, model: str, chain: str, served: Sequence[tuple[float, int]]) -> None:
        """What served a request: the certified KL and how many tokens, of each of its chains."""
        self.chains.setdefault(model, Counter())[chain] += 1
        for kl, count in served:
            self.answered += count
            self.certified += count if kl else 0
            self.certified_kl += kl * count

    def stats(
        self,
        running: int,
        waiting: int,
        kv: KVStats,
        resident_bytes: int,
        resident_by_model: dict[str, int],
    ) -> EngineStats:
        """As of now."""
        return EngineStats(
            steps=self.steps,
            seconds=self.seconds,
            requests=self.requests,
            finished=self.finished,
            cancelled=self.cancelled,
            failed=self.failed,
            refused=self.refused,
            preempted=self.preempted,
            prompt_tokens=self.prompt_tokens,
            reused_tokens=self.reused_tokens,
            generated_tokens=self.generated,
            tokens=self.tokens,
            tokens_per_second=self.generated / self.seconds if self.seconds else 0.0,
            rows_per_step=self.rows / self.steps if self.steps else 0.0,
            first_token_seconds=Percentiles.of(self.first_token),
            token_seconds=Percentiles.of(self.per_token),
            step_seconds=Percentiles.of(self.step_seconds),
            weight_bytes=self.weight_bytes,
            separate_bytes=self.separate_bytes,
            kv_bytes=self.kv_bytes,
            last=self.last,
            running=running,
            waiting=waiting,
            kv=kv,
            resident_bytes=resident_bytes,
            resident_by_model=resident_by_model,
            chains={model: dict(counts) for model, counts in self.chains.items()},
            certified_tokens=self.certified,
            certified_kl=self.certified_kl / self.answered if self.answered else 0.0,
        )
