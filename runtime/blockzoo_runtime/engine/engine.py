"""One step after another, for all requests together, in a thread of its own.

The thread starts with the first request and ends some time after the last. What happens to one
request (its model cannot be loaded, its logits are no numbers, its caller has gone) happens to
it alone; the others go on.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from blockzoo.errors import BlockzooError, DamagedError, UnservableError, UsageError
from blockzoo_runtime.assembly.sparing import sparing
from blockzoo_runtime.blocks.arrivals import LateError
from blockzoo_runtime.blocks.runner import Logits, Runner, StepReport, Work
from blockzoo_runtime.engine.job import Job, Limits, Plan, Turn
from blockzoo_runtime.engine.room import ModelRoom
from blockzoo_runtime.engine.sampling import Choice, choose
from blockzoo_runtime.engine.scheduler import Scheduler
from blockzoo_runtime.engine.sequence import Generation, Scoring, Sequence
from blockzoo_runtime.engine.stats import EngineStats, Tally
from blockzoo_runtime.errors import BusyError
from blockzoo_runtime.upload import upload

if TYPE_CHECKING:
    from blockzoo_runtime.assembly.policy import Policy
    from blockzoo_runtime.blocks.profile import Profile
    from blockzoo_runtime.blocks.resident import ResidentTensors
    from blockzoo_runtime.kv.cache import KVCache
    from blockzoo_runtime.tenant import Tenant

#: seconds that the thread stays with nothing to do
_PATIENCE = 5.0

_ENGINES: weakref.WeakSet[Engine] = weakref.WeakSet()


class Engine:
    """Runs requests of any tenants.

    Parameters
    ----------
    resident : ResidentTensors
    kv : KVCache
    limits : Limits
    known : callable
        Whether a model, by digest, may be asked for again; others are let go of after use.
    profile : callable
        Finds the figures of this device for a compute dtype.
    policy : Policy
        Which of a model's chains serves a request.

    Notes
    -----
    Every method may be called from any thread.
    """

    def __init__(
        self,
        resident: ResidentTensors,
        kv: KVCache,
        limits: Limits,
        known: Callable[[str], bool] = lambda digest: True,
        profile: Callable[[torch.dtype], Profile | None] = lambda dtype: None,
        policy: Policy = sparing,
    ) -> None:
        self.tally = Tally()
        self._kv = kv
        self._resident = resident
        self._runner = Runner(resident, kv, profile)
        self._changed = threading.Condition()
        self._room = ModelRoom(resident, kv, self._changed, known, limits.turn, policy)
        self._scheduler = Scheduler(self._room, limits)
        self._limits = limits
        self._cancelled: set[Sequence] = set()
        self._thread: threading.Thread | None = None
        self._closed = False
        _ENGINES.add(self)

    def submit(self, sequence: Sequence, *, wait: bool = False) -> None:
        """Take a request on; its handle tells how it goes.

        Parameters
        ----------
        sequence : Sequence
        wait : bool
            Where too many of its tenant's wait, wait too instead of refusing.

        Raises
        ------
        BusyError
            Where too many of the tenant's requests wait already.
        UsageError
            Where the engine is closed, or the model is larger than the memory budget.
        """
        with self._changed:
            while (
                wait
                and not self._closed
                and self._scheduler.waiting(sequence.job.tenant) >= self._limits.waiting
            ):
                self._changed.wait()
            if self._closed:
                raise UsageError("the engine is closed", hint="make another LLM")
            try:
                self._scheduler.check(sequence.job)
            except BusyError:
                self.tally.refused += 1
                raise
            self._room.add(sequence)
            self._scheduler.add(sequence.job)
            self.tally.requests += 1
            sequence.handle.on_cancel = lambda: self._cancel(sequence)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._loop, name="blockzoo-engine", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def _cancel(self, sequence: Sequence) -> None:
        with self._changed:
            if sequence.job not in self._room.sequences:
                return
            if sequence.job.started:  # a step may be at it
                self._cancelled.add(sequence)
                self._changed.notify_all()
            else:
                self._end_cancelled(sequence)

    def close(self) -> None:
        """End the thread; requests that have not ended fail."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        with self._changed:
            self._fail_all(UsageError("the engine was closed before the request ended"))
        self._room.close()

    def pin(self, tenant: Tenant) -> None:
        """A tenant that is here stays until `unpin`."""
        with self._changed:
            self._room.pin(tenant)

    def unpin(self, tenant: Tenant) -> None:
        """A tenant may go when others need the memory."""
        with self._changed:
            self._room.unpin(tenant)

    def stats(self, resident_by_model: dict[str, int], *, reset: bool = False) -> EngineStats:
        """What was done until now.

        Parameters
        ----------
        resident_by_model : dict of str to int
        reset : bool
            Whether to count from zero afterwards.
        """
        with self._changed:
            running = sum(job.started for job in self._room.sequences)
            stats = self.tally.stats(
                running,
                len(self._room.sequences) - running,
                self._kv.stats(),
                self._resident.nbytes,
                resident_by_model,
            )
            if reset:
                self.tally = Tally()
        return stats

    def kv_bytes(self) -> dict[str, int]:
        """Bytes of the pages that each model's requests hold, by digest; shared ones count each."""
        held: dict[str, int] = {}
        with self._changed:
            for sequence in self._room.sequences.values():
                if sequence.pages is None:
                    continue
                layout = sequence.pages.layout
                size = sum(
                    len(table) * layout.page_bytes(group)
                    for group, table in enumerate(sequence.pages.tables)
                )
                digest = sequence.tenant.digest
                held[digest] = held.get(digest, 0) + size
        return held

    # the thread

    def _loop(self) -> None:
        while True:
            with self._changed:
                if not len(self._scheduler) and not self._closed:
                    self._changed.wait(_PATIENCE)
                if self._closed or not len(self._scheduler):
                    self._thread = None
                    return
            try:
                went_on = self._step()
            except Exception as error:  # a defect; nobody may wait for ever because of it
                with self._changed:
                    self._fail_all(UnservableError(f"the engine failed: {error!r}"))
                    self._thread = None
                raise
            if not went_on:
                with self._changed:
                    if self._room.loading and not self._cancelled:
                        self._changed.wait(0.05)

    def _step(self) -> bool:
        """Take one step; False where there was nothing that could run."""
        with self._changed:
            self._settle()
            plan = self._scheduler.plan()
            rows = self._rows(plan)
            if plan.turns:
                self._changed.notify_all()  # some may have left the queue
        if not rows:
            return False
        began = time.perf_counter()
        try:
            chosen, reports = self._compute(rows)
        except LateError:
            return False  # taken again when all is here
        generated = 0
        with self._changed:
            for turn, sequence in rows:
                outcome = chosen[turn.job]
                if isinstance(outcome, DamagedError):  # the step went on beside its loading
                    self._load_failed(sequence, sequence.tenant.digest, outcome)
                    continue
                if isinstance(outcome, BlockzooError):
                    self._fail(sequence, outcome)
                    continue
                try:
                    generated += self._advance(turn, sequence, outcome)
                except Exception as error:  # a tokenizer raises what it likes
                    self._fail(sequence, _named(sequence, UnservableError(f"it failed: {error!r}")))
            seconds = time.perf_counter() - began
            self.tally.step(seconds, reports, generated)
            self._room.step_seconds += 0.1 * (seconds - self._room.step_seconds)
        return True

    def _settle(self) -> None:
        """What others asked for, or brought about, since the last step."""
        for sequence in self._cancelled:
            if sequence.job in self._room.sequences:
                self._end_cancelled(sequence)
        self._cancelled.clear()
        for digest, waited, error in self._room.failures:
            for sequence in waited:
                if sequence.job in self._room.sequences:
                    self._load_failed(sequence, digest, error)
        self._room.failures.clear()

    def _load_failed(self, sequence: Sequence, digest: str, error: BlockzooError) -> None:
        """A chain cannot be loaded, or has no room: another serves the request, or it fails."""
        there = sequence.tenant.digest == digest
        if there:
            self._scheduler.restart(sequence.job)
        if not self._room.drop(sequence, digest) and there:
            self._fail(sequence, _named(sequence, error))

    def _rows(self, plan: Plan) -> list[tuple[Turn, Sequence]]:
        self.tally.preempted += plan.preempted
        for job in plan.stuck:
            if self._room.may_fit(job):
                continue
            sequence = self._room.sequences[job]
            error = UsageError(
                f"{sequence.model}: its weights and the keys and values of "
                f"{len(sequence.slots):,} tokens do not fit the memory budget together",
                hint="give LLM a larger `memory`, pin fewer models, or shorten the text",
            )
            self._load_failed(sequence, sequence.tenant.digest, error)
        return [(turn, self._room.sequences[turn.job]) for turn in plan.turns if turn.job.started]

    def _compute(
        self, rows: list[tuple[Turn, Sequence]]
    ) -> tuple[dict[Job, Choice | torch.Tensor | BlockzooError | None], list[StepReport]]:
        """Each row's next token, logits to score with, nothing, or what went wrong."""
        try:
            return self._run(rows)
        except LateError:
            raise
        except Exception as error:
            if len(rows) == 1:
                [(turn, sequence)] = rows
                if not isinstance(error, BlockzooError):
                    error = UnservableError(f"it could not be computed: {error!r}")
                return {turn.job: _named(sequence, error)}, []
        # which of them it was shows when each is computed by itself
        chosen: dict[Job, Choice | torch.Tensor | BlockzooError | None] = {}
        reports: list[StepReport] = []
        for row in rows:
            found, report = self._compute([row])
            chosen |= found
            reports += report
        return chosen, reports

    def _run(
        self, rows: list[tuple[Turn, Sequence]]
    ) -> tuple[dict[Job, Choice | torch.Tensor | BlockzooError | None], list[StepReport]]:
        works = [self._work(turn, sequence) for turn, sequence in rows]
        with torch.inference_mode():
            logits, report = self._runner.step(works)
            chosen: dict[Job, Choice | torch.Tensor | BlockzooError | None] = dict.fromkeys(
                turn.job for turn, _ in rows
            )
            for index, outcome in _outcomes(logits, [sequence for _, sequence in rows]).items():
                chosen[rows[index][0].job] = outcome
        return chosen, [report]

    def _work(self, turn: Turn, sequence: Sequence) -> Work:
        assert sequence.pages is not None
        outputs = sequence.outputs(turn.end)
        return Work(sequence.tenant, sequence.pages, sequence.slots, turn.end, outputs)

    def _advance(
        self, turn: Turn, sequence: Sequence, outcome: Choice | torch.Tensor | None
    ) -> int:
        """Note what was computed for a row; how many tokens it has generated."""
        if isinstance(outcome, Choice):
            sound = outcome.sound
        else:
            sound = outcome is None or (isinstance(sequence, Scoring) and sequence.advance(outcome))
        if not sound:
            error = UnservableError("its logits are not numbers (NaN or infinite)")
            self._fail(sequence, _named(sequence, error))
            return 0
        assert sequence.pages is not None
        self._kv.computed(sequence.pages, sequence.tenant.upstream, sequence.slots, turn.end)
        self._scheduler.advance(turn)
        if not isinstance(outcome, Choice):
            if sequence.handle.done:
                self._end(sequence)
            return 0
        assert isinstance(sequence, Generation)
        sequence.advance(outcome)
        if sequence.finish_reason is not None:
            self._end(sequence)
        elif sequence.must_begin_again():
            self._scheduler.restart(sequence.job)
        return 1

    def _end(self, sequence: Sequence) -> None:
        self._remove(sequence)
        first = None if sequence.first is None else sequence.first - sequence.asked
        self.tally.ended(sequence.prompt, sequence.reused or 0, first, sequence.token_seconds)
        served = [(option.kl, count) for option, count in sequence.served]
        self.tally.assembled(sequence.model, sequence.assembly, served)

    def _end_cancelled(self, sequence: Sequence) -> None:
        self._remove(sequence)
        self.tally.cancelled += 1
        sequence.cancelled()

    def _fail(self, sequence: Sequence, error: BlockzooError) -> None:
        self._remove(sequence)
        self.tally.failed += 1
        sequence.fail(error)

    def _fail_all(self, error: BlockzooError) -> None:
        for sequence in list(self._room.sequences.values()):
            self._fail(sequence, _named(sequence, error))

    def _remove(self, sequence: Sequence) -> None:
        self._scheduler.remove(sequence.job)
        self._room.remove(sequence)
        self._changed.notify_all()


def _outcomes(logits: Logits, sequences: list[Sequence]) -> dict[int, Choice | torch.Tensor]:
    """By row: the next token of those that generate, the logits of those that score."""
    outcomes: dict[int, Choice | torch.Tensor] = {}
    for part in logits.parts:
        places, samplers, own = [], [], []
        for index, first, count in part.rows:
            sequence = sequences[index]
            if isinstance(sequence, Generation) and count:
                places.append(first)
                samplers.append(sequence.sampler)
                own.append(index)
            elif count:
                outcomes[index] = part.values[first : first + count]
        if not places:
            continue
        values = part.values
        if len(places) < len(values):
            values = values[upload([places], values.device)[0]]
        outcomes |= dict(zip(own, choose(values, samplers), strict=True))
    return outcomes


def _named(sequence: Sequence, error: BlockzooError) -> BlockzooError:
    """The error, beginning with the name that was asked for."""
    if error.message.startswith(f"{sequence.model}: "):
        return error
    return type(error)(f"{sequence.model}: {error.message}", hint=error.hint)


@atexit.register
def _close_all() -> None:
    """A thread inside torch must not be cut off by the end of the process."""
    for engine in list(_ENGINES):
        engine.close()
