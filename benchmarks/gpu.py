"""Serving on a CUDA card: ours, transformers, its continuous batching and PEFT, in one run.

The family of `tenants` at the shape of a 1B or an 8B Llama, weights random, in bf16. Tokens per
second as in `serving`; then the time of a decode step beside what reading its bytes takes at the
bandwidth that this card is measured to have. What does not fit the card's memory is left out and
said so.

    python benchmarks/gpu.py --shape 1b|8b|tiny [--device cuda] [--rounds 5] [--folder DIR]
                             [--out FILE]
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
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from blockzoo_runtime import LLM
from contenders import (
    Requests,
    Serve,
    distinct_bytes,
    load,
    one_after_another,
    ours,
    peft_mixed,
    separate_bytes,
)
from contest import Bar, Entry, Load, contest, machine, show, tell
from tenants import QUICK, SETS, Family, Shape, make_family

DTYPE = torch.bfloat16
SHAPES = {
    "1b": Shape(2048, 16, 32, 8, 64, 8192, 128256, 4096),  # 1.24B parameters
    "8b": Shape(4096, 32, 32, 8, 128, 14336, 128256, 4096),  # 7.5B, embeddings tied
    "tiny": QUICK,
}
#: models of a full copy each are made at the small shapes only: 8B ones take 15 GB each
MIXTURES = {"1b": ("methods", "adapters", "mixed"), "8b": ("adapters",)}
#: share of the card's free memory that weights may take
ROOM = 0.8
#: share of it that the KV cache of transformers' continuous batching may take
_THEIR_CACHE = 0.3


def on(device: torch.device, serve: Serve) -> Serve:
    """A contender whose tensors are made on the device."""

    def served(requests: Requests, new: int) -> list[list[int]]:
        with torch.device(device):
            return serve(requests, new)

    return served


@contextmanager
def continuous(model: Any) -> Iterator[Serve]:
    """Continuous batching of transformers, one model's; it runs on between calls, as a server."""
    from transformers import ContinuousBatchingConfig

    config = ContinuousBatchingConfig(max_memory_percent=_THEIR_CACHE)
    with model.continuous_batching_context_manager(continuous_batching_config=config) as manager:

        def serve(requests: Requests, new: int) -> list[list[int]]:
            asked = [list(prompt) for _, prompt in requests]
            ids = manager.add_requests(asked, max_new_tokens=new)
            made: dict[str, list[int]] = {}
            while len(made) < len(ids):
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    made[result.request_id] = list(result.generated_tokens)
                elif result is None and not manager.is_running():
                    raise RuntimeError("transformers' continuous batching has ended")
            return [made[each] for each in ids]

        yield serve


def alone(
    family: Family, llm: LLM, device: torch.device, rows: Sequence[int], at: Load, rounds: int
) -> dict[str, Any]:
    """One tenant: ours, ``generate`` and continuous batching."""
    model = load(family, "base", DTYPE).to(device)
    batched = load(family, "base", DTYPE).to(device)  # it sets another attention on its model
    with continuous(batched) as theirs:
        entries = [
            Entry("ours", ours(llm), ["base"]),
            Entry("generate", on(device, one_after_another({"base": model})), ["base"]),
            Entry("continuous batching", theirs, ["base"]),
        ]
        return {str(count): _contest("one tenant alone", entries, family, count, at, rounds)
                for count in rows}  # fmt: skip


def mixture(
    title: str,
    family: Family,
    llm: LLM,
    device: torch.device,
    rows: Sequence[int],
    at: Load,
    rounds: int,
) -> dict[str, Any]:
    """One set of tenants: ours, one model after another where all fit, PEFT's mixed batch."""
    names = SETS[title]
    entries = [
        Entry("ours", ours(llm), names),
        Entry("ours, one tenant", ours(llm), names[:1]),
    ]
    if fits(separate_bytes(family, names, DTYPE), f"{title}: one model after another"):
        loaded = {name: load(family, name, DTYPE).to(device) for name in names}
        entries.append(Entry("one after another", on(device, one_after_another(loaded)), names))
    if title == "adapters" and fits(distinct_bytes(family, names, DTYPE), "PEFT mixed batch"):
        with torch.device(device):
            mixed = peft_mixed(family, names, DTYPE)
        entries.append(Entry("PEFT mixed batch", on(device, mixed), names))
    return {str(count): _contest(title, entries, family, count, at, rounds) for count in rows}


def _contest(
    title: str, entries: Sequence[Entry], family: Family, count: int, at: Load, rounds: int
) -> dict[str, Any]:
    at = Load(count, at.length, at.new)
    seconds = contest(title, entries, family, at, rounds)
    middle = {name: median(took) for name, took in seconds.items()}
    bars = [Bar(f"ours / {name}", took / middle["ours"])
            for name, took in middle.items() if name != "ours"]  # fmt: skip
    show(title, seconds, at, bars)
    rates = {name: count * at.new / took for name, took in middle.items()}
    ratios = {bar.what: bar.to_json() for bar in bars}
    return {**asdict(at), "seconds": seconds, "tokens_per_second": rates, "ratios": ratios}


