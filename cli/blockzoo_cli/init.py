"""``blockzoo init``: make an empty zoo."""

from __future__ import annotations

from blockzoo_cli.verb import App, verb


@verb("init")
def command(app: App) -> None:
    """Make an empty zoo; one that is there already stays as it is."""
    there = (app.path / "zoo.json").exists()
    app.zoo(create=True)
    path = str(app.path.resolve())
    words = "there is a zoo already in" if there else "made an empty zoo in"
    app.output.record({"zoo": path, "created": not there}, f"{words} {path}", ids=[path])
    app.output.hint("`blockzoo ingest FOLDER…` brings models in")
