"""``blockzoo diff``: where two models are the same, and how far apart the rest is."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from blockzoo_cli.verb import App, verb

if TYPE_CHECKING:
    from blockzoo.explore.table import Table

_LAYER = re.compile(r"^.*?\.\d+\.")


@verb("diff")
@click.argument("first")
@click.argument("second")
@click.option("--rank", is_flag=True, help="Also the rank of each matrix's difference; slower.")
def command(app: App, first: str, second: str, rank: bool) -> None:
    """Compare FIRST with SECOND, by layer and projection.

    A distance is relative: the Frobenius norm of the difference over that of FIRST's tensor.
    A rank counts the directions that stand out from what rounding gives by itself: a merged
    LoRA's is the LoRA's own.
    """
    table = app.zoo().diff(first, second, rank=rank)
    data = {"first": first, "second": second, "rows": table.to_json()}
    app.output.record(data, _shortened(table), ids=table["tensor"])


def _shortened(table: Table) -> Table:
    """As wide as a terminal: the hop goes into the tensor's name; --json has both whole."""
    columns = [column for column in table.columns if column.key != "hop"]
    rows = [{**row, "tensor": _short_name(row["tensor"], row["hop"])} for row in table]
    return replace(table, columns=columns, rows=rows)


def _short_name(tensor: str, hop: str) -> str:
    """``layers.3.mlp.up_proj`` for ``model.layers.3.mlp.up_proj.weight``."""
    name = tensor.removesuffix(".weight")
    layer = re.match(r".*?\.\d+", hop)
    return _LAYER.sub(f"{layer[0]}.", name) if layer else name
