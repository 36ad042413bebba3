"""``blockzoo ingest``: bring checkpoints and adapters in."""

from __future__ import annotations

import errno
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from blockzoo.errors import (
    BlockzooError,
    LockedError,
    NoZooError,
    SomeSourcesFailed,
    UsageError,
)
from blockzoo_cli.failures import explain
from blockzoo_cli.progress import bar
from blockzoo_cli.verb import App, verb

if TYPE_CHECKING:
    from blockzoo.arrival import Ingested
    from blockzoo.zoo import Zoo

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # the next source would fare no better


@dataclass(frozen=True)
class Failure:
    """A source that could not be taken in, and why."""

    source: str
    error: str
    hint: str | None


@verb("ingest")
@click.argument("sources", metavar="SRC…", nargs=-1, required=True)
@click.option("--name", help="What to call the model; by default its folder's name.")
@click.option("--base", help="The model an adapter belongs to; by default as its config says.")
@click.option("--detached", is_flag=True, help="Keep an adapter even though its base is absent.")
@click.option("--dedupe", is_flag=True, help="Keep near-copies as differences, see `dedupe`.")
@click.option(
    "--level",
    type=click.Choice(["fast", "small"]),
    default="small",
    show_default=True,
    help="Of --dedupe.",
)
def command(
    app: App,
    sources: tuple[str, ...],
    name: str | None,
    base: str | None,
    detached: bool,
    dedupe: bool,
    level: Literal["fast", "small"],
) -> None:
    """Bring models and adapters into the zoo; only what is new is written.

    SRC is a folder as Hugging Face writes it (safetensors or torch .bin, or a PEFT adapter), a
    file of weights, or a Hub id such as org/name. Full models go first, then adapters. The zoo
    is made where there is none.
    """
    from blockzoo.zoo import check_apart

    if name and len(sources) > 1:
        raise UsageError("--name goes with one source only", hint="ingest them one by one")
    ordered = sorted(map(_known, sources), key=_is_adapter)
    folders = Counter(_called(source) for source in ordered)
    if twice := [called for called, count in folders.items() if count > 1]:
        raise UsageError(
            f"several sources would be called {', '.join(twice)}",
            hint="ingest them one by one, each with --name",
        )
    for source in ordered:
        check_apart(app.path, Path(source))  # before a new zoo is made there
    zoo = app.zoo(create=True)
    failed: list[Failure] = []
    errors: list[Exception] = []

    def fail(source: str, error: Exception) -> None:
        if _hopeless(error):
            raise error
        errors.append(error)
        message, hint, _ = explain(error)
        failed.append(Failure(source, message, hint))
        if len(ordered) > 1:
            app.output.complain(f"{source}: {message}", hint)

    with bar(app.output) as progress:
        # without --dedupe one by one: each that is done has its name, whatever befalls the next
        rounds = [ordered] if dedupe else [[source] for source in ordered]
        done = [
            one
            for sources_ in rounds
            for one in zoo.ingest_all(
                sources_,
                name,
                base=base,
                detached=detached,
                dedupe=level if dedupe else None,
                failed=fail,
                progress=progress,
            )
        ]
    if errors and len(ordered) == 1:
        raise errors[-1]
    _tell(app, zoo, done, failed)
    if failed:
        raise (SomeSourcesFailed if done else BlockzooError)(
            f"{len(failed)} of {len(ordered)} sources failed: "
            + ", ".join(failure.source for failure in failed)
        )


def _tell(app: App, zoo: Zoo, done: list[Ingested], failed: list[Failure]) -> None:
    from blockzoo.explore.table import Column, Table
    from blockzoo.explore.values import format_bytes

    rows: list[dict[str, Any]] = [
        {
            "name": one.name,
            "digest": one.digest,
            "kind": one.kind,
            "bytes": one.bytes,
            "new_bytes": one.new_bytes,
            "seconds": round(one.seconds, 3),
            "already": one.already,
            "detached": one.detached,
            "attached": list(one.attached),
            "notes": list(one.notes),
            "bytes_per_second": one.bytes / one.seconds if one.seconds else None,
        }
        for one in done
    ]
    columns = [
        Column("name"),
        Column("kind"),
        Column("digest", kind="digest"),
        Column("bytes", "size", "bytes"),
        Column("new_bytes", "new", "bytes"),
        Column("bytes_per_second", "per second", "bytes"),
    ]
    size, new = sum(one.bytes for one in done), sum(one.new_bytes for one in done)
    note = f"{format_bytes(new)} of {format_bytes(size)} were new" if done else ""
    data = {"ingested": rows, "failed": [vars(failure) for failure in failed]}
    app.output.record(data, Table("", columns, rows, note), ids=[one.name for one in done])
    for one in done:
        for note in one.notes:
            app.output.note(f"{one.name}: {note}")
        if one.detached:
            app.output.note(f"{one.name} waits for its base; it cannot be run before")
        if one.attached:
            app.output.note(f"{', '.join(one.attached)} waited for {one.name} and can be run now")
    if done and not failed:
        app.output.hint(f"`blockzoo show {done[-1].name}` shows the chain and what it shares")


def _known(source: str) -> str:
    """A source as given, if it can be one at all."""
    if not Path(source).exists() and not _HUB_ID.fullmatch(source):
        raise UsageError(
            f"{source!r} is neither a file or folder here nor a Hub id",
            hint="name a model's folder, or a Hub id such as org/name",
        )
    return source


def _is_adapter(source: str) -> bool:
    return (Path(source) / "adapter_config.json").is_file()


def _called(source: str) -> str:
    path = Path(source)
    return path.resolve().name if path.exists() else source


def _hopeless(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in _HOPELESS
    return isinstance(error, (NoZooError, LockedError))
