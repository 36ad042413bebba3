"""How an object's bytes are kept in a file: one module a kind, each with the same functions.

A kind is known by its file's suffix. ``raw`` (``.safetensors``) keeps a tensor as it is;
``delta``, ``rows`` and ``planes`` keep it packed (`kept` is the file they share); ``zstd``
(``.zst``) keeps a small file compressed and sealed. An object's digest does not depend on its
kind.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from types import ModuleType


class _Packed(Mapping[str, ModuleType]):
    """The packed kinds; each is imported, and NumPy with it, when it is first needed."""

    # what stands by itself first: of two processes one may have kept a tensor so, for others to
    # differ from it, while the other kept it as a difference
    _modules = {".planes": "planes", ".delta": "delta", ".rows": "rows"}

    def __getitem__(self, suffix: str) -> ModuleType:
        return importlib.import_module(f"{__name__}.{self._modules[suffix]}")

    def __contains__(self, suffix: object) -> bool:
        return suffix in self._modules

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


#: the packed kinds of tensor, by suffix; each has `encode`, `decode` and `decode_range`
PACKED: Mapping[str, ModuleType] = _Packed()
