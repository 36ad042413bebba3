"""Tensors in memory: each distinct one once, however many tenants use it.

Keyed by digest and compute dtype. On a CPU, where the stored dtype is the compute dtype, a
resident tensor is a view of the zoo's mapped file. A tensor stays until the byte budget makes it
go, the least recently used first; those of the chain that runs now never do.
"""

from __future__ import annotations

import os
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch

from blockzoo.errors import UsageError
from blockzoo.execution.tensors import TensorSource, cast, to_torch
from blockzoo.explore.values import format_bytes
from blockzoo.tensors import TensorInfo, TensorRef

_LOADERS = min(8, (os.cpu_count() or 1) + 1)

Read = Callable[[str], tuple[TensorInfo, memoryview]]
Build = Callable[[Sequence[torch.Tensor]], torch.Tensor]
Key = tuple[str, torch.dtype]
"""A digest, or the name of a derived tensor, and the compute dtype."""


class ResidentTensors:
    """What is in memory, for all tenants.

    Parameters
    ----------
    read : callable
        ``digest -> (TensorInfo, memoryview)``: `Zoo.tensor`.
    device : torch.device
    budget : int, optional
        Bytes; None: as much as there is.
    """

    def __init__(self, read: Read, device: torch.device, budget: int | None = None) -> None:
        self.device = device
        self.budget = budget
        self.nbytes = 0
        self._read = read
        self._kept: OrderedDict[Key, torch.Tensor] = OrderedDict()  # least recently used first
        self._holders: Counter[Key] = Counter()
        self._in_use: set[Key] = set()
        self._parts: dict[Key, tuple[Key, ...]] = {}  # of derived tensors
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: Key) -> bool:
        return key in self._kept

    def source(self, dtype: torch.dtype) -> TensorSource:
        """A chain's view: its tensors in its compute dtype."""
        return _Source(self, dtype)

    @contextmanager
    def using(self, needs: dict[Key, int], stored: Iterable[Key] = ()) -> Iterator[None]:
        """Nothing of `needs` (keys to bytes) is evicted inside; one user at a time.

        Parameters
        ----------
        needs : dict
        stored : iterable of Key
            Those of them that are used as they are stored: loaded together where absent.

        Raises
        ------
        UsageError
            Where they do not fit the budget together.
        """
        total = sum(needs.values())
        if self.budget is not None and total > self.budget:
            raise UsageError(
                f"the model needs {format_bytes(total)} of tensors at once, "
                f"the memory budget is {format_bytes(self.budget)}",
                hint="give LLM a larger `memory`, or a smaller `dtype`",
            )
        with self._lock:
            self._in_use.update(needs)
            try:
                self._load_together([key for key in stored if key not in self._kept])
                yield
            finally:
                self._in_use.clear()

    def get(
        self,
        key: Key,
        load: Callable[[], torch.Tensor],
        *,
        parts: tuple[Key, ...] = (),
        keep: bool = True,
    ) -> torch.Tensor:
        """The tensor under `key`, loaded where it is absent.

        Parameters
        ----------
        key : Key
        load : callable
        parts : tuple of Key
            For a derived tensor, what it is made from.
        keep : bool
            Whether a tensor loaded now stays.
        """
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                self._in_use.add(key)
                return self._kept[key]
            tensor = load()
            if keep:
                self._in_use.add(key)
                self._make_room(tensor.nbytes)
                self._kept[key] = tensor
                if parts:
                    self._parts[key] = parts
                self.nbytes += tensor.nbytes
            return tensor

    def _load_together(self, missing: Sequence[Key]) -> None:
        """Load stored tensors on several threads: reading, checking and decoding overlap."""
        if not missing:
            return
        with ThreadPoolExecutor(_LOADERS) as pool:
            loaded = pool.map(lambda key: self.load(*key), missing)
            for key, tensor in zip(missing, loaded, strict=True):
                self.get(key, partial(_itself, tensor))

    def load(self, digest: str, dtype: torch.dtype) -> torch.Tensor:
        """Read a tensor from the zoo: floats cast to `dtype`, on the device."""
        info, data = self._read(digest)
        return cast(to_torch(info, data), dtype, self.device)

    def hold(self, keys: Iterable[Key]) -> None:
        """Count one more model that uses these."""
        with self._lock:
            self._holders.update(list(keys))  # a mapping would be taken for counts

    def release(self, keys: Iterable[Key]) -> None:
        """Count one less; what no model uses any more goes at once."""
        with self._lock:
            for key in keys:
                self._holders[key] -= 1
                if self._holders[key] <= 0:
                    del self._holders[key]
            for key in list(self._kept):
                if not all(part in self._holders for part in self._parts.get(key, (key,))):
                    self._drop(key)

    def _make_room(self, wanted: int) -> None:
        if self.budget is None:
            return
        for key in list(self._kept):
            if self.nbytes + wanted <= self.budget:
                return
            if key not in self._in_use:
                self._drop(key)

    def _drop(self, key: Key) -> None:
        self.nbytes -= self._kept.pop(key).nbytes
        self._parts.pop(key, None)


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


class _Source:
    """A `TensorSource` over `ResidentTensors` in one dtype."""

    def __init__(self, resident: ResidentTensors, dtype: torch.dtype) -> None:
        self._resident = resident
        self._dtype = dtype

    def tensor(self, ref: TensorRef) -> torch.Tensor:
        key = (ref.digest, self._dtype)
        return self._resident.get(key, lambda: self._resident.load(ref.digest, self._dtype))

    def derived(self, key: str, parts: Sequence[TensorRef], build: Build) -> torch.Tensor:
        def make() -> torch.Tensor:
            # the parts are not kept: what is made from them holds the same values
            return build([self._part(part) for part in parts])

        keys = tuple((part.digest, self._dtype) for part in parts)
        return self._resident.get((key, self._dtype), make, parts=keys)

    def _part(self, ref: TensorRef) -> torch.Tensor:
        key = (ref.digest, self._dtype)
        load = self._resident.load
        return self._resident.get(key, lambda: load(ref.digest, self._dtype), keep=False)


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
