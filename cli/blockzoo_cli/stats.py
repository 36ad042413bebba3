"""``blockzoo stats``: how much is kept, and how much that saves."""

from __future__ import annotations

from blockzoo_cli.verb import App, verb


@verb("stats")
def command(app: App) -> None:
    """Show logical and stored bytes and the saving."""
    stats = app.zoo().stats()
    data = stats.to_json()
    app.output.record(data, stats.table(), ids=[f"{key} {value}" for key, value in data.items()])
