"""``blockzoo similar``: what is nearest to a model or a block, two models, or the family tree."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from blockzoo_cli.progress import bar
from blockzoo_cli.verb import App, verb

if TYPE_CHECKING:
    from blockzoo.zoo import Zoo


@verb("similar")
@click.argument("what", required=False, metavar="[NAME|BLOCK]")
@click.argument("other", required=False, metavar="[NAME]")
@click.option("--top-k", default=10, show_default=True, type=click.IntRange(1), metavar="N")
@click.option(
    "--svg",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw the family tree, or two models' blocks with each other, into this file.",
)
@click.option("--activations", is_flag=True, help="Compare two models by what their blocks do.")
@click.option(
    "--calibration", type=click.Path(path_type=Path), metavar="FILE",
    help="The text that they do it to.",
)  # fmt: skip
@click.option(
    "--within", default=0.1, show_default=True, metavar="DISTANCE", type=click.FloatRange(0),
    help="Of two models: up to which distance blocks are one cluster.",
)  # fmt: skip
def command(
    app: App,
    what: str | None,
    other: str | None,
    top_k: int,
    svg: Path | None,
    activations: bool,
    calibration: Path | None,
    within: float,
) -> None:
    """Show what is nearest to NAME or BLOCK; without either, which model descends from which.

    BLOCK is NAME@HOP, such as acme/sql@layers.3.mlp, or the first digits of a block's digest.
    Distances are told from sketches of the weights and off by 2% of themselves.

    With two NAMEs, they are compared block by block: exactly by their weights, and with
    --activations on the text of --calibration by the outputs of blocks on the same inputs
    (relative to what the block adds to them) and by debiased CKA.
    """
    if activations and calibration is None:
        raise click.UsageError("--activations needs a text: --calibration FILE")
    if calibration is not None and other is None:
        raise click.UsageError("--calibration compares two models: give two NAMEs")
    if what is not None and other is None and svg is not None:
        raise click.UsageError("--svg draws the family tree or two models, and not one NAME")
    zoo = app.zoo()
    if what is not None and other is not None:
        _compare(app, zoo, (what, other), calibration, svg, within)
        return
    if what is None:
        with bar(app.output) as progress:
            tree = zoo.families(progress)
        rows = tree.to_json()
        ids = [f"{row['name']} {row['parent'] or '-'}" for row in rows]
        app.output.record({"families": rows}, repr(tree), ids=ids)
        if svg is not None:
            tree.dendrogram().save(svg)
            app.output.note(f"drawn in {svg}")
        return
    with bar(app.output) as progress:
        table = zoo.similar(what, top_k=top_k, progress=progress)
    ids = [row.get("name") or row["block"] for row in table]
    app.output.record({"of": what, "rows": table.to_json()}, table, ids=ids)


def _compare(
    app: App,
    zoo: Zoo,
    names: tuple[str, str],
    calibration: Path | None,
    svg: Path | None,
    within: float,
) -> None:
    with bar(app.output) as progress:
        found = zoo.similarity(*names, calibration, progress=progress)
    clusters = found.clusters(within)
    ids = [row["hop"] for row in found.table]
    data = {**found.to_json(), "clusters": clusters.to_json()}
    app.output.record(data, found.table, clusters, ids=ids)
    if svg is not None:
        found.heatmap().save(svg)
        app.output.note(f"drawn in {svg}")
