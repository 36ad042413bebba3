"""``blockzoo tag``: another name, or a tag, for a model."""

from __future__ import annotations

import click

from blockzoo_cli.verb import App, verb


@verb("tag")
@click.argument("name")
@click.argument("new_name")
def command(app: App, name: str, new_name: str) -> None:
    r"""Let NEW_NAME point to the model that NAME (a name or a digest) points to.

    \b
    blockzoo tag acme/support acme/support:v3
    blockzoo tag 3f9a1c07 acme/support        # back to an older one, see `history`
    """
    zoo = app.zoo()
    digest = zoo.resolve(name)
    zoo.tag(name, new_name)
    app.output.record(
        {"name": new_name, "digest": digest}, f"{new_name} is {digest[:12]}", ids=[new_name]
    )
