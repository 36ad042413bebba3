"""``blockzoo ls``: the models in the zoo."""

from __future__ import annotations

from blockzoo_cli.verb import App, verb


@verb("ls")
def command(app: App) -> None:
    """List the models: names, kinds, sizes and what each added."""
    table = app.zoo().models()
    app.output.table(table)
    if not table:
        app.output.hint("`blockzoo ingest FOLDER…` brings models in")
