"""``blockzoo show``: one model's chain, or the record of a certification."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from blockzoo.errors import NotFoundError
from blockzoo_cli.verb import App, verb

if TYPE_CHECKING:
    from blockzoo.explore.table import Table
    from blockzoo.zoo import Zoo

_NAMES_SHOWN = 3


@verb("show")
@click.argument("name")
def command(app: App, name: str) -> None:
    """Show NAME's chain: its hops, their blocks and sizes, and who shares each.

    NAME is a model's name, with or without a tag, or the first digits of its digest. The first
    digits of an equivalence's digest show what was certified.
    """
    zoo = app.zoo()
    try:
        view = zoo[name]
    except NotFoundError:
        if not _show_equivalence(app, zoo, name):
            raise
        return
    chain = _shortened(view.chain())
    app.output.record(view.to_json(), view.heading(), chain, ids=[view.digest])


def _show_equivalence(app: App, zoo: Zoo, digits: str) -> bool:
    """Whether there was a record of that digest to show."""
    if not any(True for _ in zoo.objects.all("equivalences")):
        return False
    from blockzoo.equivalence.listing import find, missing

    record = find(zoo, digits)
    if record is None:
        return False
    gone = missing(zoo, record)
    lines = [f"no longer in this zoo: {', '.join(gone)}"] if gone else []
    data = {"digest": record.digest, **record.to_json(), "gone": gone}
    app.output.record(data, record.heading(), record.table(), *lines, ids=[record.digest])
    return True


def _shortened(chain: Table) -> Table:
    """The chain as wide as a terminal, with a few names a row; --json has it all."""
    rows = []
    for row in chain:
        names = row["shared_with"]
        more = len(names) - _NAMES_SHOWN
        if more > 1:
            names = [*names[:_NAMES_SHOWN], f"{more} more"]
        rows.append({**row, "shared_with": names})
    columns = [column for column in chain.columns if column.key != "tensors"]
    return replace(chain, title="", columns=columns, rows=rows)
