"""Tensors in memory: each distinct one once, however many tenants use it.

Keyed by digest and compute dtype. On a CPU, where the stored dtype is the compute dtype, a
resident tensor is a view of the zoo's mapped file. A tenant is either loaded, and then all it
needs is here, or not; where memory is short the least recently used tenants are let go, and with
them what no other loaded tenant needs. Those of the step that runs now never are.
"""

from __future__ import annotations

import os
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from blockzoo.errors import UsageError
from blockzoo.execution.fused import Fused
from blockzoo.execution.tensors import Build, cast, to_torch
from blockzoo.explore.values import format_bytes
from blockzoo.tensors import TensorInfo, TensorRef
from blockzoo_runtime.blocks.arrivals import Arrivals
from blockzoo_runtime.blocks.needs import Key, Needs, Place
from blockzoo_runtime.blocks.stack import Stack
from blockzoo_runtime.blocks.transfer import Transfer
from blockzoo_runtime.errors import NoRoomError
from blockzoo_runtime.kv.memory import Memory

_LOADERS = min(8, (os.cpu_count() or 1) + 1)
_BEGINS = 0.01  # seconds until a loader that was told to has begun
_LARGE = 1 << 18  # bytes; below, handing over to a thread takes longer than reading

Read = Callable[[str], tuple[TensorInfo, memoryview]]


@dataclass
class _Loaded:
    needs: Needs
    done: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None


