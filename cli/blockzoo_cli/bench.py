"""``blockzoo bench``: a workload played against the zoo's models, and how it was served."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blockzoo.errors import UsageError
from blockzoo_cli.assembling import assembly_options
from blockzoo_cli.verb import App, verb

if TYPE_CHECKING:
    from blockzoo_runtime.workload import Workload

    from blockzoo.explore.table import Table
    from blockzoo.zoo import Zoo

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@verb("bench")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--workload", type=_FILE, help="Requests as JSONL, one a line.")
@click.option("--trace", type=_FILE, help="A public trace: Azure's CSV or Mooncake's JSONL.")
@click.option("--requests", type=click.IntRange(1), help="Take only so many, from the start.")
@click.option("--scale", default=1.0, show_default=True, help="A trace's lengths times this.")
@click.option("--longest", type=click.IntRange(2), help="Cut prompt and answer to so many tokens.")
@click.option("--speed", default=1.0, show_default=True, help="Send so many times as fast.")
@click.option("--at-once", type=click.IntRange(1), help="So many requests under way at most.")
@click.option("--zipf", default=1.0, show_default=True, help="How unevenly tenants are asked.")
@click.option("--seed", default=0, show_default=True, help="Of what is made up.")
@click.option("--ignore-eos", is_flag=True, help="Go on past end tokens; always so with --trace.")
@click.option("--memory", help="A budget such as 8GiB.")
@click.option("--device", default="auto", show_default=True, help="Such as cpu or cuda:0.")
@click.option("--dtype", default="auto", show_default="each checkpoint's", help="Such as float32.")
@assembly_options
def command(
    app: App,
    names: tuple[str, ...],
    workload: Path | None,
    trace: Path | None,
    requests: int | None,
    scale: float,
    longest: int | None,
    speed: float,
    at_once: int | None,
    zipf: float,
    seed: int,
    ignore_eos: bool,
    memory: str | None,
    device: str,
    dtype: str,
    assembly: str,
    any_text: bool,
) -> None:
    """Play a workload against the models NAME... and show how it was served.

    A line of a --workload has model, prompt (text or messages), prompt_tokens (ids) or
    prompt_length, max_new_tokens, and at (seconds). Lines without a model, and all of a --trace,
    go to NAMEs by Zipf's law, the first most often: which tenant asks, and the words, are made
    up.
    """
    zoo = app.zoo()
    if (workload is None) == (trace is None):
        raise UsageError("give one of --workload and --trace")
    for name in names:
        zoo.resolve(name)  # a wrong name is told before torch is loaded
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

    from blockzoo_runtime import LLM, Sampling
    from blockzoo_runtime.replay import Outcome, replay
    from blockzoo_runtime.traces import read_trace
    from blockzoo_runtime.workload import Assumptions, read_workload

    vocabulary = min((_vocabulary(zoo, name) for name in names or zoo.names()), default=1)
    assumed = Assumptions(names, vocabulary, seed, zipf, scale, longest, requests)
    given: Workload
    if trace is not None:
        given = read_trace(trace, assumed)
    else:
        assert workload is not None
        given = read_workload(workload, assumed)
    given = given.faster(speed)
    for name in given.models:
        zoo.resolve(name)
    sampling = Sampling(ignore_eos=ignore_eos or trace is not None)

    def tell(outcome: Outcome) -> None:
        if outcome.error is not None:
            app.output.complain(f"{outcome.model}: {outcome.error}")

    with LLM(
        zoo, device=device, dtype=dtype, memory=memory, assembly=assembly, any_text=any_text
    ) as llm:
        replayed = replay(llm, given, sampling, at_once=at_once, tell=tell)
        stats, held = llm.stats(), llm.memory()
    data: dict[str, Any] = replayed.to_json()
    ids = [
        f"{key} {data[key]}"
        for key in ("requests", "failed", "seconds", "tokens_per_second", "first_p95", "token_p95")
    ]
    engine = {"engine": stats.to_json(), "memory": held.to_json()}
    shown: list[Table | str] = [replayed.table(), "", stats.table(), "", held]
    app.output.record({**data, **engine}, *shown, ids=ids)


def _vocabulary(zoo: Zoo, name: str) -> int:
    """How many token ids a model has, by its configuration; 1 where it does not say."""
    model = zoo.model(name)
    config = zoo.config(zoo.model(model.base) if model.base else model)
    size = config.get("vocab_size")
    return size if isinstance(size, int) and size > 0 else 1
