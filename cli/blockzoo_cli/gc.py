"""``blockzoo gc``: free what no name refers to."""

from __future__ import annotations

import re

import click

from blockzoo.errors import BlockzooError, UsageError
from blockzoo_cli.verb import App, verb

_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


class Age(click.ParamType[float]):
    """A length of time such as ``90``, ``30m``, ``2h``, ``7d``; seconds without a unit."""

    name = "age"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw]?)", str(value))
        if match is None:
            self.fail(f"{value!r} is not an age; say 90, 30m, 2h or 7d", param, ctx)
        return float(match[1]) * _SECONDS[match[2]]


@verb("gc")
@click.option(
    "--older-than",
    type=Age(),
    default="1h",
    show_default=True,
    help="Leave what was written or used more recently.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Only show what would be freed.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def command(app: App, older_than: float, dry_run: bool, yes: bool) -> None:
    """Show what no name refers to, ask, and delete it.

    Runs safely beside ingests. Where nobody can be asked, --yes or --dry-run has to be given.
    """
    from blockzoo.explore.values import format_bytes

    plan = app.zoo().gc(older_than=older_than)
    counts = plan.counts()
    what = ", ".join(f"{count:,} {folder}" for folder, count in counts.items())
    lines = [f"{what}: {format_bytes(plan.bytes)}" if what else "nothing to free"]
    if plan.kept_young:
        lines.append(f"{plan.kept_young:,} more are younger than the given age and stay")
    go = bool(counts) and not dry_run
    if go and not yes:
        if not app.output.asks:
            raise UsageError(
                f"gc would delete {lines[0]}, and nobody is here to be asked",
                hint="--yes deletes, --dry-run only shows",
            )
        app.output.note("\n".join(lines))
        if not app.output.confirm("delete them?"):
            raise BlockzooError("not confirmed; nothing was deleted")
    # also where there is nothing to free: clears what killed runs left behind
    freed = plan.execute() if not dry_run else 0
    if go:
        lines.append(f"freed {format_bytes(freed)}")
    data = {
        "objects": counts,
        "bytes": plan.bytes,
        "kept_young": plan.kept_young,
        "freed_bytes": freed,
        "dry_run": dry_run,
    }
    app.output.record(data, "\n".join(lines), ids=[found.digest for found in plan.objects])
