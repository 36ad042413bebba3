"""Serving chains: many models from one set of resident tensors.

`LLM` is the front door. torch and transformers are imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blockzoo_runtime.engine.request import (
    Completion,
    Failed,
    Piece,
    Prompt,
    Request,
    Sampling,
    Scored,
)
from blockzoo_runtime.errors import BusyError

if TYPE_CHECKING:
    from blockzoo_runtime.llm import LLM

__all__ = [
    "LLM",
    "BusyError",
    "Completion",
    "Failed",
    "Piece",
    "Prompt",
    "Request",
    "Sampling",
    "Scored",
]


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from blockzoo_runtime.llm import LLM

        return LLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
