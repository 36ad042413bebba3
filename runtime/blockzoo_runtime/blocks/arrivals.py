"""Tensors that are here, and those that are on their way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from blockzoo_runtime.blocks.needs import Key, Needs

#: bytes on their way that a step follows, and seconds that it waits for them altogether:
#: meanwhile it can serve nobody else
_SOON = 2 << 30
_PATIENCE = 0.3


class LateError(Exception):
    """What a step waited for has not come; nothing is lost, it can be taken again."""


class Arrivals(dict[Key, torch.Tensor]):
    """Resident tensors; looking up one that is on its way waits for it.

    So a step can follow right behind the loading, one hop after another.

    Attributes
    ----------
    whose : str or None
        The tenant that is being loaded.
    soon : bool
        Whether what it lacks is little, and comes in the order it is used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.whose: str | None = None
        self.soon = False
        self._coming: set[Key] = set()
        self._missed: dict[Key, BaseException] = {}
        self._patience = 0.0
        self._changed = threading.Condition()

    def __missing__(self, key: Key) -> torch.Tensor:
        began = time.monotonic()
        with self._changed:
            while key not in self:
                if key not in self._coming:
                    raise self._missed.get(key, KeyError(key))
                left = self._patience - (time.monotonic() - began)
                if not self._changed.wait(max(left, 0)) and key not in self:
                    self.soon = False
                    raise LateError
            self._patience -= time.monotonic() - began
        return self[key]

    def begun(self, tenant: str, seconds: float) -> bool:
        """Wait so long for a tenant's loading to begin; whether a step may follow it."""
        with self._changed:
            self._changed.wait_for(lambda: self.whose == tenant, seconds)
            return self.whose == tenant and self.soon

    def put(self, key: Key, tensor: torch.Tensor) -> None:
        """One has arrived."""
        self[key] = tensor
        with self._changed:
            self._changed.notify_all()

    @contextmanager
    def expect(self, tenant: str, needs: Needs, missing: Sequence[Key]) -> Iterator[None]:
        """What a tenant lacks is loaded inside; whoever waits is told if that fails."""
        with self._changed:
            self._coming, self._missed = set(missing), {}
            little = sum(needs.nbytes[key] for key in missing) <= _SOON
            self.soon = little and all(key in needs.stored for key in missing)
            self.whose = tenant
            self._patience = _PATIENCE
            self._changed.notify_all()
        try:
            yield
        except BaseException as error:
            self._missed = dict.fromkeys(missing, error)
            raise
        finally:
            with self._changed:
                self.whose, self.soon = None, False
                self._coming = set()
                self._changed.notify_all()
