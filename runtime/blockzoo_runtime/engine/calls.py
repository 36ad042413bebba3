"""Many requests in one call: all prepared, all submitted, their results in the order they came.

Whatever ends the call early (an error, an interrupt, a cancelled task) cancels what still runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from blockzoo.errors import BlockzooError
from blockzoo_runtime.engine.request import Failed, Request

if TYPE_CHECKING:
    from blockzoo_runtime.engine.engine import Engine
    from blockzoo_runtime.engine.sequence import Generation, Scoring

OnError = Literal["raise", "return"]
Prepared = Sequence["Generation | Scoring | Failed"]


def prepare_all(make: Callable[[Any], Any], asked: Iterable[Any], on_error: OnError) -> Prepared:
    """What is asked as sequences, or as `Failed`."""
    return [_attempt(on_error, _model_of(one), partial(make, one)) for one in asked]


def _model_of(asked: Any) -> str:
    """The name asked for, as far as there is one."""
    if isinstance(asked, Request):
        return asked.model
    return str(asked[0]) if isinstance(asked, (tuple, list)) and asked else ""


def run_all(engine: Engine, prepared: Prepared, on_error: OnError) -> list[Any]:
    """Run them; where the queue is full, wait."""
    try:
        submitted = [_submitted(engine, one, on_error, wait=True) for one in prepared]
        return [
            one if isinstance(one, Failed) else _attempt(on_error, one.model, one.handle.result)
            for one in submitted
        ]
    finally:
        _cancel(prepared)


async def arun_all(engine: Engine, prepared: Prepared, on_error: OnError) -> list[Any]:
    """Run them; where the queue is full, say so."""
    try:
        submitted = [_submitted(engine, one, on_error, wait=False) for one in prepared]
        return [await _awaited(one, on_error) for one in submitted]
    finally:
        _cancel(prepared)


def _submitted(engine: Engine, one: Any, on_error: OnError, *, wait: bool) -> Any:
    if isinstance(one, Failed):
        return one

    def submit() -> Any:
        engine.submit(one, wait=wait)
        return one

    return _attempt(on_error, one.model, submit)


async def _awaited(one: Any, on_error: OnError) -> Any:
    if isinstance(one, Failed):
        return one
    try:
        return await one.handle.wait()
    except BlockzooError as error:
        if on_error == "raise":
            raise
        return Failed(one.model, error)


def _attempt(on_error: OnError, model: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except BlockzooError as error:
        if on_error == "raise":
            raise
        return Failed(model, error)


def _cancel(prepared: Prepared) -> None:
    """Nobody waits for these any more; those that have ended do not care."""
    for one in prepared:
        if not isinstance(one, Failed):
            one.handle.cancel()
