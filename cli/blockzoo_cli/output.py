"""Where a verb's results go: one class for tables, JSON and bare ids.

Data goes to stdout; notes, hints, questions and progress go to stderr, and none of them but
errors and warnings when stderr is not a terminal. rich is imported only to draw on a terminal.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from blockzoo.explore.table import Table

#: the version of the JSON objects that verbs print
JSON_FORMAT = 1

Mode = Literal["human", "json", "quiet"]


class Output:
    """What a verb prints through.

    Parameters
    ----------
    mode : {"human", "json", "quiet"}
        For people, for programs (``--json``), or one id a line (``-q``).
    """

    def __init__(self, mode: Mode = "human") -> None:
        self.mode = mode

    @property
    def interactive(self) -> bool:
        """Whether somebody watches stderr: then notes, hints and progress make sense."""
        return sys.stderr.isatty() and self.mode == "human"

    @property
    def asks(self) -> bool:
        """Whether a question can be put: both ends are a terminal."""
        return self.interactive and sys.stdin.isatty()

    def table(self, table: Table, ids: str = "name") -> None:
        """A plain list of rows: a table, a JSON list, or the values of column `ids`."""
        if self.mode == "json":
            self._json(table.to_json())
        elif self.mode == "quiet":
            self.ids(str(row[ids]) for row in table)
        else:
            self._draw(table)

    def record(self, data: Mapping[str, Any], *shown: Table | str, ids: Iterable[str] = ()) -> None:
        """One result: `shown` for people, `data` as a versioned JSON object, or `ids`."""
        if self.mode == "json":
            self._json({"format": JSON_FORMAT, **data})
        elif self.mode == "quiet":
            self.ids(ids)
        else:
            for part in shown:
                if isinstance(part, str):
                    click.echo(part)
                else:
                    self._draw(part)

    def ids(self, ids: Iterable[str]) -> None:
        """One id a line."""
        for name in ids:
            click.echo(name)

    def text(self, text: str) -> None:
        """A piece of text for people, as it is, at once (streaming)."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """A remark on stderr, if anybody is there to read it."""
        if self.interactive:
            click.echo(text, err=True)

    def hint(self, text: str) -> None:
        """What could be done next, if anybody is there to read it."""
        if self.interactive:
            click.echo(_label("hint:", "cyan") + f" {text}", err=True)

    def complain(self, text: str, hint: str | None = None) -> None:
        """A failure that does not end the verb; always printed."""
        complain(text, hint)

    def warn(self, text: str, hint: str) -> None:
        """What a result must not be used without knowing; always printed."""
        click.echo(_label("warning:", "yellow") + f" {text}", err=True)
        click.echo(_label("hint:", "cyan") + f" {hint}", err=True)

    def confirm(self, question: str) -> bool:
        """Ask on stderr; no is the default."""
        return click.confirm(question, default=False, err=True)

    def _json(self, value: Any) -> None:
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))

    def _draw(self, table: Table) -> None:
        if not sys.stdout.isatty():
            click.echo(table.to_text())
            return
        from blockzoo_cli.drawing import draw

        draw(table)


def complain(text: str, hint: str | None = None) -> None:
    """``error: …`` and ``hint: …`` on stderr, whoever reads it."""
    click.echo(_label("error:", "red") + f" {text}", err=True)
    if hint:
        click.echo(_label("hint:", "cyan") + f" {hint}", err=True)


def _label(text: str, colour: str) -> str:
    return text if plain_terminal() else click.style(text, fg=colour, bold=colour == "red")


def plain_terminal() -> bool:
    """Whether colours and moving bars are unwelcome (``NO_COLOR``, a dumb terminal)."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
