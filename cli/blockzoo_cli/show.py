"""``blockzoo show``: one model's chain, or one block."""

from __future__ import annotations

import click

from blockzoo_cli.verb import App, verb


@verb("show")
@click.argument("name")
def command(app: App, name: str) -> None:
    """Show NAME's chain: its hops, their blocks and sizes, and who shares each.

    NAME is a model's name, with or without a tag, or the first digits of its digest.
    """
    view = app.zoo()[name]
    app.output.record(view.to_json(), view.heading(), view.chain(), ids=[view.digest])
