"""How a run that did not work ends: what went wrong and what to do, on stderr, and a code.

0 done, 1 failed or a check found something, 2 usage, 3 some sources failed, 10 no zoo,
11 locked, 12 damaged, 130 interrupted. A traceback is shown only with ``BLOCKZOO_DEBUG=1``.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback

import click

from blockzoo.errors import BlockzooError
from blockzoo_cli.output import complain

INTERRUPTED = 130


def report(error: BaseException) -> int:
    """Print an error for people and return the exit code that goes with it."""
    if isinstance(error, (click.exceptions.Exit, SystemExit)):
        return _leave(error)
    if isinstance(error, BrokenPipeError):  # `blockzoo ls | head`: the reader has had enough
        _abandon_stdout()
        return 1
    if os.environ.get("BLOCKZOO_DEBUG", "") not in ("", "0"):
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__cause__, KeyboardInterrupt):
        click.echo("interrupted; what was finished is kept, run it again to go on", err=True)
        return INTERRUPTED
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return error.exit_code
    message, hint, code = explain(error)
    complain(message, hint)
    return code


def explain(error: BaseException) -> tuple[str, str | None, int]:
    """An error's message, hint and exit code."""
    if isinstance(error, BlockzooError):
        return error.message, error.hint, error.exit_code
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "blockzoo"
        return error.format_message(), f"`{path} --help` shows how it is used", 2
    if isinstance(error, click.ClickException):
        return error.format_message(), None, error.exit_code
    if isinstance(error, click.Abort):
        return "stopped at the question; nothing was done", None, 1
    if isinstance(error, MemoryError):
        return "the memory is full", "close other programs or use a smaller model", 1
    if isinstance(error, OSError):
        return (*_explain_os(error), 1)
    return (
        f"a mistake in blockzoo: {type(error).__name__}: {error}",
        "BLOCKZOO_DEBUG=1 shows where; please report it with that",
        1,
    )


def _explain_os(error: OSError) -> tuple[str, str | None]:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk is full{where}; nothing half-written was kept",
            "make room (`blockzoo gc` frees what no name refers to) and run it again",
        )
    if error.errno == errno.EROFS:
        return f"the disk is read-only{where}", "use a zoo on a disk that can be written"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"no permission{where}", "check who owns the folder, or use another with --zoo"
    if error.errno == errno.EMFILE:
        return f"too many open files{where}", "raise the limit, such as with `ulimit -n 65536`"
    return f"{error.strerror or error}{where}", None


def _leave(error: BaseException) -> int:
    code = getattr(error, "exit_code", getattr(error, "code", 0))
    if isinstance(code, int):
        return code
    if code is not None:
        click.echo(code, err=True)
    return 0 if code is None else 1


def _abandon_stdout() -> None:
    """Keep Python from complaining, at its end, that stdout is gone."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return
