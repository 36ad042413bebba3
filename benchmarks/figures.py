"""What `serving` measures beside tokens per second: memory, bytes, attaching, sharing, fairness.

Each figure is a function of a family, a dtype and a number of rounds; it prints its figures and
gives them as JSON.
"""

from __future__ import annotations

import gc
import os
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from blockzoo_runtime import LLM, Sampling
from blockzoo_runtime.replay import Replayed, quantile, replay
from blockzoo_runtime.workload import Arrival, Workload
from contenders import distinct_bytes, generate, load, ours, own_files, separate_bytes
from contest import Bar, best_of, tell
from tenants import LATE, SETS, TENANTS, Family

Json = dict[str, Any]


def memory(family: Family, dtype: torch.dtype, rounds: int) -> Json:
    """Resident weights of all tenants, and how much of the KV pages in use is empty."""
    names = tuple(dict.fromkeys(name for some in SETS.values() for name in some))
    distinct = distinct_bytes(family, names, dtype)
    separate = separate_bytes(family, names, dtype)
    draw = random.Random(0)
    prompts = [family.prompts(1, draw.randint(40, 200), f"memory {name}")[0] for name in names]
    wastes: list[float] = []
    decoding: list[float] = []
    with LLM(family.zoo, dtype=dtype) as llm:
        llm.generate(list(zip(names, prompts, strict=True)), max_new_tokens=2, ignore_eos=True)
        done = threading.Event()

        def sample() -> None:
            while not done.wait(0.02):
                stats = llm.stats()
                if stats.kv.pages_in_use and stats.last is not None:
                    wastes.append(stats.kv.waste)
                    if stats.last.tokens == stats.last.rows == len(names):  # all prompts are read
                        decoding.append(stats.kv.waste)

        llm.stats(reset=True)
        sampler = threading.Thread(target=sample)
        sampler.start()
        again = [list(reversed(prompt)) for prompt in prompts]
        llm.generate(list(zip(names, again, strict=True)), max_new_tokens=48, ignore_eos=True)
        done.set()
        sampler.join()
        resident = llm.nbytes
        print(f"\nmemory: {len(names)} tenants\n{llm.memory()}")
    bars = [
        Bar("resident weights", resident / 1e6, unit="MB"),
        Bar("distinct bytes of all tenants", distinct / 1e6, unit="MB"),
        Bar("separate models together", separate / 1e6, unit="MB"),
        Bar("resident / distinct", resident / distinct, at_most=1.01),
        Bar("separate / resident", separate / resident),
        Bar("KV waste while generating, mean over time", mean(decoding), at_most=0.05),
        Bar("KV waste, pages taken for prompts being read too", mean(wastes)),
    ]
    return _told(bars)


def bandwidth() -> dict[str, float]:
    """Bytes per second of this machine's memory, by three ways to read much of it."""
    wide = torch.empty(1 << 18, 1024, dtype=torch.bfloat16).normal_()
    x = torch.randn(8, 1024).bfloat16()
    plain = wide.view(torch.int16).view(torch.float32)
    target = torch.empty_like(plain)
    linear = best_of(5, lambda: torch.nn.functional.linear(x, wide))
    summed = best_of(5, lambda: plain.sum(1))
    copied = best_of(5, lambda: target.copy_(plain))
    size = wide.nbytes
    return {"linear, 8 rows": size / linear, "sum": size / summed, "copy": 2 * size / copied}


def bytes_read(family: Family, dtype: torch.dtype, rounds: int) -> Json:
    """Weight bytes of a decode step as counted, and its time beside what reading them takes."""
    with torch.inference_mode():
        rates = bandwidth()
    print("\nbytes read: " + ", ".join(f"{k} {v / 1e9:.1f} GB/s" for k, v in rates.items()))
    best = max(rates.values())
    bars = []
    with LLM(family.zoo, dtype=dtype) as llm:
        for title, names in {"one tenant": SETS["methods"][:1], **SETS}.items():
            rows = [names[i % len(names)] for i in range(8)]
            steps = []
            for number in range(rounds + 1):
                prompts = family.prompts(8, 64, f"bytes {title} {number}")
                llm.stats(reset=True)
                ours(llm)(list(zip(rows, prompts, strict=True)), 32)
                stats = llm.stats()
                if number and stats.step_seconds.p50 is not None:
                    steps.append(stats.step_seconds.p50)
            assert stats.last is not None
            read, distinct = stats.last.weight_bytes, distinct_bytes(family, names, dtype)
            step = median(steps)
            bars += [
                Bar(f"{title}: read in a step", read / 1e6, unit="MB"),
                Bar(f"{title}: |read / distinct - 1|", abs(read / distinct - 1), at_most=0.001),
                Bar(f"{title}: separate models would read", stats.last.separate_bytes / 1e6,
                    unit="MB"),
                Bar(f"{title}: step", 1e3 * step, unit="ms"),
                Bar(f"{title}: step / (bytes / bandwidth)", step * best / read),
                Bar(f"{title}: step / (bytes / rate of a linear layer of 8 rows)",
                    step * rates["linear, 8 rows"] / read),
            ]  # fmt: skip
    return {"bandwidth": rates, **_told(bars)}


