"""``blockzoo history``: what a name pointed to, and when."""

from __future__ import annotations

import click

from blockzoo_cli.verb import App, verb


@verb("history")
@click.argument("name")
def command(app: App, name: str) -> None:
    """Show what NAME pointed to, oldest first; a digest in it can be tagged again."""
    app.output.table(app.zoo().history(name), ids="digest")
