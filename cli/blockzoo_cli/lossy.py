"""The lossy side of ``blockzoo dedupe``: plans that are certified, executed and taken back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from blockzoo.errors import BlockzooError, UsageError
from blockzoo_cli.progress import bar
from blockzoo_cli.verb import App

if TYPE_CHECKING:
    from blockzoo.compact.plan import CompactPlan
    from blockzoo.explore.table import Table
    from blockzoo.zoo import Zoo


@dataclass(frozen=True)
class Asked:
    """The options of a lossy plan; no widths at all means low rank only."""

    calibration: tuple[Path, ...]
    texts: tuple[Path, ...]
    own: Path | None
    base: str | None
    grade: str
    widths: tuple[int, ...] | None
    beside: bool
    svg: Path | None
    dry_run: bool
    yes: bool


def make_compact(
    app: App, names: Sequence[str], asked: Asked, what: Literal["compact", "swap", "revert"]
) -> None:
    """Plan for each model, show, ask, execute; or revert."""
    if not names:
        raise click.UsageError("MODEL is missing: the one that gets a new version")
    zoo = app.zoo()
    if what == "revert":
        digests = {name: zoo.revert(name) for name in names}
        app.output.record(
            {"reverted": digests}, *(f"{n} is {d[:12]} again" for n, d in digests.items()),
            ids=list(digests.values()),
        )  # fmt: skip
        return
    if not asked.texts and asked.own is None:
        raise UsageError(
            "there is no text to certify on, and nothing lossy is done uncertified",
            hint="give --text FILE, and --own FILE of the model's own domain",
        )
    if not (asked.yes or asked.dry_run or app.output.asks):  # told before the work, not after
        raise UsageError(
            "nobody is here to be asked whether a lossy plan is to be executed",
            hint="--yes executes it, --dry-run only shows it",
        )
    found: list[dict[str, Any]] = []
    tables: list[Table] = []
    ids: list[str] = []
    missed = False
    for name in names:
        with bar(app.output, counted=True) as progress:
            plan = _plan(zoo, name, asked, what, progress)
        if asked.svg is not None:
            plan.drawing().save(asked.svg)
        data = plan.to_json() | {"dry_run": asked.dry_run, "digest": ""}
        found.append(data)
        tables.append(plan.table())
        if plan.chosen is None:
            missed = True
        if asked.dry_run or plan.chosen is None:
            continue
        _confirm(app, plan, asked)
        data["digest"] = plan.execute(beside=asked.beside)
        ids.append(str(data["digest"]))
    app.output.record({"plans": found}, *tables, *_told(found, asked), ids=ids)
    click.get_current_context().exit(1 if missed else 0)


def _plan(zoo: Zoo, name: str, asked: Asked, what: str, progress: Any) -> CompactPlan:
    given: dict[str, Any] = {"own": asked.own, "grade": asked.grade, "progress": progress}
    texts = asked.texts or [path for path in (asked.own,) if path is not None]
    if what == "swap":
        return zoo.equivalent(name, asked.calibration, texts, **given)
    given |= {"base": asked.base, "widths": asked.widths or ()}
    return zoo.compact(name, asked.calibration, texts, **given)


def _confirm(app: App, plan: CompactPlan, asked: Asked) -> None:
    if asked.yes:
        return
    app.output.note(plan.table().to_text())
    if not app.output.confirm("execute it?"):
        raise BlockzooError(f"not confirmed; {plan.name} stays what it is")


def _told(found: Sequence[dict[str, Any]], asked: Asked) -> list[str]:
    from blockzoo.explore.values import format_bytes

    lines = []
    for data in found:
        if data["chosen"] is None:
            lines.append(f"{data['name']}: nothing that saves anything is certified {asked.grade}")
            continue
        point = data["points"][data["chosen"]]
        verb = "would be" if asked.dry_run else "beside it" if asked.beside else "is now"
        lines.append(
            f"{data['name']} {verb} {point['kept_as']}: {format_bytes(point['resident'])} of its "
            f"own in memory, where it had {format_bytes(data['exact']['resident'])}; "
            f"certified {point['grade']} ({point['record'][:12]})"
        )
    return lines
