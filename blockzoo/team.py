"""Processes that share work with this one.

Python runs one thread of a process at a time, and coding is many short array operations, so
threads wait for each other. The processes are started afresh (not forked: BLAKE3's threads do
not survive that; not by `multiprocessing`, which would run the caller's script once more), speak
over pipes, and end when this process does. Where one cannot be started or dies, its work is done
here.
"""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import IO, TypeVar

_In = TypeVar("_In")
_Out = TypeVar("_Out")

_LARGE = 256 << 20  # bytes of work from which on starting a process pays
_MOST = 8
_SERVE = "from blockzoo.team import serve; serve()"


class Team:
    """Other processes and this one; as a context, they end with it.

    Parameters
    ----------
    nbytes : int
        Of the work to come; where it is little no process is started, and threads share it.
    """

    def __init__(self, nbytes: int) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self._cores = min(_MOST, cores or 1)
        self._others: list[subprocess.Popen[bytes]] = []
        if nbytes >= _LARGE and sys.executable:
            with suppress(OSError):  # too many processes
                for _ in range(self._cores - 1):
                    self._others.append(_start())
        self._free: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        for other in self._others:
            self._free.put(other)

    def __enter__(self) -> Team:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for other in self._others:
            if kind is not None:
                other.kill()
            other.communicate()  # the end of its input is the end of its work

    def call(self, function: Callable[[_In], _Out], item: _In) -> _Out:
        """Call a function in a process that has nothing to do, or here; see `map`."""
        try:
            other = self._free.get_nowait()
        except queue.Empty:
            return function(item)
        try:
            return _ask(other, function, item)
        finally:
            self._free.put(other)

    def map(
        self, function: Callable[[_In], _Out], items: Sequence[_In]
    ) -> Iterator[tuple[_In, _Out]]:
        """Call a function on each item and give what it returns, in the order of completion.

        Parameters
        ----------
        function : callable
            Found in its module by its name, in every process.
        items : sequence
            Picklable, as are results and errors.
        """
        waiting: queue.SimpleQueue[_In] = queue.SimpleQueue()
        for item in items:
            waiting.put(item)
        done: queue.SimpleQueue[tuple[_In, _Out] | BaseException] = queue.SimpleQueue()
        stop = threading.Event()

        def work(call: Callable[[_In], _Out]) -> None:
            try:
                while not stop.is_set():
                    item = waiting.get_nowait()
                    done.put((item, call(item)))
            except queue.Empty:
                pass
            except BaseException as error:
                done.put(error)

        here = 1 if self._others else self._cores
        calls = [function] * here + [partial(_ask, other, function) for other in self._others]
        with ThreadPoolExecutor(len(calls)) as pool:
            try:
                for call in calls:
                    pool.submit(work, call)
                for _ in range(len(items)):
                    result = done.get()
                    if isinstance(result, BaseException):
                        raise result
                    yield result
            finally:
                stop.set()


def _start() -> subprocess.Popen[bytes]:
    # -P: no module is taken from the folder one stands in, which may be a checkpoint's;
    # a process that ends with its terminal's Ctrl-C would print a traceback beside ours
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


def _ask(other: subprocess.Popen[bytes], function: Callable[[_In], _Out], item: _In) -> _Out:
    """Call a function in another process; here where that one is gone."""
    assert other.stdin is not None and other.stdout is not None
    try:
        pickle.dump((function, item), other.stdin)
        other.stdin.flush()
        result, error = pickle.load(other.stdout)
    except (OSError, EOFError, pickle.UnpicklingError):
        other.kill()
        return function(item)
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]


def serve() -> None:
    """Do what comes in on standard input until it ends."""
    answers: IO[bytes] = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not come between the answers
    while True:
        try:
            function, item = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer: tuple[object, Exception | None] = function(item), None
        except Exception as error:
            answer = None, error
        pickle.dump(answer, answers)
        answers.flush()