class ResidentTensors:
    """What is in memory, for all tenants.

    Parameters
    ----------
    read : callable
        ``digest -> (TensorInfo, memoryview)``: `Zoo.tensor`.
    device : torch.device
    memory : Memory
        The budget, which the KV cache draws on too.

    Attributes
    ----------
    tensors : dict of Key to torch.Tensor
        What is here. Read without a lock; only `load` and eviction change it. Who asks for a
        tensor that is on its way waits for it.
    stacks : dict of Place to Stack
        Low-rank adapters, by where they apply.
    loads : Counter
        By tenant, how many times it was brought in: where that is the same, nothing has moved.
    """

    def __init__(self, read: Read, device: torch.device, memory: Memory) -> None:
        self.device = device
        self._arrivals = Arrivals()
        self.tensors: dict[Key, torch.Tensor] = self._arrivals
        self.stacks: dict[Place, Stack] = {}
        self.loads: Counter[str] = Counter()
        self.memory = memory
        self._read = read
        self._transfer = Transfer(device) if device.type == "cuda" else None
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()  # least recently used first
        self._users: Counter[Key] = Counter()
        self._sizes: dict[Key, int] = {}
        self._busy: Counter[str] = Counter()
        self._pinned: set[str] = set()
        self._lock = threading.RLock()
        self._loading = threading.Lock()  # one tenant after another: they may share tensors
        memory.add_reclaimer("weights", self._reclaim)

    @property
    def nbytes(self) -> int:
        """Bytes of all resident tensors."""
        return self.memory.used("weights")

    @property
    def loading(self) -> bool:
        """Whether some tenant is being brought in now."""
        return self._loading.locked()

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, key: Key) -> bool:
        return key in self._sizes

    def has(self, tenant: str) -> bool:
        """Whether all that a tenant (by digest) needs is here."""
        loaded = self._loaded.get(tenant)
        return loaded is not None and loaded.done.is_set()

    def arriving(self, tenant: str) -> bool:
        """Whether a step may begin already: what it needs comes in the order it is used."""
        return self._arrivals.begun(tenant, _BEGINS)

    def pin(self, tenant: str, pinned: bool = True) -> None:
        """Never let go of a tenant; or let go again."""
        with self._lock:
            (self._pinned.add if pinned else self._pinned.discard)(tenant)

    def load(self, tenant: str, needs: Needs) -> None:
        """Bring in what a tenant needs; returns at once where it is here.

        From any thread: tensors are read, checked and decoded on several at once, and others
        go on meanwhile.

        Raises
        ------
        UsageError
            Where it does not fit beside what is in use.
        DamagedError
            Where a tensor in the zoo is damaged or gone.
        """
        with self._lock:
            loaded = self._loaded.get(tenant)
            if loaded is None:
                loaded = self._loaded[tenant] = _Loaded(needs)
                mine = True
            else:
                self._loaded.move_to_end(tenant)
                mine = False
        if not mine:
            loaded.done.wait()
            if loaded.error is not None:
                raise loaded.error
            return
        try:
            with self._loading, self.using([tenant]):
                self._load(tenant, needs)
        except BaseException as error:
            loaded.error = error
            with self._lock:
                self._loaded.pop(tenant, None)
            raise
        finally:
            loaded.done.set()

    def _load(self, tenant: str, needs: Needs) -> None:
        limit = self.memory.budget
        if limit is not None and needs.total > limit:
            raise UsageError(
                f"the model needs {format_bytes(needs.total)} of tensors at once, "
                f"the memory budget is {format_bytes(limit)}",
                hint="give LLM a larger `memory`, or a smaller `dtype`",
            )
        with self._lock:
            missing = [key for key in needs.nbytes if not self._users[key]]
            self._users.update(list(needs.nbytes))  # a mapping would be taken for counts
        try:
            for key in missing:
                if not self.memory.reserve("weights", needs.nbytes[key]):
                    raise NoRoomError(
                        f"{format_bytes(needs.total)} of tensors do not fit beside what is in "
                        f"use: the memory budget is {format_bytes(limit or 0)}",
                        hint="give LLM a larger `memory`, or ask for fewer models at once",
                    )
                self._sizes[key] = needs.nbytes[key]
            self.loads[tenant] += 1
            with self._arrivals.expect(tenant, needs, missing):
                self._bring(needs, missing)
        except BaseException:
            with self._lock:
                self._give_up(needs)
            raise

    def _bring(self, needs: Needs, missing: Sequence[Key]) -> None:
        """Read, check and decode on several threads at once; then make what is made of others."""
        refs = [(key, ref) for key in missing if (ref := needs.stored.get(key))]
        large = [pair for pair in refs if pair[1].nbytes >= _LARGE]
        with ThreadPoolExecutor(_LOADERS) as pool:
            tensors = pool.map(lambda pair: self.read(*pair), large)
            for key, ref in refs:
                here = next(tensors) if ref.nbytes >= _LARGE else self.read(key, ref)
                self._arrivals.put(key, here)
        for key in missing:
            if low := needs.stacked.get(key):
                stack = self.stacks.setdefault(low.place, Stack())
                stack.add(key, self.read(key, low.a), self.read(key, low.b))
        for key in missing:
            if key in needs.derived:
                self.tensors[key] = self._derive(needs.derived[key], key[1])

    def read(self, key: Key, ref: TensorRef) -> torch.Tensor:
        """A tensor from the zoo: floats cast to the dtype, on the device."""
        info, data = self._read(ref.digest)
        tensor = to_torch(info, data)
        if self._transfer is not None:
            return self._transfer(tensor, key[1])
        return cast(tensor, key[1], self.device)

    def _derive(self, fused: Fused, dtype: torch.dtype) -> torch.Tensor:
        parts = []
        for ref in fused.parts:
            key = (ref.digest, dtype)
            here = self.tensors.get(key)
            parts.append(here if here is not None else self.read(key, ref))
        return fused.build(parts)

    @contextmanager
    def using(self, tenants: Iterable[str]) -> Iterator[None]:
        """None of these tenants is let go of inside."""
        tenants = list(tenants)
        with self._lock:
            self._busy.update(tenants)
        try:
            yield
        finally:
            with self._lock:
                for tenant in tenants:
                    if tenant in self._loaded:
                        self._loaded.move_to_end(tenant)
                    self._busy[tenant] -= 1
                    if not self._busy[tenant]:
                        del self._busy[tenant]

    def forget(self, tenant: str) -> None:
        """Let go of a tenant that nobody asks for any more, unless it is in use."""
        with self._lock:
            loaded = self._loaded.get(tenant)
            if loaded is None or tenant in self._busy or not loaded.done.is_set():
                return
            del self._loaded[tenant]
            self._give_up(loaded.needs)

    def _give_up(self, needs: Needs) -> int:
        freed = 0
        for key in needs.nbytes:
            self._users[key] -= 1
            if self._users[key] > 0:
                continue
            del self._users[key]
            freed += self._sizes.pop(key, 0)
            self.tensors.pop(key, None)
            if low := needs.stacked.get(key):
                stack = self.stacks.get(low.place)
                if stack is not None:
                    stack.remove(key)
        self.memory.free("weights", freed)
        return freed

    def _reclaim(self, wanted: int) -> int:
        """Let go of idle tenants until so many bytes are free; returns how many are."""
        freed = 0
        with self._lock:
            for tenant in list(self._loaded):
                if freed >= wanted:
                    break
                loaded = self._loaded[tenant]
                if tenant in self._busy or tenant in self._pinned or not loaded.done.is_set():
                    continue
                del self._loaded[tenant]
                freed += self._give_up(loaded.needs)
        return freed

    def source(self, dtype: torch.dtype) -> ResidentSource:
        """What is here, as a `TensorSource` in a compute dtype."""
        return ResidentSource(self, dtype)


class ResidentSource:
    """A `TensorSource` over what is resident."""

    def __init__(self, resident: ResidentTensors, dtype: torch.dtype) -> None:
        self._resident = resident
        self._dtype = dtype

    def tensor(self, ref: TensorRef) -> torch.Tensor:
        return self._resident.tensors[ref.digest, self._dtype]

    def derived(self, key: str, parts: Sequence[TensorRef], build: Build) -> torch.Tensor:
        return self._resident.tensors[key, self._dtype]


def parse_bytes(text: str | int | None) -> int | None:
    """A budget such as ``"8GiB"``, ``"500 MB"`` or a number of bytes.

    Raises
    ------
    UsageError
    """
    if text is None or isinstance(text, int):
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    if match is None:
        raise UsageError(f"{text!r} is no amount of memory", hint="write it as 8GiB or 500MB")
    power = " kmgt".index(match[2] or " ")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)
