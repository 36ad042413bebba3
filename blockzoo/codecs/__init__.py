"""How an object's bytes are kept in a file: one module a kind, each with the same functions.

A kind is known by its file's suffix. ``raw`` (``.safetensors``) keeps a tensor as it is;
``delta``, ``rows`` and ``planes`` keep it packed (`kept` is the file they share); ``zstd``
(``.zst``) keeps a small file compressed and sealed. An object's digest does not depend on its
kind.
"""

from __future__ import annotations

from types import ModuleType

from blockzoo.codecs import delta, planes, rows

#: the packed kinds of tensor, by suffix; each has `encode`, `decode` and `decode_range`
PACKED: dict[str, ModuleType] = {module.SUFFIX: module for module in (delta, rows, planes)}
