"""``blockzoo certify``: whether blocks may stand in for others, and at what cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from blockzoo_cli.progress import bar
from blockzoo_cli.verb import App, verb

if TYPE_CHECKING:
    from blockzoo.equivalence.record import Equivalence

_FILE = click.Path(path_type=Path)


@verb("certify")
@click.argument("name", required=False, metavar="[MODEL]")
@click.option(
    "--swap", "swaps", multiple=True, metavar="HOP=OTHER[@HOP]",
    help="At HOP of MODEL, the block of model OTHER (there, or at another hop). May be repeated.",
)  # fmt: skip
@click.option(
    "--text", "texts", multiple=True, type=_FILE, metavar="FILE",
    help="Held-out text to measure on, a file for each domain. May be repeated.",
)  # fmt: skip
@click.option("--own", type=_FILE, metavar="FILE", help="Text of the model's own domain.")
@click.option(
    "--calibration", multiple=True, type=_FILE, metavar="FILE",
    help="Text that was used to choose the swap; what is in it is not measured on.",
)  # fmt: skip
@click.option("--each", is_flag=True, help="Certify every swap by itself, not all together.")
@click.option(
    "--tokens", type=click.IntRange(64), metavar="N",
    help="Of each text at most; 20,000 where not given.",
)  # fmt: skip
@click.option(
    "--grade", default="B", show_default=True, type=click.Choice(["A", "B", "C"]),
    help="What is wanted; a worse one leaves with exit code 1.",
)  # fmt: skip
@click.option("--again", metavar="ID", help="Repeat a certification, on the same texts.")
def command(
    app: App,
    name: str | None,
    swaps: tuple[str, ...],
    texts: tuple[Path, ...],
    own: Path | None,
    calibration: tuple[Path, ...],
    each: bool,
    tokens: int | None,
    grade: str,
    again: str | None,
) -> None:
    """Measure what a swap of blocks does to MODEL's next-token distributions, and grade it.

    All swaps are made together and certified as one chain, unless --each is given. In HOP, *
    stands for anything: 'layers.*=base'. The record is kept; `blockzoo show ID` prints it.
    Without --swap, the records of MODEL (or of all) are listed.

    Grades go by the worst text's mean KL and top-1 agreement, with 95% bounds: A (0.001, 98.5%),
    B (0.002, 97.5%), C (0.006, 96%); none is stricter than the model's own rounding to bf16.
    """
    zoo = app.zoo()
    if again is not None:
        if name or swaps or own or calibration or each or tokens:
            raise click.UsageError("--again takes ID, and --text where the texts have moved")
        from blockzoo.equivalence.certify import certify_again

        before = zoo.equivalence(again)
        with bar(app.output, counted=True) as progress:
            record = certify_again(zoo, before, texts, progress)
        same = record.digest == before.digest
        words = "the same figures again" if same else f"it was {before.grade} before"
        _show(app, [record], grade, {"again": before.digest, "same": same}, words)
    if not swaps:
        if texts or own or calibration or each or tokens:
            raise click.UsageError("--swap is missing: HOP=OTHER, such as layers.3.mlp=base")
        table = zoo.equivalences(name)
        app.output.table(table, "equivalence")
        return
    if name is None:
        raise click.UsageError("MODEL is missing: the one that receives the blocks")
    from blockzoo.equivalence.certify import TOKENS, certify

    with bar(app.output, counted=True) as progress:
        records = certify(
            zoo, name, [swaps], texts, own=own, calibration=calibration, each=each,
            tokens=tokens or TOKENS, progress=progress,
        )  # fmt: skip
    _show(app, records, grade, {})


def _show(
    app: App, records: list[Equivalence], grade: str, more: dict[str, object], *words: str
) -> None:
    data = [{"digest": record.digest, **record.to_json()} for record in records]
    shown = [part for record in records for part in (record.heading(), record.table())]
    app.output.record(
        {**more, "records": data}, *shown, *words, ids=[record.digest for record in records]
    )
    if records and not records[0].own:
        texts = ", ".join(text["domain"] for text in records[0].texts)
        app.output.warn(
            f"measured on {texts} only, and none of that is said to be of the model's own domain: "
            "what holds there need not hold where the model is used",
            "give text of what the model is used for: --own FILE",
        )
    passed = all(record.judgement.at_least(grade) for record in records)
    click.get_current_context().exit(0 if passed else 1)
