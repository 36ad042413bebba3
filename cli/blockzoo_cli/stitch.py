"""``blockzoo stitch``: one model's first layers and another's last ones, as a model of its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from blockzoo_cli.progress import bar
from blockzoo_cli.verb import App, verb

if TYPE_CHECKING:
    from blockzoo.explore.table import Table

_FILE = click.Path(path_type=Path)
_POSITION = re.compile(r"(\d{1,5}):(\d{1,5})", re.ASCII)


@verb("stitch")
@click.argument("source", metavar="FROM@I")
@click.argument("target", metavar="TO@J")
@click.option("--name", required=True, help="What the new model is called.")
@click.option(
    "--calibration", multiple=True, type=_FILE, metavar="FILE",
    help="Text to fit the stitch on. May be repeated.",
)  # fmt: skip
@click.option(
    "--text", "texts", multiple=True, type=_FILE, metavar="FILE",
    help="Held-out text to measure on, a file for each domain. May be repeated.",
)  # fmt: skip
@click.option(
    "--also", multiple=True, metavar="I:J",
    help="A further position that the stitch is fitted for. May be repeated.",
)  # fmt: skip
@click.option(
    "--with", "using", metavar="NAME",
    help="Take the stitch of NAME, which was stitched before; nothing is fitted.",
)  # fmt: skip
@click.option(
    "--steps", type=click.IntRange(0), metavar="N",
    help="Of distillation after the regression; 400 where not given.",
)  # fmt: skip
@click.option("--no-controls", is_flag=True, help="Do not fit the three controls.")
@click.option(
    "--tokens", default=20_000, show_default=True, type=click.IntRange(64), metavar="N",
    help="Of each held-out text at most.",
)  # fmt: skip
def command(
    app: App,
    source: str,
    target: str,
    name: str,
    calibration: tuple[Path, ...],
    texts: tuple[Path, ...],
    also: tuple[str, ...],
    using: str | None,
    steps: int | None,
    no_controls: bool,
    tokens: int,
) -> None:
    """Make a model of FROM's first I layers, a stitch, and TO's layers from J on.

    The two may be of different width, but need one tokenizer and equal head sizes. The stitch
    is fitted on the calibration text; all other weights stay. With --text, its perplexity is
    measured beside that of both models and of three controls, which must lose clearly, and it is
    graded as a stand-in for TO. It is a model of its own in any case: `blockzoo run NAME`.

    The exit code is 1 where a control has not lost clearly.
    """
    if using is not None and (also or steps is not None or no_controls):
        raise click.UsageError("--with takes a stitch as it is: no --also, --steps, --no-controls")
    positions = [_position(one) for one in also]
    zoo = app.zoo()
    from blockzoo.equivalence.stitch_fit import Settings

    settings = Settings() if steps is None else Settings(steps=steps)
    with bar(app.output, counted=True) as progress:
        done = zoo.stitch(
            source, target, name, calibration=calibration, text=texts, also=positions,
            using=using, settings=settings, controls=not no_controls, tokens=tokens,
            progress=progress,
        )  # fmt: skip
    shown: list[Table | str] = [done.heading(), *([done.table()] if done.perplexity else [])]
    if done.record is not None:
        shown += ["", f"as a stand-in for {done.target}:", done.record.heading()]
        shown.append(done.record.table())
    app.output.record(done.to_json(), *shown, ids=[name])
    if not texts:
        app.output.hint("--text FILE measures what it is worth")
    click.get_current_context().exit(0 if done.lost else 1)


def _position(text: str) -> tuple[int, int]:
    match = _POSITION.fullmatch(text)
    if match is None:
        raise click.UsageError(f"--also {text!r} is no position: give I:J, as 3:4")
    return int(match[1]), int(match[2])
