"""Tokens per second for requests of eight tenants at once, beside what a user could set up today.

Makes a family scaled up to a base of 252M parameters in bf16, its weights random (see
`tenants`), and serves, in one run and in alternating order, the same load by

- ours: one engine for all tenants;
- (a) transformers, one model after another, all of them loaded already, each tenant's requests
  as one batch (``generate``, KV cache, SDPA; adapters by PEFT);
- (b) transformers with one model in memory at a time: loaded, run, dropped;
- (c) PEFT's mixed batch (``adapter_names``), where all tenants are LoRAs;
- (d) a merged copy of the base for each tenant, batched each;
- (e) ours with all requests for one tenant;

for three mixtures: a different tuning method each; eight distinct LoRAs; full fine-tunes among
adapters. And one tenant alone, ours against ``generate``. Before, it is checked in float32 that
all of them give the same greedy tokens. `figures` has what else is measured here: memory, bytes
read, attaching, prefix sharing, fairness.

    python benchmarks/serving.py [--quick] [--only WHAT...] [--without b d] [--rounds 5]
                                 [--folder DIR] [--out FILE]
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import argparse
import gc
import json
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import figures
import torch
from blockzoo_runtime import LLM
from contenders import (
    Serve,
    distinct_bytes,
    load,
    one_after_another,
    ours,
    peft_mixed,
    swapping,
)
from contest import Bar, Entry, Load, contest, machine, show, tell
from tenants import FULL, LATE, QUICK, SETS, TENANTS, Family, make_family

DTYPE = torch.bfloat16
ROWS = (8, 32)
#: wanted of ours over (a), by the number of requests a tenant
OVER_A = {1: 4.0, 4: 2.0}
OVER_C, OF_E = 2.2, 0.85
#: loading takes most of (b)'s time and varies little
SWAP_ROUNDS = 2


def agreement(family: Family, length: int, new: int) -> list[Bar]:
    """Share of requests whose greedy tokens in float32 are those of transformers or PEFT."""
    dtype = torch.float32
    bars = []
    with LLM(family.zoo, dtype=dtype) as llm:
        for title, names in SETS.items():
            prompts = family.prompts(len(names), length, f"agreement {title}")
            requests = list(zip(names, prompts, strict=True))
            right = swapping(family, dtype)(requests, new)
            others: dict[str, Serve] = {"ours": ours(llm)}
            if title == "adapters":
                others["PEFT mixed"] = peft_mixed(family, names, dtype)
            some = [(n, ids) for n, ids in requests if TENANTS[n].adapter and n != "prefix"][:2]
            merged = {name: load(family, name, dtype, merged=True) for name, _ in some}
            made = dict(
                zip((n for n, _ in some), one_after_another(merged)(some, new), strict=True)
            )
            same = [made[n] == tokens for (n, _), tokens in zip(requests, right, strict=True)
                    if n in made]  # fmt: skip
            bars.append(Bar(f"{title}: merged copies (two of them)", sum(same) / len(same)))
            for name, serve in others.items():
                same = [a == b for a, b in zip(serve(requests, new), right, strict=True)]
                bars.append(Bar(f"{title}: {name}", sum(same) / len(same), at_least=1.0))
            del others, merged
            gc.collect()
    return bars


def mixture(title: str, family: Family, llm: LLM, given: argparse.Namespace) -> dict[str, Any]:
    """One set of tenants by every contender, for several numbers of requests."""
    names = SETS[title]
    entries = _entries(title, family, llm, given.without)
    one, all_ = (distinct_bytes(family, some, DTYPE) for some in (names[:1], names))
    results: dict[str, Any] = {}
    for count in given.rows:
        at = Load(count, given.length, given.new)
        seconds = contest(title, entries, family, at, given.rounds)
        mine = median(seconds["ours"])
        over = {name.split()[0]: median(took) / mine for name, took in seconds.items()}
        wanted = {"(c)": OVER_C}
        if title == "methods" and count // len(names) in OVER_A:
            wanted["(a)"] = OVER_A[count // len(names)]
        if title == "adapters":
            wanted["(e)"] = OF_E
        bars = [Bar(f"ours / {name}", ratio, at_least=wanted.get(name))
                for name, ratio in over.items() if name != "ours"]  # fmt: skip
        if title != "adapters":
            scaled = f"ours / (e) scaled by bytes ({all_ / 1e6:.0f} to {one / 1e6:.0f} MB)"
            bars.append(Bar(scaled, over["(e)"] * all_ / one, at_least=OF_E))
        show(title, seconds, at, bars)
        results[str(count)] = _kept(seconds, at, bars)
    return results


def _entries(title: str, family: Family, llm: LLM, without: Sequence[str]) -> list[Entry]:
    """The contenders of a mixture; those that are left out need no memory either."""
    names = SETS[title]
    entries = [Entry("ours", ours(llm), names), Entry("(e) ours, one tenant", ours(llm), names[:1])]
    loaded = {}
    if "a" not in without:
        loaded = {name: load(family, name, DTYPE) for name in names}
        entries.append(Entry("(a) one after another", one_after_another(loaded), names))
    if "b" not in without:
        entries.append(Entry("(b) swapping", swapping(family, DTYPE), names, SWAP_ROUNDS))
    if "c" not in without and title == "adapters":
        mixed = peft_mixed(family, names, DTYPE)
        entries.append(Entry("(c) PEFT mixed batch", mixed, names))
    if "d" not in without:
        # what has no adapter to merge is the same model in (a) and (d)
        merged = {
            name: load(family, name, DTYPE, merged=True)
            if TENANTS[name].adapter or name not in loaded
            else loaded[name]
            for name in names
        }
        entries.append(Entry("(d) merged copies", one_after_another(merged), names))
    return entries


def alone(family: Family, llm: LLM, given: argparse.Namespace) -> dict[str, Any]:
    """One tenant, ours against transformers."""
    entries = [
        Entry("ours", ours(llm), ["base"]),
        Entry("transformers", one_after_another({"base": load(family, "base", DTYPE)}), ["base"]),
    ]
    results = {}
    for count in (1, *given.rows):
        at = Load(count, given.length, given.new)
        seconds = contest("alone", entries, family, at, given.rounds)
        mine = median(seconds["ours"])
        bars = [Bar(f"ours / {name}, batch {count}", median(took) / mine, at_least=1.0)
                for name, took in seconds.items() if name != "ours"]  # fmt: skip
        show("one tenant alone", seconds, at, bars)
        results[str(count)] = _kept(seconds, at, bars)
    return results


def _kept(seconds: dict[str, list[float]], at: Load, bars: list[Bar]) -> dict[str, Any]:
    rates = {name: at.rows * at.new / median(took) for name, took in seconds.items()}
    return {
        **asdict(at),
        "seconds": seconds,
        "tokens_per_second": rates,
        "ratios": {bar.what: bar.to_json() for bar in bars},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    what = ("agreement", *SETS, "alone", *figures.FIGURES)
    parser.add_argument("--quick", action="store_true", help="a tiny family, to see that it runs")
    parser.add_argument(
        "--without",
        nargs="*",
        default=(),
        choices=("a", "b", "c", "d"),
        help="contenders to leave out, such as those that need a copy a tenant",
    )
    parser.add_argument("--only", nargs="*", choices=what, metavar="WHAT", help=", ".join(what))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS, help="requests at once")
    parser.add_argument("--length", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch's, for all")
    parser.add_argument("--folder", type=Path, help="keep the family here for the next run")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", module="transformers|peft")
    torch.set_num_threads(given.threads)
    chosen = given.only or what
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        family = make_family(folder, QUICK if given.quick else FULL, _needed(chosen))
        results: dict[str, Any] = {"machine": machine(), "shape": asdict(family.shape)}
        print(f"{results['machine']}\n{family.shape}, random weights, {DTYPE}")
        print(f"medians of {given.rounds} rounds")
        for title in chosen:
            gc.collect()
            if title == "agreement":
                bars = agreement(family, 16, 8)
                print("\ngreedy tokens in float32 as transformers' or PEFT's, share of requests")
                tell(bars)
                results[title] = {bar.what: bar.to_json() for bar in bars}
            elif title in figures.FIGURES:
                results[title] = figures.FIGURES[title](family, DTYPE, given.rounds)
            else:
                with LLM(family.zoo, dtype=DTYPE) as llm:
                    results[title] = (
                        alone(family, llm, given)
                        if title == "alone"
                        else mixture(title, family, llm, given)
                    )
            if given.out:  # what is measured is kept, whatever comes after
                given.out.write_text(json.dumps(results, indent=2))


def _needed(chosen: Sequence[str]) -> tuple[str, ...]:
    """The tenants that what is chosen takes; a full-size family takes a while to make."""
    names = {name for title in SETS for name in SETS[title]}
    if "attach" in chosen:
        names.add("full")
    if "prefix" in chosen:
        names.update(LATE)
    return tuple(name for name in TENANTS if name in names)


if __name__ == "__main__":
    main()
