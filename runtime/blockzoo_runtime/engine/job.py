"""What the scheduler and the rest of the engine tell each other: plain numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Limits:
    """How much the engine takes on.

    Parameters
    ----------
    rows : int
        Of a step.
    tokens : int
        Of a step: what rows that generate leave of it goes to prompts.
    waiting : int
        How many requests of one tenant may wait; more are refused.
    turn : int
        Steps that a model keeps its place in memory at least, where others wait for one.
    """

    rows: int = 64
    tokens: int = 512
    waiting: int = 1024
    turn: int = 32


@dataclass(eq=False)
class Job:
    """One request, as the scheduler sees it.

    Parameters
    ----------
    tenant : str
        Whose account is charged.
    model : str
        What must be in memory to run it; may become another while it has not started.
    prompt : int
        Slots before the first generated one.
    length : int
        Slots whose tokens are known; grows by one with each token.
    chunk : int, optional
        The most slots to compute in one step.
    atomic : int
        So many first slots are computed in one step and the rest one by one, because the
        model's arithmetic depends on it; 0 for most models.
    """

    tenant: str
    model: str
    prompt: int
    length: int
    chunk: int | None = None
    atomic: int = 0
    standing: int = field(default=0, init=False)  #: first slots whose KV stands in every group
    paid: int = field(default=0, init=False)  #: first slots that were charged, or came for free
    order: int = field(default=0, init=False)
    started: bool = field(default=False, init=False)  #: whether it holds pages


class Room(Protocol):
    """The memory that jobs run in."""

    def assemble(self, job: Job) -> str:
        """The model that a job which has not started runs as now."""
        ...

    def ready(self, model: str) -> bool:
        """Whether the model's weights are here; where not, they begin to load."""
        ...

    def crowded(self, model: str) -> bool:
        """Whether loading just failed for want of room; telling it takes it back."""
        ...

    def fits(self, models: frozenset[str]) -> bool:
        """Whether the weights of all of them fit together."""
        ...

    def turn(self, model: str) -> int:
        """Steps that a model keeps its place before it may have to leave it to another."""
        ...

    def keep(self, models: frozenset[str]) -> None:
        """The weights of these have a place from now on; those of others may go."""
        ...

    def begin(self, job: Job) -> int:
        """Give a job its pages; returns how many first slots stand already."""
        ...

    def extend(self, job: Job, end: int) -> bool:
        """Pages for slots up to `end`; False, and nothing taken, where there is no room."""
        ...

    def release(self, job: Job) -> None:
        """Take a job's pages back."""
        ...


@dataclass(frozen=True)
class Turn:
    """A row of a step: compute the job's slots from where it stands up to `end`."""

    job: Job
    end: int


@dataclass(frozen=True)
class Plan:
    """A step.

    Parameters
    ----------
    turns : list of Turn
    preempted : int
        How many jobs gave their pages back for it.
    stuck : list of Job
        Jobs that do not fit even alone; to be failed.
    """

    turns: list[Turn]
    preempted: int
    stuck: list[Job]
