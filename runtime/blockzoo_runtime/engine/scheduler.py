"""Which requests run in the next step, and how far. Numbers only: no torch, no tokens.

Each step takes rows of any tenants: one slot for those that generate, a chunk of those that
still read their prompt, so that a long prompt does not hold up the others. The least charged
tenant goes first (see `fairness`), and within a tenant the oldest request.

Memory is asked of a `Room`. Where KV runs out, the newest request of the most charged tenant
gives its pages back and is computed again later from the tokens it has. Where the weights of all
models that are asked for do not fit together, models take turns.

Promises: the first in rank always advances, so everything ends; a request that waits for memory
or for its model is not overtaken by later ones of tenants that were charged more.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Iterator

from blockzoo_runtime.engine.fairness import OUTPUT_COST, PROMPT_COST, Account, Accounts
from blockzoo_runtime.engine.job import Job, Limits, Plan, Room, Turn
from blockzoo_runtime.errors import BusyError


class Scheduler:
    """Chooses the rows of each step.

    Parameters
    ----------
    room : Room
    limits : Limits
    """

    def __init__(self, room: Room, limits: Limits) -> None:
        self._room = room
        self._limits = limits
        self._accounts = Accounts()
        self._started: dict[str, list[Job]] = {}  # by tenant, oldest first
        self._waiting: dict[str, deque[Job]] = {}
        self._live: Counter[str] = Counter()  # jobs by model
        self._active: dict[str, int] = {}  # models that have a place in memory: since which step
        self._steps = 0
        self._added = 0

    def __len__(self) -> int:
        return sum(self._live.values())

    def waiting(self, tenant: str) -> int:
        """How many jobs of a tenant have not started."""
        return len(self._waiting.get(tenant, ()))

    def charged(self, tenant: str) -> float:
        """What a tenant with something to do was charged."""
        return self._accounts[tenant].charge

    def check(self, job: Job) -> None:
        """Whether there is room for a job in the queue.

        Raises
        ------
        BusyError
            Where too many of the tenant's wait already.
        """
        if self.waiting(job.tenant) >= self._limits.waiting:
            raise BusyError(
                f"{job.tenant}: {self._limits.waiting:,} of its requests are waiting already",
                hint="try again later",
            )

    def add(self, job: Job) -> None:
        """Take a job on. Raises what `check` does."""
        self.check(job)
        self._added += 1
        job.order = self._added
        self._accounts.open(job.tenant)
        self._waiting.setdefault(job.tenant, deque()).append(job)
        self._live[job.model] += 1

    def remove(self, job: Job) -> None:
        """A job is finished, failed or cancelled."""
        if job.started:
            self._stop(job)
        else:
            self._waiting[job.tenant].remove(job)
        self._leave(job.model)
        if not self._started.get(job.tenant) and not self._waiting.get(job.tenant):
            self._started.pop(job.tenant, None)
            self._waiting.pop(job.tenant, None)
            self._accounts.close(job.tenant)

    def _leave(self, model: str) -> None:
        """One of a model's jobs is no longer one."""
        self._live[model] -= 1
        if not self._live[model]:
            del self._live[model]
            if model in self._active:  # idle: it stays in memory while nobody else wants it
                self._place({m: since for m, since in self._active.items() if m != model})

    def _assemble(self, job: Job) -> None:
        """A job that has not started may run as another model now than when it came."""
        before, job.model = job.model, self._room.assemble(job)
        if job.model != before:
            self._live[job.model] += 1
            self._leave(before)

    def restart(self, job: Job) -> None:
        """Give a job's pages back; it is computed again from its first slot."""
        if job.started:
            self._stop(job)
            self._waiting.setdefault(job.tenant, deque()).appendleft(job)

    def plan(self) -> Plan:
        """The next step. What it computes is charged now; `advance` notes that it was computed."""
        self._steps += 1
        step = _Step(self._limits, self._decoding())
        heap = [(*account.rank, account) for account in self._accounts.begin_step()]
        heapq.heapify(heap)
        queues: dict[str, Iterator[Job]] = {}
        while heap and step.rows_left:
            account = heap[0][2]
            tenant = account.tenant
            queue = queues.get(tenant)
            if queue is None:  # a copy: a job that starts moves from one list to the other
                jobs = [*self._started.get(tenant, ()), *self._waiting.get(tenant, ())]
                queue = queues[tenant] = iter(jobs)
            job = next(queue, None)
            if job is None:
                heapq.heappop(heap)
            elif self._serve(job, account, step):
                heapq.heapreplace(heap, (*account.rank, account))
            elif not job.started:
                heapq.heappop(heap)  # its later ones do not overtake it
        for *_, account in heap:  # the step was full before their turn
            account.backlogged |= next(queues.get(account.tenant, iter((0,))), None) is not None
        self._accounts.end_step({turn.job.tenant for turn in step.turns.values()})
        return Plan(list(step.turns.values()), len(step.preempted), step.stuck)

    def advance(self, turn: Turn) -> None:
        """A turn was computed."""
        turn.job.standing = turn.end

    def _decoding(self) -> int:
        return sum(
            job.length - job.standing == 1 for jobs in self._started.values() for job in jobs
        )

    def _serve(self, job: Job, account: Account, step: _Step) -> bool:
        """Put the job in the step where it can run, and tell the account what it lacks."""
        if not job.started:
            self._assemble(job)
        if job in step.preempted or not self._has_place(job.model, account, step):
            account.backlogged = True
            return False
        if not self._room.ready(job.model):
            if not step.model_waits:
                self._active[job.model] = self._steps  # its turn begins once it is here
            if self._room.crowded(job.model):
                self._make_way(job, account, step)
            return False  # what it lacks nobody else took
        end = self._continue(job, account, step) if job.started else self._start(job, account, step)
        account.backlogged |= end is None or end < job.length
        if end is None:
            return False
        step.take(job, end)
        self._charge(job, end, account)
        return True

    def _continue(self, job: Job, account: Account, step: _Step) -> int | None:
        """Up to where a started job goes; None where there is no room."""
        end = step.end_for(job)
        if end is None or self._find_room(job, end, account, step) or self._alone(job, end, step):
            return end
        return None

    def _start(self, job: Job, account: Account, step: _Step) -> int | None:
        """Pages for all the job's slots; returns up to where it goes, None where it cannot."""
        if step.memory_closed or step.tokens_left <= 0:
            return None
        job.standing = self._room.begin(job)
        end = step.end_for(job)
        if end is None or not (
            self._find_room(job, job.length, account, step) or self._alone(job, job.length, step)
        ):
            self._room.release(job)
            job.standing = 0
            step.memory_closed |= end is not None  # what comes free is kept for it
            return None
        self._waiting[job.tenant].remove(job)
        job.started = True
        self._started.setdefault(job.tenant, []).append(job)
        job.paid = max(job.paid, job.standing)
        return end

    def _alone(self, job: Job, end: int, step: _Step) -> bool:
        """Room for a job that found none, from other models' weights where no other job holds any.

        Where even that is too little the job is stuck.
        """
        if self._others_started(job):
            return False
        if len(self._active) > 1:
            self._place({job.model: self._active[job.model]})
            step.models_closed = True
            if self._room.extend(job, end):
                return True
        step.stuck.append(job)
        return False

    def _make_way(self, job: Job, account: Account, step: _Step) -> None:
        """The weights of a job's model found no room beside the KV of others, or its own."""
        victim = self._victim(job, account, step)
        if victim is None and not self._others_started(job):
            if job.started:
                victim = job
            elif len(self._active) > 1:
                self._place({job.model: self._active[job.model]})
                step.models_closed = True
            else:
                step.stuck.append(job)
        if victim is not None:
            self.restart(victim)
            step.preempted.add(victim)

    def _others_started(self, job: Job) -> bool:
        return any(other is not job for jobs in self._started.values() for other in jobs)

    def _find_room(self, job: Job, end: int, account: Account, step: _Step) -> bool:
        while not self._room.extend(job, end):
            victim = self._victim(job, account, step)
            if victim is None:
                return False
            self.restart(victim)
            step.preempted.add(victim)
        return True

    def _victim(self, job: Job, account: Account, step: _Step) -> Job | None:
        """The newest started job of the most charged tenant, where it has to yield to `job`.

        To one that has started, whatever ranks behind it yields. To one that has not, so does
        what has no place for its model; but of what could run only tenants that were charged
        more by at least what is lost: else two would throw each other out in turns.
        """
        last: tuple[float, int, int] | None = None
        victim = None
        for tenant, jobs in self._started.items():
            other = self._accounts[tenant]
            for candidate in jobs:
                rank = (*other.rank, candidate.order)
                if candidate is job or candidate in step.turns or (last and rank < last):
                    continue
                if job.started or candidate.model not in self._active:
                    yields = rank > (*account.rank, job.order)
                else:
                    yields = other.charge - account.charge > candidate.standing * OUTPUT_COST
                if yields:
                    last, victim = rank, candidate
        return victim

    def _has_place(self, model: str, account: Account, step: _Step) -> bool:
        """Whether the model's weights have, or get, a place in memory."""
        if model in self._active:
            return True
        if step.models_closed:
            return False
        places, since = dict(self._active), self._steps
        if self._fit(places, model):
            if step.model_waits:  # it may come along, but not make the others stay for longer
                since = min(places.values(), default=since)
        elif step.model_waits:
            return False
        else:
            charges = dict.fromkeys(places, (math.inf, 0)) | self._model_charges()
            planned = {turn.job.model for turn in step.turns.values()}
            over = [
                other
                for other, entered in places.items()
                if self._steps - entered >= self._room.turn(other)
                and other not in planned
                and charges[other] > account.rank
            ]
            for other in sorted(over, key=lambda m: charges[m], reverse=True):
                del places[other]
                if self._fit(places, model):
                    break
            else:
                step.model_waits = True
                return False
        self._place(places | {model: since})
        return True

    def _place(self, places: dict[str, int]) -> None:
        self._active = places
        self._room.keep(frozenset(places))

    def _fit(self, places: dict[str, int], model: str) -> bool:
        return self._room.fits(frozenset(places) | {model})

    def _model_charges(self) -> dict[str, tuple[float, int]]:
        """The rank of the least charged tenant of each model that runs or is next to."""
        charges: dict[str, tuple[float, int]] = {}
        heads = [queue[0] for queue in self._waiting.values() if queue]
        for job in (*heads, *(job for jobs in self._started.values() for job in jobs)):
            rank = self._accounts[job.tenant].rank
            charges[job.model] = min(charges.get(job.model, rank), rank)
        return charges

    def _charge(self, job: Job, end: int, account: Account) -> None:
        """Slots are charged once: who was preempted does not pay for it."""
        prompt = max(min(end, job.prompt) - job.paid, 0)
        outputs = max(end - max(job.paid, job.prompt), 0)
        account.charge += prompt * PROMPT_COST + outputs * OUTPUT_COST
        job.paid = max(job.paid, end)

    def _stop(self, job: Job) -> None:
        self._room.release(job)
        self._started[job.tenant].remove(job)
        job.started = False
        job.standing = 0


