"""``blockzoo diff``: where two models are the same, and how far apart the rest is."""

from __future__ import annotations

import click

from blockzoo_cli.verb import App, verb


@verb("diff")
@click.argument("first")
@click.argument("second")
def command(app: App, first: str, second: str) -> None:
    """Compare FIRST with SECOND, by layer and projection.

    A distance is relative: the Frobenius norm of the difference over that of FIRST's tensor.
    """
    table = app.zoo().diff(first, second)
    ids = table.columns[0].key
    data = {"first": first, "second": second, "rows": table.to_json()}
    app.output.record(data, table, ids=[str(row[ids]) for row in table])
