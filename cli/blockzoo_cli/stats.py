"""``blockzoo stats``: how much is kept, and how much that saves."""

from __future__ import annotations

import click

from blockzoo_cli.progress import bar
from blockzoo_cli.verb import App, verb


@verb("stats")
@click.option("--families", is_flag=True, help="Also which model descends from which.")
def command(app: App, families: bool) -> None:
    """Show logical and stored bytes and the saving."""
    zoo = app.zoo()
    stats = zoo.stats()
    data = stats.to_json()
    ids = [f"{key} {value}" for key, value in data.items() if key != "loading"]
    loading = stats.loading_table()
    shown = [stats.table(), *(("", loading) if loading else ())]
    if not families:
        app.output.record(data, *shown, ids=ids)
        return
    with bar(app.output) as progress:
        tree = zoo.families(progress)
    rows = tree.to_json()
    ids += [f"parent {row['name']} {row['parent'] or '-'}" for row in rows]
    app.output.record({**data, "families": rows}, *shown, "", repr(tree), ids=ids)
