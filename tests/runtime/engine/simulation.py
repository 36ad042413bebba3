"""Load for a scheduler without a model: pages and weights are counters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from blockzoo_runtime.engine.job import Job, Limits, Plan
from blockzoo_runtime.engine.scheduler import Scheduler

PAGE = 8


class FakeRoom:
    """Pages of 8 slots and weights, as numbers.

    Parameters
    ----------
    pages : int
        How many there are.
    weights : int
        What fits at once.
    sizes : mapping
        The weights of each model; 0 where it is absent.
    """

    def __init__(
        self, pages: int = 10**9, weights: int = 1, sizes: Mapping[str, int] | None = None
    ) -> None:
        self.pages = pages
        self.weights = weights
        self.sizes = sizes or {}
        self.held: dict[Job, int] = {}
        self.loading: set[str] = set()
        self.turns = 8

    def assemble(self, job: Job) -> str:
        return job.model

    def ready(self, model: str) -> bool:
        return model not in self.loading

    def crowded(self, model: str) -> bool:
        return False

    def fits(self, models: frozenset[str]) -> bool:
        return sum(self.sizes.get(model, 0) for model in models) <= self.weights

    def turn(self, model: str) -> int:
        return self.turns

    def keep(self, models: frozenset[str]) -> None:
        assert self.fits(models)

    def begin(self, job: Job) -> int:
        assert job not in self.held
        self.held[job] = 0
        return 0

    def extend(self, job: Job, end: int) -> bool:
        wanted = max(-(-end // PAGE), self.held[job])
        if sum(self.held.values()) - self.held[job] + wanted > self.pages:
            return False
        self.held[job] = wanted
        return True

    def release(self, job: Job) -> None:
        del self.held[job]


class OneBudgetRoom(FakeRoom):
    """Pages and weights from one budget; idle weights go when either wants room.

    Parameters
    ----------
    pages : int
        The budget, in pages.
    sizes : mapping
        The weights of each model, in pages.
    """

    def __init__(self, pages: int, sizes: Mapping[str, int]) -> None:
        super().__init__(pages, pages - pages // 8, sizes)
        self.loaded: set[str] = set()
        self.kept: frozenset[str] = frozenset()
        self.found_no_room: set[str] = set()

    def fits(self, models: frozenset[str]) -> bool:
        return len(models) == 1 or super().fits(models)

    def keep(self, models: frozenset[str]) -> None:
        super().keep(models)
        self.kept = models

    def ready(self, model: str) -> bool:
        if model in self.loaded:
            return True
        if self._free(self.sizes[model]):
            self.loaded.add(model)  # from the next step on
        else:
            self.found_no_room.add(model)
        return False

    def crowded(self, model: str) -> bool:
        found = model in self.found_no_room
        self.found_no_room.discard(model)
        return found

    def extend(self, job: Job, end: int) -> bool:
        wanted = -(-end // PAGE) - self.held[job]
        if wanted > 0 and not self._free(wanted):
            return False
        self.held[job] += max(wanted, 0)
        return True

    def used(self) -> int:
        return sum(self.held.values()) + sum(self.sizes[model] for model in self.loaded)

    def _free(self, wanted: int) -> bool:
        for model in sorted(self.loaded - self.kept):
            if self.used() + wanted > self.pages:
                self.loaded.remove(model)
        return self.used() + wanted <= self.pages


class Simulation:
    """Runs a scheduler; each job ends once it has generated what it wants."""

    def __init__(self, room: FakeRoom | None = None, limits: Limits | None = None) -> None:
        self.room = room or FakeRoom()
        self.limits = limits or Limits()
        self.scheduler = Scheduler(self.room, self.limits)
        self.wanted: dict[Job, int] = {}
        self.arrived: dict[Job, int] = {}
        self.first: dict[Job, int] = {}  # the step of the first token
        self.last: dict[Job, int] = {}
        self.service: dict[str, float] = defaultdict(float)
        self.preempted = 0
        self.stuck: list[Job] = []
        self.now = 0

    def add(
        self, tenant: str, prompt: int, wanted: int, model: str | None = None, **more: int
    ) -> Job:
        job = Job(tenant, model or tenant, prompt, prompt, **more)
        self.scheduler.add(job)
        self.wanted[job] = wanted
        self.arrived[job] = self.now
        return job

    def step(self) -> Plan:
        before = {job: job.paid for job in self.wanted}
        plan = self.scheduler.plan()
        self.now += 1
        self.preempted += plan.preempted
        assert len(plan.turns) <= self.limits.rows
        assert len({turn.job for turn in plan.turns}) == len(plan.turns)
        assert all(self.room.ready(turn.job.model) for turn in plan.turns)
        for turn in plan.turns:
            job = turn.job
            assert job.standing < turn.end <= job.length
            assert self.room.held[job] * PAGE >= turn.end
            for slot in range(max(before[job], job.standing), turn.end):
                self.service[job.tenant] += 1 if slot < job.prompt else 2
            self.scheduler.advance(turn)
            if turn.end == job.length:  # the next token is known
                self.first.setdefault(job, self.now)
                if job.length - job.prompt + 1 == self.wanted[job]:
                    self.last[job] = self.now
                    self.scheduler.remove(job)
                else:
                    job.length += 1
        for job in plan.stuck:
            self.stuck.append(job)
            self.scheduler.remove(job)
        return plan

    def run(self, most: int = 100_000) -> None:
        """Until nothing is left to do."""
        while len(self.scheduler):
            assert self.now < most, "the scheduler never finishes"
            self.step()
