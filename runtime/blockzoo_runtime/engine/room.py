"""The memory that requests run in: pages of the KV cache, and weights brought in beside the steps.

Weights are loaded by a thread of their own, one model after another, while the engine goes on
with those that are here.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from blockzoo.errors import BlockzooError, UnservableError, UsageError
from blockzoo.explore.values import format_bytes
from blockzoo_runtime.assembly.assembler import Assembler
from blockzoo_runtime.engine.job import Job
from blockzoo_runtime.engine.sequence import Sequence
from blockzoo_runtime.errors import NoRoomError

if TYPE_CHECKING:
    from blockzoo_runtime.assembly.policy import Policy
    from blockzoo_runtime.blocks.needs import Key
    from blockzoo_runtime.blocks.resident import ResidentTensors
    from blockzoo_runtime.kv.cache import KVCache
    from blockzoo_runtime.tenant import Tenant

#: how many times as long as its loading took a model stays, where others wait for its place
_TURN = 4
_LONGEST_TURN = 4096  # steps

#: the share of the budget that several models' weights leave to KV
_FOR_KV = 1 / 8


class ModelRoom:
    """A `Room` over resident tensors and the KV cache.

    Parameters
    ----------
    resident : ResidentTensors
    kv : KVCache
    changed : threading.Condition
        Notified when a model has loaded, or failed to. Its lock is held by callers of all
        methods.
    known : callable
        Whether a model, by digest, may be asked for again.
    turn : int
        See `Limits`.
    policy : Policy
        Which of a model's chains serves a request.
    """

    def __init__(
        self,
        resident: ResidentTensors,
        kv: KVCache,
        changed: threading.Condition,
        known: Callable[[str], bool],
        turn: int,
        policy: Policy,
    ) -> None:
        budget = resident.memory.budget
        weights = None if budget is None else int(budget * (1 - _FOR_KV))
        self._assembler = Assembler(resident, policy, weights)
        self._shortest_turn = turn
        self.sequences: dict[Job, Sequence] = {}
        self.step_seconds = 0.0  # of the last steps, on average
        self.failures: list[tuple[str, list[Sequence], BlockzooError]] = []
        self._pinned: dict[str, Tenant] = {}
        self._resident = resident
        self._kv = kv
        self._changed = changed
        self._known = known
        self._tenants: dict[str, Tenant] = {}
        self._users: Counter[str] = Counter()
        self._loading: set[str] = set()
        self._crowded: set[str] = set()
        self._took: dict[str, float] = {}  # seconds to load a model
        self._kept: dict[str, AbstractContextManager[None]] = {}
        self._fits: dict[frozenset[str], bool] = {}
        self._loader: ThreadPoolExecutor | None = None

    @property
    def loading(self) -> bool:
        """Whether any model is on its way, whoever asked for it."""
        return bool(self._loading) or self._resident.loading

    def add(self, sequence: Sequence) -> None:
        """A request that will run; it gets its chain, which may become another until it starts.

        Certified chains whose weights are more than the budget do not serve it.

        Raises
        ------
        UsageError
            Where its model's weights are more than the budget.
        """
        for tenant in list(self._pinned.values()):
            if not self._known(tenant.digest):  # replaced under its name
                self.unpin(tenant)
        budget = self._resident.memory.budget
        for option in sequence.menu.options[1:]:
            if budget is not None and option.tenant.needs.total > budget:
                sequence.menu = sequence.menu.without(option.tenant.digest)
        sequence.move(self._assembler.choose(sequence.menu, self._pinned.values()))
        total = sequence.tenant.needs.total
        if budget is not None and total > budget:
            raise UsageError(
                f"{sequence.model}: the model needs {format_bytes(total)} of tensors at once, "
                f"the memory budget is {format_bytes(budget)}",
                hint="give LLM a larger `memory`, or a smaller `dtype`",
            )
        sequence.job.model = sequence.tenant.digest
        self.sequences[sequence.job] = sequence
        self._assembler.begin(sequence.menu, sequence.option)
        self._use(sequence.tenant)

    def assemble(self, job: Job) -> str:
        """The tenant, by digest, of the chain that serves a request from now on.

        One that has begun keeps its chain, however often it is computed again.
        """
        sequence = self.sequences[job]
        if not sequence.settled:
            before = sequence.option
            option = self._assembler.choose(sequence.menu, self._pinned.values())
            if option is not before:
                sequence.move(option)
                self._assembler.move(before, option)
                self._use(option.tenant)
                self._disuse(before.tenant.digest)
        return sequence.tenant.digest

    def drop(self, sequence: Sequence, digest: str) -> bool:
        """A certified chain (by its tenant's digest) cannot be had; False where it is exact.

        The request gets another, from the tokens that it has; it holds no pages.
        """
        if digest == sequence.menu.exact.tenant.digest:
            return False
        self._assembler.end(sequence.menu, sequence.option)
        sequence.menu = sequence.menu.without(digest)
        self._assembler.begin(sequence.menu, sequence.option)
        return True

    def _use(self, tenant: Tenant) -> None:
        self._tenants[tenant.digest] = tenant
        self._users[tenant.digest] += 1

    def ready(self, model: str) -> bool:
        """Whether a model is here; else it begins to load."""
        if self._resident.has(model):
            return True
        if model not in self._loading and model not in self._crowded:
            self._loading.add(model)
            if self._loader is None:
                self._loader = ThreadPoolExecutor(1, "blockzoo-loader")
            waiting = [s for s in self.sequences.values() if s.tenant.digest == model]
            self._loader.submit(self._load, self._tenants[model], waiting)
        # where nobody else is served, a step may follow right behind the loading
        return len(self._users) == 1 and self._resident.arriving(model)

    def _load(self, tenant: Tenant, waiting: list[Sequence]) -> None:
        error: BlockzooError | None = None
        crowded = False
        began = time.perf_counter()
        try:
            self._resident.load(tenant.digest, tenant.needs)
        except NoRoomError:
            crowded = True
        except BlockzooError as caught:
            error = caught
        except Exception as caught:  # whatever it is, it concerns this model alone
            error = UnservableError(f"its weights could not be loaded: {caught!r}")
        with self._changed:
            self._loading.discard(tenant.digest)
            self._took[tenant.digest] = time.perf_counter() - began
            if tenant.digest not in self._users and not self._known(tenant.digest):
                self._resident.forget(tenant.digest)  # replaced while it loaded
            if crowded:
                self._crowded.add(tenant.digest)
            if error is not None:
                # not those that have come since: by now it may be mended
                self.failures.append((tenant.digest, waiting, error))
            self._changed.notify_all()

    def crowded(self, model: str) -> bool:
        """Whether a model found no room beside what is in use; it will be tried again."""
        found = model in self._crowded
        self._crowded.discard(model)
        return found

    def may_fit(self, job: Job) -> bool:
        """Whether a job that found no room, alone, may find it when it is tried again.

        What is on its way cannot be let go of until it is here; and what its weights found in
        their way may be gone by now.
        """
        if self.loading:
            return True
        needs = dict(self.sequences[job].tenant.needs.nbytes)
        for tenant in self._pinned.values():
            needs |= tenant.needs.nbytes
        budget = self._resident.memory.budget
        fits = budget is None or sum(needs.values()) <= budget
        return fits and not self._resident.has(job.model)

    def fits(self, models: frozenset[str]) -> bool:
        """Whether models fit together, beside those that are pinned, and leave room for KV.

        One alone is always tried: it might take some of what KV is left, and fails where that
        is too little.
        """
        budget = self._resident.memory.budget
        if budget is None or len(models.difference(self._pinned)) <= 1:
            return True
        models = models.union(self._pinned)
        if models not in self._fits:
            if len(self._fits) > 1000:
                self._fits.clear()
            distinct: dict[Key, int] = {}
            for model in models:
                tenant = self._pinned[model] if model in self._pinned else self._tenants[model]
                distinct |= tenant.needs.nbytes
            self._fits[models] = sum(distinct.values()) <= budget * (1 - _FOR_KV)
        return self._fits[models]

    def turn(self, model: str) -> int:
        """Steps that a model keeps its place: long enough that loading is a small part of it."""
        wanted = _TURN * self._took.get(model, 0.0) / max(self.step_seconds, 1e-6)
        return int(min(max(wanted, self._shortest_turn), _LONGEST_TURN))

    def pin(self, tenant: Tenant) -> None:
        """A tenant stays here, whoever else needs the memory."""
        self._pinned[tenant.digest] = tenant
        self._resident.pin(tenant.digest)

    def unpin(self, tenant: Tenant) -> None:
        """It may go again."""
        self._pinned.pop(tenant.digest, None)
        self._resident.pin(tenant.digest, False)

    def keep(self, models: frozenset[str]) -> None:
        """None of these is let go of from now on; others may be."""
        for model in models - self._kept.keys():
            self._kept[model] = self._resident.using([model])
            self._kept[model].__enter__()
        for model in self._kept.keys() - models:
            self._kept.pop(model).__exit__(None, None, None)
            if not self._known(model):
                self._resident.forget(model)

    def begin(self, job: Job) -> int:
        """Pages for a job; those that stand already are found by content."""
        sequence, tenant = self.sequences[job], self.sequences[job].tenant
        known = sequence.slots[: job.length]
        pages = self._kv.begin(tenant.layout, tenant.upstream, known, sequence.kept_last)
        sequence.began(pages)
        return pages.starts[-1]

    def extend(self, job: Job, end: int) -> bool:
        """Pages for a job's slots up to `end`."""
        pages = self.sequences[job].pages
        assert pages is not None
        return self._kv.extend(pages, end)

    def release(self, job: Job) -> None:
        """A job's pages go, or stay cached."""
        sequence = self.sequences[job]
        assert sequence.pages is not None
        self._kv.release(sequence.pages)
        sequence.pages = None

    def remove(self, sequence: Sequence) -> None:
        """A request is over; its pages were released."""
        del self.sequences[sequence.job]
        self._assembler.end(sequence.menu, sequence.option)
        self._disuse(sequence.tenant.digest)

    def _disuse(self, model: str) -> None:
        """One request fewer needs a tenant."""
        self._users[model] -= 1
        if not self._users[model]:
            del self._users[model], self._tenants[model]
            self._crowded.discard(model)
            if not self._known(model):
                self._took.pop(model, None)

    def close(self) -> None:
        """Wait for what is loading and let everything go."""
        if self._loader is not None:
            self._loader.shutdown(cancel_futures=True)
            self._loader = None
        self.keep(frozenset())
