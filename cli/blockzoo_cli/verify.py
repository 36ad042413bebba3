"""``blockzoo verify``: check every object against its digest."""

from __future__ import annotations

from blockzoo_cli.findings import tell
from blockzoo_cli.progress import bar
from blockzoo_cli.verb import App, verb


@verb("verify")
def command(app: App) -> None:
    """Read every object, check it, and name the models that damage would hurt."""
    zoo = app.zoo()
    with bar(app.output) as progress:
        report = zoo.verify(progress=progress)
    tell(app.output, report)