def fits(nbytes: int, what: str) -> bool:
    """Whether weights of a contender fit the card beside what is there already."""
    if not torch.cuda.is_available():
        return True
    gc.collect()
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    if nbytes <= ROOM * free:
        return True
    print(f"left out: {what}: {nbytes / 1e9:.0f} GB of weights, {free / 1e9:.0f} GB are free")
    return False


def bandwidth(device: torch.device) -> dict[str, float]:
    """Bytes per second of the device's memory: copying 2 GiB, and a product that reads it."""
    size = 1 << (31 if device.type == "cuda" else 27)
    wide = torch.zeros(size // 8192, 4096, dtype=DTYPE, device=device)
    target, x = torch.empty_like(wide), torch.ones(8, 4096, dtype=DTYPE, device=device)
    return {
        "copy": 2 * size / _seconds(device, lambda: target.copy_(wide)),
        "linear, 8 rows": size / _seconds(device, lambda: torch.nn.functional.linear(x, wide)),
    }


def _seconds(device: torch.device, call: Callable[[], object]) -> float:
    """Of the fastest of some calls, the device's work included."""
    best = float("inf")
    for _ in range(10):
        _wait(device)
        began = time.perf_counter()
        call()
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def steps(
    family: Family, llm: LLM, titles: Sequence[str], device: torch.device, rows: int
) -> dict[str, Any]:
    """Decode steps: bytes of weights and KV read, over the time, beside the card's bandwidth."""
    with torch.inference_mode():
        rates = bandwidth(device)
    best = max(rates.values())
    print("\nbandwidth: " + ", ".join(f"{k} {v / 1e9:.0f} GB/s" for k, v in rates.items()))
    bars = []
    for title, names in {"one tenant": ("base",), **{t: SETS[t] for t in titles}}.items():
        asked = [names[i % len(names)] for i in range(rows)]
        for number in range(2):  # the first brings tenants in
            prompts = family.prompts(rows, 64, f"steps {title} {number}")
            llm.stats(reset=True)
            ours(llm)(list(zip(asked, prompts, strict=True)), 64)
        stats = llm.stats()
        assert stats.last is not None and stats.step_seconds.p50 is not None
        read = stats.last.weight_bytes + stats.last.kv_bytes
        rate = read / stats.step_seconds.p50
        bars += [
            Bar(f"{title}: step, median", 1e3 * stats.step_seconds.p50, unit="ms"),
            Bar(f"{title}: read in a step", read / 1e6, unit="MB"),
            Bar(f"{title}: bandwidth achieved", rate / 1e9, unit="GB/s"),
            Bar(f"{title}: achieved / measured", rate / best),
        ]
    tell(bars)
    return {"bandwidth": rates, "steps": {bar.what: bar.to_json() for bar in bars}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="1b")
    parser.add_argument("--device", default="cuda", help="cpu: to see that this runs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="*", default=(8, 32), help="requests at once")
    parser.add_argument("--length", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--folder", type=Path, help="keep the family here for the next run")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", module="transformers|peft")
    device, shape = torch.device(given.device), SHAPES[given.shape]
    titles = MIXTURES.get(given.shape, tuple(SETS))
    results: dict[str, Any] = {"machine": machine(), "shape": asdict(shape)}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        results["card"] = {"name": card.name, "bytes": card.total_memory}

    def keep(title: str, figures: dict[str, Any]) -> None:
        results[title] = figures
        if given.out:  # what is measured is kept, whatever comes after
            given.out.write_text(json.dumps(results, indent=2))

    with tempfile.TemporaryDirectory() as temporary:
        names = tuple(dict.fromkeys(name for title in titles for name in SETS[title]))
        family = make_family(given.folder or Path(temporary), shape, names)
        if not fits(distinct_bytes(family, names, DTYPE), f"the {given.shape} family"):
            return
        at = Load(0, given.length, given.new)
        print(f"{results.get('card', 'cpu')}, {results['machine']}\n{shape}, {DTYPE}")
        print(f"medians of {given.rounds} rounds")
        with LLM(family.zoo, device=device, dtype=DTYPE) as llm:
            keep("bytes", steps(family, llm, titles, device, 8))
            keep("alone", alone(family, llm, device, (1, *given.rows), at, given.rounds))
            for title in titles:
                gc.collect()
                keep(title, mixture(title, family, llm, device, given.rows, at, given.rounds))


if __name__ == "__main__":
    main()