class _Step:
    """A step while it is made."""

    def __init__(self, limits: Limits, decoding: int) -> None:
        self.turns: dict[Job, Turn] = {}
        self.stuck: list[Job] = []
        self.preempted: set[Job] = set()
        self.memory_closed = False
        self.models_closed = False  # memory is wanted for one alone
        self.model_waits = False  # one that ranks before the rest waits for a place
        self.rows_left = limits.rows
        # rows that generate come out of the same budget, but leave prompts a part of it
        self.tokens_left = max(limits.tokens - min(decoding, limits.rows), limits.tokens // 4, 1)
        self._untouched = True

    def end_for(self, job: Job) -> int | None:
        """Up to which slot a job that stands somewhere goes; None where nothing is left for it."""
        lacking = job.length - job.standing
        if lacking == 1 or (job.atomic and job.standing >= job.atomic):
            return job.standing + 1
        if job.standing < job.atomic:
            whole = job.atomic - job.standing
            return job.atomic if whole <= self.tokens_left or self._untouched else None
        count = min(lacking, self.tokens_left, job.chunk or lacking)
        return job.standing + count if count > 0 else None

    def take(self, job: Job, end: int) -> None:
        count = end - job.standing
        self.turns[job] = Turn(job, end)
        self.rows_left -= 1
        if count > 1 or job.length - job.standing > 1:
            self.tokens_left -= count
            self._untouched = False
