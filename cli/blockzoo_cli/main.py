"""The entry point: finds a verb's file when the verb is asked for, and ends every run clearly.

Nothing beyond click is imported before a verb runs, so ``blockzoo --help`` answers at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from blockzoo_cli.failures import report

#: verbs by section, in the order of the help; each is a file that has its `command`
VERBS: dict[str, tuple[str, ...]] = {
    "Build a zoo": ("init", "ingest", "dedupe", "export"),
    "Look inside": ("ls", "show", "diff", "similar", "stats", "history"),
    "Look after it": ("tag", "rm", "gc", "verify", "repair"),
    "Share blocks": ("certify", "stitch", "assemble"),
    "Run models": ("run", "profile", "bench", "demo"),
}


class LazyGroup(click.Group):
    """A group that imports a verb's module when the verb is looked up."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [verb for verbs in VERBS.values() for verb in verbs]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"blockzoo_cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, verbs in VERBS.items():
            rows = []
            for verb in verbs:
                command = self.get_command(ctx, verb)
                rows.append((verb, command.get_short_help_str(100) if command else ""))
            with formatter.section(section):
                formatter.write_dl(rows)


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import PackageNotFoundError, version

        try:
            click.echo(f"blockzoo {version('blockzoo')}")
        except PackageNotFoundError:  # run from a source tree that was never installed
            click.echo("blockzoo (not installed)")
        ctx.exit()


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--zoo",
    type=click.Path(path_type=Path),
    envvar="BLOCKZOO_ZOO",
    show_envvar=True,
    default=Path("zoo"),
    show_default="./zoo",
    help="The zoo's folder; may also stand after the verb.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version,
    help="Print the version and leave.",
)  # fmt: skip
@click.pass_context
def cli(ctx: click.Context, zoo: Path) -> None:
    """Many fine-tunes from one set of weights.

    blockzoo keeps each distinct tensor of many checkpoints once, gives every original file back
    byte for byte, and serves the models as chains of shared blocks.
    """
    ctx.obj = zoo


def main(argv: Sequence[str] | None = None) -> None:
    """Run one verb and leave with its exit code (`failures.report`)."""
    try:
        code = cli.main(argv, prog_name="blockzoo", standalone_mode=False)
        sys.stdout.flush()
    except BaseException as error:  # each kind ends with its own words and exit code
        code = report(error)
    sys.exit(code if isinstance(code, int) else 0)
