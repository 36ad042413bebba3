"""``blockzoo demo``: the main job on models made here, without a download.

Trains a base and five tenants of it (`training`), takes them into a zoo, shows what they share,
and lets each answer one prompt from one set of weights. A second run finds the checkpoints of
the first and takes seconds.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blockzoo_cli.output import Output, plain_terminal
from blockzoo_cli.progress import bar

if TYPE_CHECKING:
    from blockzoo.explore.table import Table
    from blockzoo.zoo import Zoo
    from blockzoo_cli.training import Progress, Trained

PROMPT = "Return the size of a file in bytes."
_NEW_TOKENS = 40


@click.command("demo")
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo"),
    show_default="./demo",
    help="Where checkpoints and zoo go; both stay there.",
)
@click.option("-p", "--prompt", default=PROMPT, show_default=True, help="What all are asked.")
@click.option("--quick", is_flag=True, help="A few steps only: everything runs, answers babble.")
@click.option("as_json", "--json", is_flag=True, help="Print JSON; keys are stable.")
def command(folder: Path, prompt: str, quick: bool, as_json: bool) -> None:
    """Train six small models, keep them in one zoo, and let them answer.

    No network: the text is the documentation of Python's standard library. Takes two to three
    minutes on two cores the first time, seconds after that.
    """
    output = Output("json" if as_json else "human")
    output.note("importing torch and transformers")
    from blockzoo.zoo import Zoo
    from blockzoo_cli.training import FULL, QUICK, train

    with _training_bars(output) as progress:
        trained = train(folder / "checkpoints", QUICK if quick else FULL, progress)
    zoo = Zoo(folder / "zoo")
    with bar(output) as told:
        for model in trained:
            base = "base" if (model.path / "adapter_config.json").exists() else None
            zoo.ingest(model.path, model.name, base=base, progress=told)
    answers = _answers(zoo, [model.name for model in trained], prompt)
    if as_json:
        output.record(_record(zoo, trained, prompt, answers))
        return
    output.record({}, _checkpoints(trained, folder), "", _kept(zoo, trained), "")
    output.record({}, _asked(trained, prompt, answers), "", _next(zoo.path, folder))


@contextlib.contextmanager
def _training_bars(output: Output) -> Iterator[Progress]:
    """One bar a model on stderr, a line a model on a plain terminal; see `Output.note`."""
    if not output.interactive or plain_terminal():

        def note(name: str, done: float, remark: str) -> None:
            if done in (0.0, 1.0):
                output.note(f"{name}: {'done, ' if done else ''}{remark}".rstrip(": "))

        yield note
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[remark]}"),
        console=Console(stderr=True),
    ) as shown:
        tasks: dict[str, TaskID] = {}

        def tell(name: str, done: float, remark: str) -> None:
            if name not in tasks:
                tasks[name] = shown.add_task(name, total=1.0, remark=remark)
            shown.update(tasks[name], completed=done, remark=remark)

        yield tell


def _answers(zoo: Zoo, names: Sequence[str], prompt: str) -> dict[str, Any]:
    """Each model's answer, and how many bytes of weights were resident for all of them."""
    from blockzoo_runtime import LLM

    llm = LLM(zoo, dtype="float32")
    requests = [(name, prompt) for name in names]
    completions = llm.generate(requests, max_new_tokens=_NEW_TOKENS)
    memory = llm.memory()
    return {
        "text": {name: done.text for name, done in zip(names, completions, strict=True)},
        "resident_bytes": llm.nbytes,
        "separate_bytes": sum(memory["bytes"]),
    }


def _checkpoints(trained: Sequence[Trained], folder: Path) -> Table:
    from blockzoo.explore.table import Column, Table

    columns = (
        Column("name", "model"),
        Column("how", "tuned"),
        Column("job", "its job"),
        Column("seconds", "seconds", "float"),
    )
    rows = [{**vars(model), "path": str(model.path)} for model in trained]
    again = all(model.seconds == 0 for model in trained)
    note = "found as an earlier run had left them" if again else "trained just now"
    return Table(f"Checkpoints in {folder / 'checkpoints'}", columns, rows, note)


