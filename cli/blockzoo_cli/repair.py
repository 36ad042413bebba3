"""``blockzoo repair``: put damaged or missing objects right."""

from __future__ import annotations

from pathlib import Path

import click

from blockzoo_cli.findings import tell
from blockzoo_cli.verb import App, verb


@verb("repair")
@click.argument("source", type=click.Path(path_type=Path, exists=True))
def command(app: App, source: Path) -> None:
    """Take the good bytes of damaged objects from SOURCE.

    SOURCE is another zoo, or the folder that a model was ingested from.
    """
    from blockzoo.repair import open_damaged

    zoo = open_damaged(app.path)
    app.output.note("reading every object …")
    tell(app.output, zoo.repair(source))
