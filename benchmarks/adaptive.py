"""Adaptive assembly under a memory budget that cannot hold the exact chains.

The full fine-tunes of ``../shared/family`` and their base, in a zoo that keeps near-copies as
differences (so bringing a model in takes decoding, as it would). Each fine-tune has certified
chains: base and compact differences, planned on its calibration text and certified on its
evaluation text and on plain text. The same requests, at the same times, are played to an engine
with ``assembly="exact"``, where models take turns in memory, and to one with ``at_most:B``; in
turns, three times each. The budget is what the certified chains need together and a half more.

Told for each: requests answered by the time that the last was due, the time to the first token
and to the whole answer (p50, p95), how often weights were brought in, and the certified loss: the
mean over all tokens of the KL that is certified for the chain that gave them.

    python benchmarks/adaptive.py [--zoo FOLDER] [--rate 20] [--seconds 20] [--rounds 3]
                                  [--out FILE]

Which tenant is asked (Zipf's law), when (a Poisson process) and the prompts (pieces of the
tenants' evaluation texts) are made up. Preparing takes minutes for each fine-tune; ``--zoo`` keeps
what was prepared, and takes a zoo with other certified chains as it is.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from blockzoo_runtime import LLM, Sampling
from blockzoo_runtime.replay import Outcome, quantile, replay
from blockzoo_runtime.workload import Arrival, Workload
from family import FULL, SHARED

from blockzoo.execution.texts import read_text
from blockzoo.explore.table import Column, Table
from blockzoo.explore.values import format_bytes
from blockzoo.zoo import Zoo

#: the most asked for first
TENANTS = (
    "math-full",
    "sql-full",
    "sql-then-trec-full",
    "novel-lora-merged",
    "shakespeare-top3",
    "chat-added-tokens",
    "base",
)
LEVELS = ("exact", "at_most:B")
_PROMPT, _NEW = 48, 24  # tokens


def prepare(zoo: Zoo, shared: Path, tenants: Sequence[str]) -> None:
    """Take the tenants in, give each fine-tune certified chains, and keep near-copies as such."""
    have = zoo.names()
    zoo.ingest_all([shared / "family" / name for name in tenants if name not in have])
    texts = shared / "texts"
    for name in tenants:
        if name == "base" or zoo.chains(name):
            continue
        domain = FULL[name]
        began = time.perf_counter()
        domains = dict.fromkeys((domain, "wiki"))
        plan = zoo.compact(
            name,
            [texts / f"{each}.calibration.txt" for each in domains],
            [texts / f"{each}.evaluation.txt" for each in domains],
            own=texts / f"{domain}.evaluation.txt",
            base="base",
        )
        if plan.chosen is not None:
            plan.execute(beside=True)
        seconds = time.perf_counter() - began
        print(f"{name}: {len(zoo.chains(name))} chains, {seconds:.0f} s", flush=True)
    zoo.dedupe().execute()


def needed(zoo: Zoo, tenants: Sequence[str]) -> dict[str, int]:
    """Bytes of weights of the tenants together, exact and by their leanest chains."""
    found = {}
    for level in LEVELS:
        llm = LLM(zoo, device="cpu", dtype="bfloat16")
        sizes: dict[Any, int] = {}
        for name in tenants:
            options = llm._tenants.menu(name, level).options
            base = llm._tenants.menu("base", level).exact.tenant.needs.nbytes
            lean = min(
                (option.tenant.needs.nbytes for option in options),
                key=lambda nbytes: sum(size for key, size in nbytes.items() if key not in base),
            )
            sizes |= lean
        found[level] = sum(sizes.values())
        llm.close()
    return found


def load(
    zoo: Zoo, texts: Path, names: Sequence[str], rate: float, seconds: float, seed: int
) -> Workload:
    """Requests of all tenants."""
    draw = random.Random(seed)
    weights = [1 / (place + 1) for place in range(len(names))]
    words = {}
    for name in names:
        text = read_text(texts / f"{FULL[name]}.evaluation.txt")
        words[name] = [i for ids in text.tokens(zoo.tokenizer(zoo.model(name)), 8000) for i in ids]
    arrivals, at = [], 0.0
    while (at := at + draw.expovariate(rate)) < seconds:
        [name] = draw.choices(names, weights)
        first = draw.randrange(len(words[name]) - _PROMPT)
        prompt = tuple(words[name][first : first + _PROMPT])
        arrivals.append(Arrival(at, name, prompt, _NEW))
    return Workload("made-up", tuple(arrivals), ("tenants", "times", "prompts"))


def play(zoo: Zoo, workload: Workload, level: str, memory: int, seconds: float) -> dict[str, Any]:
    """One engine serves the workload from a cold start."""
    with LLM(zoo, device="cpu", dtype="bfloat16", memory=memory, assembly=level) as llm:
        outcomes = replay(llm, workload, Sampling(ignore_eos=True)).outcomes
        stats, loads = llm.stats(), llm._resident.loads.total()
    if failed := [outcome.error for outcome in outcomes if outcome.error]:
        raise RuntimeError(f"{len(failed)} requests failed: {failed[0]}")
    return {
        "level": level,
        "requests": len(outcomes),
        "in_time": sum(1 for one in outcomes if one.end is not None and one.end <= seconds),
        "first_p50": _quantile([one.to_first for one in outcomes], 0.5),
        "first_p95": _quantile([one.to_first for one in outcomes], 0.95),
        "whole_p50": _quantile([_whole(one) for one in outcomes], 0.5),
        "whole_p95": _quantile([_whole(one) for one in outcomes], 0.95),
        "seconds": max(one.end or 0.0 for one in outcomes),
        "loads": loads,
        "steps": stats.steps,
        "step_p50": stats.step_seconds.p50,
        "certified_share": stats.certified_tokens / max(stats.generated_tokens, 1),
        "certified_kl": stats.certified_kl,
        "chains": stats.chains,
    }


def _whole(outcome: Outcome) -> float | None:
    return None if outcome.end is None else outcome.end - outcome.at


def _quantile(values: Sequence[float | None], share: float) -> float | None:
    return quantile([value for value in values if value is not None], share)


_COLUMNS = (
    Column("level", "assembly"),
    Column("requests", kind="int"),
    Column("in_time", "answered in time", kind="int"),
    Column("first_p50", "first token p50, s", kind="float"),
    Column("first_p95", "p95", kind="float"),
    Column("whole_p50", "whole answer p50, s", kind="float"),
    Column("whole_p95", "p95", kind="float"),
    Column("loads", "models brought in", kind="int"),
    Column("certified_share", "by certified chains", kind="percent"),
    Column("certified_kl", "certified KL", kind="ratio"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--zoo", type=Path, help="keep what is prepared here")
    parser.add_argument("--tenants", nargs="+", choices=TENANTS, default=TENANTS)
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only-prepare", action="store_true")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        zoo = Zoo(given.zoo or Path(folder) / "zoo")
        prepare(zoo, given.shared, given.tenants)
        if given.only_prepare:
            return
        sizes = needed(zoo, given.tenants)
        memory = int(1.5 * sizes["at_most:B"])
        if memory >= sizes["exact"]:
            raise SystemExit("the exact chains fit into that memory: there is nothing to compare")
        print(
            f"weights of all tenants, bfloat16: exact {format_bytes(sizes['exact'])}, leanest "
            f"certified {format_bytes(sizes['at_most:B'])}; memory {format_bytes(memory)}"
        )
        rows = []
        for number in range(given.rounds):
            workload = load(
                zoo, given.shared / "texts", given.tenants, given.rate, given.seconds, number
            )
            for level in LEVELS if number % 2 == 0 else LEVELS[::-1]:
                rows.append({"round": number} | play(zoo, workload, level, memory, given.seconds))
                print({key: rows[-1][key] for key in ("level", "in_time", "first_p95", "loads")})
    middle = []
    for level in LEVELS:
        mine = [row for row in rows if row["level"] == level]
        keys = [column.key for column in _COLUMNS if column.key != "level"]
        middle.append({"level": level} | {key: median(row[key] for row in mine) for key in keys})
    exact, certified = middle
    print(Table("medians", _COLUMNS, middle).to_text())
    print(
        f"at_most:B against exact: {certified['in_time'] / max(exact['in_time'], 1):.2f} times the "
        f"requests in time, first token p95 {exact['first_p95'] / certified['first_p95']:.2f} "
        f"times, whole answer p95 {exact['whole_p95'] / certified['whole_p95']:.2f} times as fast"
    )
    if given.out:
        settings = {"rate": given.rate, "seconds": given.seconds, "memory": memory, "bytes": sizes}
        lines = ",\n".join(json.dumps(row) for row in rows)
        given.out.write_text(f'{{"settings": {json.dumps(settings)},\n"rounds": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
