"""``blockzoo dedupe``: keep near-copies as differences, without loss."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from blockzoo.errors import BlockzooError, UsageError
from blockzoo_cli.progress import bar
from blockzoo_cli.verb import App, verb


@verb("dedupe")
@click.option(
    "--level",
    type=click.Choice(["fast", "small"]),
    default="small",
    show_default=True,
    help="`fast` loads faster, `small` takes less.",
)
@click.option("--keep-raw", multiple=True, metavar="NAME", help="Leave (or make) NAME raw.")
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="Write the plan, stop.")
@click.option(
    "--apply", "apply_file", type=click.Path(path_type=Path, exists=True), help="Execute a plan."
)
@click.option("--undo", is_flag=True, help="Keep everything raw again.")
@click.option("-n", "--dry-run", is_flag=True, help="Only show what would be done.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def command(
    app: App,
    level: Literal["fast", "small"],
    keep_raw: tuple[str, ...],
    plan_file: Path | None,
    apply_file: Path | None,
    undo: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Find near-copies and keep them as differences from one another, without loss.

    Shows a plan first and asks. No digest, block or model changes; exports stay byte for byte
    what they were. It can be interrupted and run again.
    """
    if sum(map(bool, (plan_file, apply_file, undo))) > 1:
        raise UsageError("--plan, --apply and --undo exclude each other")
    from blockzoo.explore.values import format_bytes

    zoo = app.zoo()
    with bar(app.output) as progress:
        if apply_file:
            from blockzoo.dedupe.plan import load

            plan = load(zoo, apply_file)
        elif undo:
            plan = zoo.undo_dedupe()
        else:
            plan = zoo.dedupe(level=level, keep_raw=keep_raw, progress=progress)
    data = plan.to_json() | {"dry_run": dry_run or plan_file is not None}
    ids = [step.tensor for step in plan.steps]
    if plan_file:
        plan.save(plan_file)
        app.output.record(data, plan.table(), ids=ids)
        app.output.hint(f"`blockzoo dedupe --apply {plan_file}` executes it")
        return
    if dry_run or not plan.steps:
        app.output.record(data, plan.table(), ids=ids)
        return
    if not yes:
        if not app.output.asks:
            raise UsageError(
                "dedupe has a plan, and nobody is here to be asked",
                hint="--yes executes it, --dry-run only shows it",
            )
        app.output.note(plan.table().to_text())
        if not app.output.confirm("execute it?"):
            raise BlockzooError("not confirmed; nothing was changed")
    with bar(app.output) as progress:
        done = plan.execute(progress)
    data |= {"done_before": done.before, "done_after": done.after}
    stats = zoo.stats()
    app.output.record(
        data,
        f"{len(plan.steps):,} tensors took {format_bytes(done.before)}, "
        f"now {format_bytes(done.after)}; "
        f"the zoo saves {stats.saving:.1%} of its models' {format_bytes(stats.logical_bytes)}",
        ids=ids,
    )
