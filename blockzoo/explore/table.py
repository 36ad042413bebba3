"""The one table everything is listed in.

`Zoo.models()`, `.blocks()`, `.history()`, `.diff()` return it; a notebook renders it as HTML, a
Python prompt as text, the command line as a rich table, ``--json`` or ``-q`` from the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, overload

from blockzoo.explore import html
from blockzoo.explore.values import SHORT_DIGEST, Kind, format_value

_TEXT_ROWS = 60
_HTML_ROWS = 500
_LEFT: tuple[Kind, ...] = ("text", "digest", "time", "shape")


@dataclass(frozen=True)
class Column:
    """One column.

    Parameters
    ----------
    key : str
        The key in each row and in JSON; stable.
    header : str
        What people read. The key where empty.
    kind : str
        How values are shown; see :func:`~blockzoo.explore.values.format_value`.
    align : {"", "left", "right"}
        By the kind where empty: text, digests and times left, numbers right.
    """

    key: str
    header: str = ""
    kind: Kind = "text"
    align: Literal["", "left", "right"] = ""

    @property
    def title(self) -> str:
        return self.header or self.key.replace("_", " ")

    @property
    def right(self) -> bool:
        """Whether the column is aligned to the right."""
        return self.align == "right" if self.align else self.kind not in _LEFT


@dataclass(frozen=True, repr=False)
class Table:
    """Rows under named columns.

    Parameters
    ----------
    title : str
    columns : sequence of Column
        What is shown, in order.
    rows : sequence of dict
        JSON values by column key. A row may lack a key (shown empty, ``null`` in JSON) and may
        have more than the columns (in JSON only). Lists are shown with commas.
    note : str
        A line below the table, such as a total.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    note: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self.rows)

    @overload
    def __getitem__(self, key: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, key: str) -> list[Any]: ...
    @overload
    def __getitem__(self, key: slice) -> Table: ...
    def __getitem__(self, key: int | str | slice) -> Mapping[str, Any] | list[Any] | Table:
        """A row by number, a column's values by key, or a table of a slice of the rows."""
        if isinstance(key, str):
            if not any(column.key == key for column in self.columns) and not any(
                key in row for row in self.rows
            ):
                raise KeyError(key)
            return [row.get(key) for row in self.rows]
        if isinstance(key, slice):
            return Table(self.title, self.columns, self.rows[key], self.note)
        return self.rows[key]

    def cells(self, row: Mapping[str, Any]) -> list[str]:
        """A row as shown: one line of text a column."""
        return [format_value(row.get(column.key), column.kind) for column in self.columns]

    def to_json(self) -> list[dict[str, Any]]:
        """Every row as a dict with every column's key, values unformatted."""
        keys = [column.key for column in self.columns]
        return [{**dict.fromkeys(keys), **row} for row in self.rows]

    def __repr__(self) -> str:
        return self.to_text(_TEXT_ROWS)

    def to_text(self, limit: int | None = None) -> str:
        """The table as plain text, all of its rows or the first ``limit``."""
        shown = [self.cells(row) for row in self.rows[:limit]]
        grid = [[column.title for column in self.columns], *shown]
        widths = [max(len(line[i]) for line in grid) for i in range(len(self.columns))]
        lines = [
            "  ".join(
                cell.rjust(width) if column.right else cell.ljust(width)
                for cell, width, column in zip(line, widths, self.columns, strict=True)
            ).rstrip()
            for line in grid
        ]
        lines.insert(1, "  ".join("─" * width for width in widths))
        if not self.rows:
            lines.append("(none)")
        if len(self.rows) > len(shown):
            lines.append(f"… {len(self.rows) - len(shown):,} more")
        return "\n".join([*([self.title] if self.title else []), *lines, *self._notes()])

    def _repr_html_(self) -> str:
        return html.page(self.to_html())

    def to_html(self) -> str:
        """The table's markup without the style sheet, for use inside a view."""
        head = "".join(
            f"<th{_right(column)}>{html.text(column.title)}</th>" for column in self.columns
        )
        lines = (
            "".join(_cell(column, row.get(column.key)) for column in self.columns)
            for row in self.rows[:_HTML_ROWS]
        )
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        title = f"<b>{html.text(self.title)}</b>" if self.title else ""
        count = html.span(f"{len(self.rows):,} row{'s' if len(self.rows) != 1 else ''}", "bz-dim")
        notes = list(self._notes())
        if len(self.rows) > _HTML_ROWS:
            notes.insert(0, f"… {len(self.rows) - _HTML_ROWS:,} more")
        footer = "".join(f'<div class="bz-dim">{html.text(note)}</div>' for note in notes)
        heading = f'<div class="bz-head">{title}{count}</div>' if title else ""
        return (
            f'{heading}<div class="bz-scroll"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>{footer}"
        )

    def _notes(self) -> Sequence[str]:
        return [self.note] if self.note else []


def _right(column: Column) -> str:
    return ' class="bz-right"' if column.right else ""


def _cell(column: Column, value: Any) -> str:
    shown = html.text(format_value(value, column.kind))
    if column.kind == "digest":
        full = html.text(value) if isinstance(value, str) and len(value) > SHORT_DIGEST else ""
        return f'<td><code title="{full}">{shown}</code></td>'
    if isinstance(value, (list, tuple)) and column.kind != "shape":
        return f'<td class="bz-wrap">{shown}</td>'
    return f"<td{_right(column)}>{shown}</td>"