def _kept(zoo: Zoo, trained: Sequence[Trained]) -> Table:
    """What each checkpoint added to the zoo, and what it found there."""
    from blockzoo.explore.table import Column, Table
    from blockzoo.explore.values import format_bytes, format_percent

    columns = (
        Column("name", "model"),
        Column("how", "tuned"),
        Column("bytes", "checkpoint", "bytes"),
        Column("new_bytes", "new tensors", "bytes"),
        Column("shared_bytes", "shared tensors", "bytes"),
        Column("shared", kind="percent"),
    )
    added = {row["name"]: row["new_bytes"] for row in zoo.models()}
    rows = []
    for model in trained:
        view = zoo[model.name]
        rows.append(
            {
                "name": model.name,
                "how": model.how,
                "bytes": view.model.nbytes,
                "new_bytes": added[model.name],
                "shared_bytes": view.shared_bytes,
                "shared": view.shared_bytes / view.tensor_bytes,
            }
        )
    stats = zoo.stats()
    note = (
        f"{format_bytes(stats.logical_bytes)} of checkpoints are kept in "
        f"{format_bytes(stats.stored_bytes)}: {format_percent(stats.saving)} saved"
    )
    return Table(f"The zoo in {zoo.path}", columns, rows, note)


def _asked(trained: Sequence[Trained], prompt: str, answers: dict[str, Any]) -> Table:
    from blockzoo.explore.table import Column, Table
    from blockzoo.explore.values import format_bytes

    columns = (Column("name", "model"), Column("job", "its job"), Column("answer"))
    rows = [
        {"name": model.name, "job": model.job, "answer": answers["text"][model.name]}
        for model in trained
    ]
    note = (
        f"answered from {format_bytes(answers['resident_bytes'])} of weights in memory; "
        f"{len(trained)} separate models would take {format_bytes(answers['separate_bytes'])}"
    )
    return Table(f"“{prompt}”", columns, rows, note)


def _next(zoo: Path, folder: Path) -> str:
    """Commands to try, as they can be pasted here."""
    program = _program()
    lines = (
        ("ls", "every model and what it added"),
        ("show tests", "a chain, and who shares each block"),
        ("diff base imports", "what the merged LoRA changed"),
        ('run signatures -p "Open a connection to the server."', "ask one of them"),
        ("export errors out", f"the files again, as in {folder / 'checkpoints' / 'errors'}"),
        ("verify", "check every byte"),
    )
    width = max(len(line) for line, _ in lines)
    said = [f"  {program} {line:<{width}}  # {why}" for line, why in lines]
    return "\n".join(["Try next:", f"  export BLOCKZOO_ZOO={shlex.quote(str(zoo))}", *said])


def _program() -> str:
    """How to call blockzoo here, where its virtual environment may not be active."""
    if shutil.which("blockzoo"):
        return "blockzoo"
    script, here = Path(sys.executable).with_name("blockzoo"), Path.cwd()
    if not script.exists():
        return f"{Path(sys.executable).name} -m blockzoo_cli"
    return str(script.relative_to(here) if script.is_relative_to(here) else script)


def _record(
    zoo: Zoo, trained: Sequence[Trained], prompt: str, answers: dict[str, Any]
) -> dict[str, Any]:
    return {
        "zoo": str(zoo.path),
        "checkpoints": [{**vars(model), "path": str(model.path)} for model in trained],
        "kept": _kept(zoo, trained).to_json(),
        "stats": zoo.stats().to_json(),
        "prompt": prompt,
        "answers": answers["text"],
        "resident_bytes": answers["resident_bytes"],
        "separate_bytes": answers["separate_bytes"],
    }
