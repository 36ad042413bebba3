"""Progress bars on stderr: none where nobody watches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from blockzoo_cli.output import Output, plain_terminal

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


@contextlib.contextmanager
def bar(output: Output, title: str) -> Iterator[Progress | None]:
    """A bar with bytes and speed while a verb works; yields what the zoo calls, or None."""
    if not output.interactive or plain_terminal():
        yield None
        return
    with _display(title) as update:
        yield lambda done, total: update(done, total, "")


@contextlib.contextmanager
def _display(title: str) -> Iterator[Callable[[int, int, str], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("[dim]{task.fields[extra]}"),
        console=Console(stderr=True),
        transient=True,
    ) as shown:
        task = shown.add_task(title, total=None, extra="")

        def update(done: int, total: int, extra: str) -> None:
            shown.update(task, completed=done, total=total, extra=extra)

        yield update
