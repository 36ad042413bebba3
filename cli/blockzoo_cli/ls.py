"""``blockzoo ls``: the models in the zoo."""

from __future__ import annotations

import click

from blockzoo.errors import DamagedError
from blockzoo_cli.verb import App, verb


@verb("ls")
def command(app: App) -> None:
    """List the models: names, kinds, sizes and what each added."""
    table = app.zoo().models()
    app.output.table(table)
    if not table:
        app.output.hint("`blockzoo ingest FOLDER…` brings models in")
    if damaged := [row["name"] for row in table.rows if row["kind"] == "damaged"]:
        app.output.complain(
            f"what {', '.join(damaged)} stands for cannot be read: the name's file is damaged",
            "`blockzoo verify` tells what is damaged, `blockzoo repair SOURCE` mends it",
        )
        click.get_current_context().exit(DamagedError.exit_code)
