"""Tables on a terminal, drawn by rich from the one `Table` that everything is listed in.

What does not fit is left out by rule (``--json`` has it all): columns without a value, then
times. Names and digests are never broken over lines, so that they can be copied.
"""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from blockzoo.explore.table import Column, Table

_LONG = 44  # characters; wider text is broken over lines
_NARROWEST = 16  # characters of a column that is broken over lines
_GAP = 2
_STYLES = {"digest": "dim", "time": "dim"}

Cells = list[str]


def draw(table: Table, console: Console | None = None) -> None:
    """Print a table to stdout; rich heeds ``NO_COLOR`` and the terminal's width."""
    console = console or Console(highlight=False)
    if not table.rows:
        console.print(escape(f"{table.title}: none" if table.title else "none"))
        return
    grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, _GAP - 1, 0, 0))
    columns = _fitting(table, console.width)
    for number, (column, cells) in enumerate(columns):
        grid.add_column(
            escape(_heading(column, cells)),
            justify="right" if column.right else "left",
            style=_STYLES.get(column.kind, "bold" if number == 0 else ""),
            overflow="fold",
            no_wrap=not _broken(table, column, cells),
        )
    for row in zip(*(cells for _, cells in columns), strict=True):
        grid.add_row(*map(escape, row))
    if table.title:
        console.print(escape(table.title), style="italic")
    console.print(grid)
    if table.note:
        console.print(escape(table.note), style="dim")


def _fitting(table: Table, width: int) -> list[tuple[Column, Cells]]:
    """The columns to draw, each with its cells."""
    rows = [table.cells(row) for row in table]
    columns = [(column, [row[i] for row in rows]) for i, column in enumerate(table.columns)]
    columns = [(column, cells) for column, cells in columns if any(cells)]
    if _total(table, columns) > width:
        columns = [(column, cells) for column, cells in columns if column.kind != "time"]
    return columns


def _heading(column: Column, cells: Cells) -> str:
    """A title wider than what stands below it goes over several lines."""
    title = column.title
    return title.replace(" ", "\n") if len(title) > max(map(len, cells)) else title


def _total(table: Table, columns: list[tuple[Column, Cells]]) -> int:
    widths = [
        _NARROWEST
        if _broken(table, column, cells)
        else max(map(len, [*_heading(column, cells).split("\n"), *cells])) + _GAP
        for column, cells in columns
    ]
    return sum(widths)


def _broken(table: Table, column: Column, cells: Cells) -> bool:
    """Whether a column's text may go over several lines."""
    lists = any(isinstance(row.get(column.key), (list, tuple)) for row in table)
    return column.kind == "text" and (lists or max(map(len, cells)) > _LONG)
