"""How ``verify`` and ``repair`` tell what they found: one table, one JSON, one exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from blockzoo.errors import DamagedError
from blockzoo_cli.output import Output

if TYPE_CHECKING:
    from blockzoo.store.check import Problem, Report


def tell(output: Output, report: Report) -> None:
    """Print a report; leaves with the code of damage where some remains."""
    from blockzoo.explore.table import Column, Table
    from blockzoo.explore.values import format_bytes

    rows = [_row(problem, "damaged") for problem in report.problems]
    rows += [_row(problem, "repaired") for problem in report.repaired]
    columns = [
        Column("state"),
        Column("folder"),
        Column("digest", "object", "digest"),
        Column("what"),
        Column("hurts"),
    ]
    read = f"{report.objects:,} objects, {format_bytes(report.bytes)}"
    shown = Table("", columns, rows, note=read) if rows else f"{read}: all sound"
    data = {
        "ok": report.ok,
        "objects": report.objects,
        "bytes": report.bytes,
        "problems": [_row(problem, "damaged") for problem in report.problems],
        "repaired": [_row(problem, "repaired") for problem in report.repaired],
    }
    output.record(data, shown, ids=[problem.digest for problem in report.problems])
    if not report.ok:
        hurt = sorted({name for problem in report.problems for name in problem.hurts})
        count = len(report.problems)
        output.complain(
            f"{count} object{'s are' if count > 1 else ' is'} damaged or missing; "
            + (f"this hurts {', '.join(hurt)}" if hurt else "no named model needs them"),
            "`blockzoo repair SOURCE` takes the good bytes from another zoo or the original folder",
        )
        click.get_current_context().exit(DamagedError.exit_code)


def _row(problem: Problem, state: str) -> dict[str, Any]:
    return {
        "state": state,
        "folder": problem.folder,
        "digest": problem.digest,
        "what": problem.what,
        "hurts": list(problem.hurts),
        "path": str(problem.path) if problem.path else None,
    }