def attach(family: Family, dtype: torch.dtype, rounds: int) -> Json:
    """Time to the first token of a tenant whose base is resident, files cached and not."""
    bars = []
    print("\nattach: time to the first token, 64 prompt tokens, base resident")
    for name in ("lora-1", "top3", "full"):
        size = sum(path.stat().st_size for path in own_files(family, name))
        for state, ready in (("cached", _read), ("cold", _drop)):
            times = [_attached(family, name, dtype, ready, number) for number in range(rounds)]
            took, here, reading, other = (median(each) for each in zip(*times, strict=True))
            label, lora = f"{name} {state}", name == "lora-1"
            literal = 1.1 if not lora and state == "cold" else None
            bars += [
                Bar(f"{label}: first token", 1e3 * took, unit="ms"),
                Bar(f"{label}: first token once it is here", 1e3 * here, unit="ms"),
                Bar(f"{label}: reading its own {size / 1e6:.1f} MB", 1e3 * reading, unit="ms"),
                Bar(f"{label}: from_pretrained and generate", 1e3 * other, unit="ms"),
                Bar(f"{label}: / from_pretrained", took / other, at_most=0.2 if lora else None),
                Bar(f"{label}: / reading", took / reading, at_most=literal),
                Bar(f"{label}: (first - once here) / reading", (took - here) / reading),
            ]
    return _told(bars)


def _attached(
    family: Family,
    name: str,
    dtype: torch.dtype,
    ready: Callable[[Sequence[Path]], None],
    number: int,
) -> tuple[float, float, float, float]:
    """Seconds to the first token, to another once it is here, to read it, by from_pretrained.

    ``ready`` puts files into the page cache or out of it.
    """
    files = own_files(family, name)
    folders = [name, "base"] if TENANTS[name].adapter else [name]
    whole = [path for folder in folders for path in (family.folder / folder).iterdir()]
    first, second = family.prompts(2, 64, f"attach {name} {ready.__name__} {number}")
    took, here = _first_tokens(family, name, dtype, lambda: ready(files), first, second)
    gc.collect()  # what is mapped stays in the page cache
    ready(files)
    reading = best_of(1, lambda: _read(files))
    ready(whole)
    other = best_of(1, lambda: generate(load(family, name, dtype), [first], 1))
    return took, here, reading, other


def _first_tokens(
    family: Family,
    name: str,
    dtype: torch.dtype,
    prepare: Callable[[], None],
    first: list[int],
    second: list[int],
) -> tuple[float, float]:
    with LLM(family.zoo, dtype=dtype) as llm:
        serve = ours(llm)
        serve([("base", first)], 2)
        prepare()
        took = best_of(1, lambda: serve([(name, first)], 1))
        return took, best_of(1, lambda: serve([(name, second)], 1))


def _read(files: Sequence[Path]) -> None:
    buffer = bytearray(1 << 20)
    for path in files:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _drop(files: Sequence[Path]) -> None:
    """Out of the page cache, where no process has them mapped."""
    for path in files:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def prefix(family: Family, dtype: torch.dtype, rounds: int) -> Json:
    """A system prompt common to eight tenants with the first half of their layers in common."""
    system_length = family.shape.context // 8
    own = family.prompts(8, 16, "prefix own")

    def requests(seed: object, common: bool) -> list[tuple[str, list[int]]]:
        systems = family.prompts(8, system_length, f"prefix system {seed}")
        return [(name, systems[0 if common else i] + own[i]) for i, name in enumerate(LATE)]

    seconds: dict[str, list[float]] = {}
    saved = {}
    with LLM(family.zoo, dtype=dtype) as llm:
        ours(llm)(requests("warm", False), 2)
        for number in range(rounds):
            for common in (True, False) if number % 2 else (False, True):
                label = "shared" if common else "nothing shared"
                asked = requests((number, common, "first"), common)
                before = llm.stats()
                ours(llm)(asked[:1], 1)
                later = best_of(1, lambda: ours(llm)(asked[1:], 1))  # noqa: B023
                seconds.setdefault(f"{label}, one tenant before seven", []).append(later)
                after = llm.stats()
                reused = [
                    b - a
                    for a, b in zip(before.kv.slots_reused or [0] * 64, after.kv.slots_reused,
                                    strict=False)
                ]  # fmt: skip
                if common:
                    slots = 7 * len(asked[0][1])
                    saved = {"by_group": [n / slots for n in reused]}
                asked = requests((number, common, "together"), common)
                together = best_of(1, lambda: ours(llm)(asked, 1))  # noqa: B023
                seconds.setdefault(f"{label}, eight at once", []).append(together)
    middle = {name: median(took) for name, took in seconds.items()}
    asked = requests("same", True)
    with LLM(family.zoo, dtype=torch.float32) as llm:
        shared = [ours(llm)([one], 8)[0] for one in asked]
    alone = []
    for one in asked:
        with LLM(family.zoo, dtype=torch.float32) as llm:
            alone.append(ours(llm)([one], 8)[0])
    print(f"\nprefix: {system_length} common tokens and 16 own, first half of the layers common")
    bars = [Bar(name, 1e3 * took, unit="ms") for name, took in middle.items()]
    by_group = saved.get("by_group") or [0.0]
    bars += [
        Bar("prefill compute saved, seven after one", mean(by_group)),
        Bar("... at most possible", system_length / 2 / (system_length + 16)),
        Bar("time saved, seven after one", 1 - middle["shared, one tenant before seven"]
            / middle["nothing shared, one tenant before seven"]),
        Bar("time saved, eight at once",
            1 - middle["shared, eight at once"] / middle["nothing shared, eight at once"]),
        Bar("requests with the same tokens in float32",
            sum(a == b for a, b in zip(shared, alone, strict=True)) / 8, at_least=1.0),
    ]  # fmt: skip
    return {**_told(bars), **saved}


