"""What a caller holds of a request that runs: its pieces as they come, its result, its end.

The engine's thread puts things in; any other thread, or an asyncio loop, takes them out.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

from blockzoo.errors import BlockzooError
from blockzoo_runtime.engine.request import Piece

Result = TypeVar("Result")


class Handle(Generic[Result]):
    """One request's outcome.

    Attributes
    ----------
    on_cancel : callable
        Tells the engine that nobody waits any more; set once it has taken the request on.
    """

    def __init__(self) -> None:
        self.on_cancel: Callable[[], None] = _nobody
        self._pieces: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()
        self._done = threading.Event()
        self._result: Result | None = None
        self._error: BlockzooError | None = None
        self._wake: Callable[[], None] | None = None

    # by the engine

    def put(self, piece: Piece) -> None:
        """A piece more."""
        self._pieces.put(piece)
        self._notify()

    def finish(self, result: Result) -> None:
        """It has ended."""
        self._result = result
        self._end()

    def fail(self, error: BlockzooError) -> None:
        """It has failed."""
        self._error = error
        self._end()

    def _end(self) -> None:
        self._done.set()
        self._pieces.put(None)
        self._notify()

    def _notify(self) -> None:
        if self._wake is not None:
            try:
                self._wake()
            except RuntimeError:  # the caller's event loop is closed: nobody listens
                self._wake = None
                self.on_cancel()

    # by the caller

    @property
    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._done.is_set()

    def cancel(self) -> None:
        """Stop it; what it has so far is its result. Without effect on what is done."""
        if not self.done:
            self.on_cancel()

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the end.

        Parameters
        ----------
        timeout : float, optional
            Seconds.

        Raises
        ------
        BlockzooError
            What the request failed of.
        TimeoutError
        """
        if not self._done.wait(timeout):
            raise TimeoutError(f"the request has not ended within {timeout} seconds")
        return self._outcome()

    def _outcome(self) -> Result:
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    async def wait(self) -> Result:
        """`result`, for asyncio."""
        async for _ in self.pieces():
            pass
        return self._outcome()

    async def pieces(self) -> AsyncIterator[Piece]:
        """Pieces as they come, for asyncio; one reader at a time. Raises what it failed of."""
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(news.set)

        self._wake = wake
        try:
            while True:
                news.clear()
                while not self._pieces.empty():
                    piece = self._pieces.get_nowait()
                    if piece is None:
                        self._outcome()
                        return
                    yield piece
                await news.wait()
        finally:
            self._wake = None

    def next(self) -> Piece | None:
        """Wait for the next piece; None after the last. Raises what the request failed of."""
        piece = self._pieces.get()
        if piece is None:
            self._pieces.put(None)
            self._outcome()
        return piece


class Stream:
    """A request's pieces as an iterator; letting go of it before the end cancels the request.

    Parameters
    ----------
    handle : Handle
    """

    def __init__(self, handle: Handle[Result]) -> None:
        self._handle = handle

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Piece:
        piece = self._handle.next()
        if piece is None:
            raise StopIteration
        return piece

    def close(self) -> None:
        """Cancel what has not ended."""
        self._handle.cancel()

    def __del__(self) -> None:
        self.close()


def _nobody() -> None:
    """There is no engine to tell."""
