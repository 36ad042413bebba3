"""What every verb has: its options ``--zoo``, ``--json``, ``-q``, and the zoo it works on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blockzoo_cli.output import Mode, Output

if TYPE_CHECKING:
    from blockzoo.zoo import Zoo


@dataclass(frozen=True)
class App:
    """What a verb is given: the zoo's folder and where its results go."""

    path: Path
    output: Output

    def zoo(self, create: bool = False) -> Zoo:
        """Open the zoo.

        Raises
        ------
        NoZooError
            Where there is none and `create` is False.
        """
        from blockzoo.zoo import Zoo

        if create and not self.path.exists():
            self.output.note(f"a new zoo in {self.path}")
        return Zoo(self.path, create=create)


def verb(name: str) -> Callable[[Callable[..., None]], click.Command]:
    """Make a function the command `name`; its first argument is an `App`."""

    def decorate(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def run(zoo: Path | None, as_json: bool, quiet: bool, **arguments: Any) -> None:
            if as_json and quiet:
                raise click.UsageError("--json and -q exclude each other")
            mode: Mode = "json" if as_json else "quiet" if quiet else "human"
            given = click.get_current_context().find_object(Path)
            function(App(zoo or given or Path("zoo"), Output(mode)), **arguments)

        command = click.command(name)(run)
        command.params += [
            click.Option(["--zoo"], type=click.Path(path_type=Path), help="The zoo's folder."),
            click.Option(["as_json", "--json"], is_flag=True, help="Print JSON; keys are stable."),
            click.Option(["-q", "--quiet"], is_flag=True, help="Print one id a line."),
        ]
        return command

    return decorate