def fairness(family: Family, dtype: torch.dtype, rounds: int) -> Json:
    """One tenant sends 20 times what each of seven others does, half more than can be served."""
    heavy, *light = SETS["adapters"]
    length, new, at_once = 64, 32, 32
    span = 30.0 if family.shape.layers == 16 else 6.0
    with LLM(family.zoo, dtype=dtype) as llm:
        names = [SETS["adapters"][i % 8] for i in range(at_once)]

        def fill(seed: str) -> None:
            prompts = family.prompts(at_once, length, f"fairness {seed}")
            ours(llm)(list(zip(names, prompts, strict=True)), new)

        fill("warm")
        capacity = at_once / best_of(1, lambda: fill("capacity"))  # requests a second
        rate = 1.5 * capacity / 27
        draw = random.Random(0)
        some = [a for name in light for a in _poisson(family, draw, name, rate, span, length, new)]
        many = _poisson(family, draw, heavy, 20 * rate, span, length, new)
        alone = _played(llm, some)
        # a second time the same prompts would be in the KV cache already
        new_ones = [replace(a, prompt=tuple(reversed(a.prompt))) for a in some]  # type: ignore
        beside = _played(llm, new_ones + many)
    firsts = {
        "others alone": _firsts(alone, light),
        "others beside it": _firsts(beside, light),
        "the heavy one": _firsts(beside, [heavy]),
    }
    print(f"\nfairness: {capacity:.1f} requests/s can be served; {rate:.2f}/s from each of seven,")
    print(f"  {20 * rate:.1f}/s from one, for {span:.0f} s; time to the first token")
    bars = []
    for label, values in firsts.items():
        for share in (0.5, 0.95):
            value = quantile(values, share) or float("nan")
            bars.append(
                Bar(f"{label}, p{100 * share:.0f} of {len(values)}", 1e3 * value, unit="ms")
            )
    ratio = bars[3].value / bars[1].value
    bars.append(Bar("others' p95 beside it / alone", ratio))
    bars.append(Bar("tokens/s beside it", beside.tokens_per_second))
    return _told(bars)


def _poisson(
    family: Family, draw: random.Random, name: str, rate: float, span: float, length: int, new: int
) -> list[Arrival]:
    arrivals, at = [], draw.expovariate(rate)
    while at < span:
        prompt = family.prompts(1, length, f"{name} {at}")[0]
        arrivals.append(Arrival(at, name, tuple(prompt), new))
        at += draw.expovariate(rate)
    return arrivals


def _played(llm: LLM, arrivals: list[Arrival]) -> Replayed:
    ordered = tuple(sorted(arrivals, key=lambda arrival: arrival.at))
    return replay(llm, Workload("fairness", ordered), Sampling(ignore_eos=True))


def _firsts(played: Replayed, names: Sequence[str]) -> list[float]:
    found = [outcome.to_first for outcome in played.outcomes if outcome.model in names]
    return [seconds for seconds in found if seconds is not None]


def _told(bars: list[Bar]) -> Json:
    tell(bars)
    return {bar.what: bar.to_json() for bar in bars}


FIGURES: dict[str, Callable[[Family, torch.dtype, int], Json]] = {
    "memory": memory,
    "bytes": bytes_read,
    "attach": attach,
    "prefix": prefix,
    "fairness": fairness,
}
