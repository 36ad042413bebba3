"""``blockzoo similar``: what is nearest to a model or a block, or the whole family tree."""

from __future__ import annotations

from pathlib import Path

import click

from blockzoo_cli.progress import bar
from blockzoo_cli.verb import App, verb


@verb("similar")
@click.argument("what", required=False, metavar="[NAME|BLOCK]")
@click.option("--top-k", default=10, show_default=True, type=click.IntRange(1), metavar="N")
@click.option(
    "--svg",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw the family tree into this file.",
)
def command(app: App, what: str | None, top_k: int, svg: Path | None) -> None:
    """Show what is nearest to NAME or BLOCK; without either, which model descends from which.

    BLOCK is NAME@HOP, such as acme/sql@layers.3.mlp, or the first digits of a block's digest.
    Distances are told from sketches of the weights and off by 2% of themselves.
    """
    if what is not None and svg is not None:
        raise click.UsageError("--svg draws the family tree and takes no NAME")
    zoo = app.zoo()
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
