"""Tables on a terminal, drawn by rich from the one `Table` that everything is listed in."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from blockzoo.explore.table import Table

_STYLES = {"digest": "dim", "time": "dim"}


def draw(table: Table) -> None:
    """Print a table to stdout; rich heeds ``NO_COLOR`` and the terminal's width."""
    console = Console(highlight=False)
    grid = RichTable(
        title=escape(table.title) or None,
        caption=escape(table.note) or None,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for number, column in enumerate(table.columns):
        grid.add_column(
            escape(column.title),
            justify="right" if column.right else "left",
            style=_STYLES.get(column.kind, "bold" if number == 0 else ""),
            overflow="fold",
            no_wrap=column.kind not in ("text",),
        )
    for row in table:
        grid.add_row(*map(escape, table.cells(row)))
    console.print(grid if table.rows else f"{escape(table.title)}: none")
