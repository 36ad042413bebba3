"""Progress bars on stderr: none where nobody watches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from blockzoo.progress import Progress, silent
from blockzoo_cli.output import Output, plain_terminal


@contextlib.contextmanager
def bar(output: Output, *, counted: bool = False) -> Iterator[Progress]:
    """What a verb hands to the zoo: draws how far it is, or is silent.

    That is bytes, their speed and how many were new; or a plain count, where what is done comes
    in other units than bytes.
    """
    if not output.interactive or plain_terminal():
        yield silent
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TransferSpeedColumn,
    )

    from blockzoo.explore.values import format_bytes

    amounts = [MofNCompleteColumn()] if counted else [DownloadColumn(), TransferSpeedColumn()]
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *amounts,
        TextColumn("[dim]{task.fields[note]}"),
        console=Console(stderr=True),
        transient=True,
    ) as shown:
        tasks: dict[str, TaskID] = {}

        def tell(what: str, done: int, total: int, new: int) -> None:
            if what not in tasks:
                tasks[what] = shown.add_task(escape(what), total=total, note="")
            note = f"{format_bytes(new)} new" if new else ""
            shown.update(tasks[what], completed=done, total=total, note=note)
            if done >= total:
                shown.remove_task(tasks.pop(what))

        yield tell
