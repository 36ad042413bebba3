"""``blockzoo dedupe``: keep near-copies as differences, without loss, or at a certified one."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from blockzoo.errors import BlockzooError, UsageError
from blockzoo_cli.lossy import Asked, make_compact
from blockzoo_cli.progress import bar
from blockzoo_cli.verb import App, verb

_FILE = click.Path(path_type=Path)


@verb("dedupe")
@click.argument("names", nargs=-1, metavar="[MODEL]...")
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
@click.option(
    "--compact", is_flag=True,
    help="Lossy: keep MODEL as its base and compact differences, certified.",
)  # fmt: skip
@click.option(
    "--equivalent", is_flag=True,
    help="Lossy: let other models' blocks stand in for MODEL's, certified.",
)  # fmt: skip
@click.option(
    "--calibration", multiple=True, type=_FILE, metavar="FILE",
    help="Text to fit and choose on. May be repeated.",
)  # fmt: skip
@click.option(
    "--text", "texts", multiple=True, type=_FILE, metavar="FILE",
    help="Held-out text to certify on, a file for each domain. May be repeated.",
)  # fmt: skip
@click.option("--own", type=_FILE, metavar="FILE", help="Held-out text of the model's own domain.")
@click.option("--base", metavar="NAME", help="What --compact tells MODEL by; else found.")
@click.option(
    "--grade", default="B", show_default=True, type=click.Choice(["A", "B", "C"]),
    help="What a lossy plan has to hold, see `blockzoo certify --help`.",
)  # fmt: skip
@click.option(
    "--bits", "widths", multiple=True, type=click.Choice(["1", "2", "4"]),
    help="Of a code that --compact may use; all of them where not given. May be repeated.",
)  # fmt: skip
@click.option(
    "--low-rank", is_flag=True,
    help="Of --compact: find a LoRA that was merged, and make it an adapter again.",
)  # fmt: skip
@click.option("--beside", is_flag=True, help="Keep the exact version, and the certified beside it.")
@click.option("--svg", type=_FILE, metavar="FILE", help="Draw the frontier of a lossy plan.")
@click.option("--revert", is_flag=True, help="Let MODEL be the exact version again.")
@click.option("-n", "--dry-run", is_flag=True, help="Only show what would be done.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def command(
    app: App,
    names: tuple[str, ...],
    level: Literal["fast", "small"],
    keep_raw: tuple[str, ...],
    plan_file: Path | None,
    apply_file: Path | None,
    undo: bool,
    compact: bool,
    equivalent: bool,
    calibration: tuple[Path, ...],
    texts: tuple[Path, ...],
    own: Path | None,
    base: str | None,
    grade: str,
    widths: tuple[str, ...],
    low_rank: bool,
    beside: bool,
    svg: Path | None,
    revert: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Find near-copies and keep them as differences from one another, without loss.

    Shows a plan first and asks. No digest, block or model changes; exports stay byte for byte
    what they were. It can be interrupted and run again.

    With --compact or --equivalent each MODEL gets a new, lossy version under its name, the
    cheapest that is certified on text it was not made on; the exact one stays in the name's
    history until `gc`, and --revert returns to it.
    """
    if compact or equivalent or revert:
        if sum((compact, equivalent, revert)) > 1 or plan_file or apply_file or undo or keep_raw:
            raise click.UsageError(
                "--compact, --equivalent, --revert and the options of lossless plans exclude "
                "each other"
            )
        if low_rank and widths:
            raise click.UsageError("--low-rank and --bits exclude each other")
        if not compact and (base or widths or low_rank):
            raise click.UsageError("--base, --bits and --low-rank go with --compact")
        if revert and (calibration or texts or own or beside or svg or dry_run):
            raise click.UsageError("--revert takes MODEL and nothing else")
        if svg and len(names) > 1:
            raise click.UsageError("--svg draws one plan: give one MODEL")
        bits = None if low_rank else tuple(map(int, widths)) or (1, 2, 4)
        asked = Asked(calibration, texts, own, base, grade, bits, beside, svg, dry_run, yes)
        make_compact(app, names, asked, "revert" if revert else "compact" if compact else "swap")
        return
    lossy = {"--calibration": calibration, "--text": texts, "--own": own, "--base": base,
             "--bits": widths, "--low-rank": low_rank, "--beside": beside, "--svg": svg,
             "MODEL": names}  # fmt: skip
    if given := [option for option, value in lossy.items() if value]:
        raise click.UsageError(f"{given[0]} goes with --compact or --equivalent")
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
