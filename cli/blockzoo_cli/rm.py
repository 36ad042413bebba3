"""``blockzoo rm``: forget names. Objects stay until ``gc``."""

from __future__ import annotations

import click

from blockzoo.errors import BlockzooError
from blockzoo_cli.verb import App, verb


@verb("rm")
@click.argument("names", metavar="NAME…", nargs=-1, required=True)
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def command(app: App, names: tuple[str, ...], dry_run: bool, yes: bool) -> None:
    """Remove names (or single tags, NAME:TAG). The models stay in the zoo until `gc`.

    Asks at a terminal. `tag DIGEST NAME` brings a name back.
    """
    zoo = app.zoo()
    digests = {name: zoo.resolve(name) for name in names}  # a wrong name stops it before any goes
    ask = app.output.asks and not (dry_run or yes)
    if ask and not app.output.confirm(f"remove {', '.join(digests)}?"):
        raise BlockzooError("not confirmed; nothing was removed")
    if not dry_run:
        for name in digests:
            zoo.remove(name)
    rows = [{"name": name, "digest": digest} for name, digest in digests.items()]
    words = "would remove" if dry_run else "removed"
    lines = [f"{words} {name} ({digest[:12]})" for name, digest in digests.items()]
    app.output.record({"removed": rows, "dry_run": dry_run}, "\n".join(lines), ids=digests)
    if not dry_run:
        name, digest = next(iter(digests.items()))
        app.output.hint(f"`blockzoo tag {digest[:12]} {name}` undoes it, `blockzoo gc` frees space")
