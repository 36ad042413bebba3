"""``blockzoo show``: one model's chain, or one block."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from blockzoo_cli.verb import App, verb

if TYPE_CHECKING:
    from blockzoo.explore.table import Table

_NAMES_SHOWN = 3


@verb("show")
@click.argument("name")
def command(app: App, name: str) -> None:
    """Show NAME's chain: its hops, their blocks and sizes, and who shares each.

    NAME is a model's name, with or without a tag, or the first digits of its digest.
    """
    view = app.zoo()[name]
    chain = _shortened(view.chain())
    app.output.record(view.to_json(), view.heading(), chain, ids=[view.digest])


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
