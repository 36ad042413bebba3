"""Serves forty tenants for half an hour under a budget that holds ten, while things go wrong.

A tiny base in float32 and tenants of every kind (full fine-tunes of all tensors or of the last
layers, LoRA, DoRA, IA3, prefix, norms). Requests arrive at random; some clients go away midway;
names are ingested anew with other weights; a tensor of one tenant at a time is damaged on disk or
removed and put back; one tenant's weights hold NaN; some requests are for no model or too long.

It fails unless every finished request has the tokens that transformers or PEFT gave beforehand
for the very model that served it, only requests that must fail do, and neither memory (RSS), KV
pages, threads, open files nor asyncio tasks grow.

    python benchmarks/soak.py [--minutes 30] [--rate 50] [--seed 0] [--out FILE]
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import argparse
import asyncio
import json
import math
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from contextlib import aclosing
from pathlib import Path
from typing import Any

import torch
from blockzoo_runtime import LLM, Request, Sampling
from blockzoo_runtime.errors import BusyError
from crowd import BROKEN, NEW, Crowd, make_crowd
from soak_watch import Watch

from blockzoo.errors import BlockzooError

#: requests under way at most
AT_ONCE = 48
#: seconds between two things that go wrong, on average
TROUBLE = 3.0
#: how long a damaged tensor stays so, seconds
DAMAGED_FOR = 4.0


class Soak:
    """The traffic, the trouble, and what came of them."""

    def __init__(self, crowd: Crowd, llm: LLM, seed: int, rate: float) -> None:
        self.crowd = crowd
        self.llm = llm
        self.rate = rate
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._random = random.Random(seed)
        self._harmed: dict[str, float] = {}  # until when a damaged tenant's requests may fail

    async def run(self, seconds: float, watch: Watch) -> None:
        """Send requests and make trouble for so long; ends when all are answered."""
        end = time.monotonic() + seconds
        requests: set[asyncio.Task[None]] = set()
        trouble = asyncio.create_task(self._trouble(end))
        while time.monotonic() < end:
            crowded = time.monotonic() % 20 < 10  # quiet and busy times in turns
            await asyncio.sleep(self._random.expovariate(self.rate * (4 if crowded else 0.25)))
            if len(requests) < AT_ONCE:
                task = asyncio.create_task(self._request())
                requests.add(task)
                task.add_done_callback(requests.discard)
            watch.look(self.llm, len(asyncio.all_tasks()))
        await trouble
        await asyncio.gather(*requests)

    async def _request(self) -> None:
        draw = self._random
        name = draw.choices(self.crowd.names, self.crowd.weights)[0]
        prompt = draw.randrange(len(self.crowd.prompts))
        ids = self.crowd.prompts[prompt]
        fate = draw.random()
        new = draw.randint(1, NEW)
        if fate < 0.02:
            name = "nobody"
        elif fate < 0.04:
            ids = ids * (self.crowd.shape.context // len(ids) + 1)
        began = time.monotonic()
        must_fail = fate < 0.04 or name == BROKEN
        leaves_after = draw.randint(0, new) if 0.04 <= fate < 0.2 else None
        request = Request(name, ids, Sampling(max_new_tokens=new, ignore_eos=True))
        try:
            await self._send(request, prompt, leaves_after)
            if must_fail and leaves_after is None:
                self.wrong.append(f"{name} was served, {len(ids)} prompt tokens")
        except BusyError:
            self.counts["refused"] += 1
        except BlockzooError as error:
            self.counts["failed"] += 1
            if not must_fail and self._harmed.get(name, 0.0) < began:
                self.wrong.append(f"{name}: {error.message}")
        except Exception as error:  # no client may ever see anything else
            traceback.print_exc()
            self.wrong.append(f"{name}: {error!r}")

    async def _send(self, request: Request, prompt: int, leaves_after: int | None) -> None:
        if leaves_after is None and self._random.random() < 0.3:
            [completion] = await self.llm.agenerate([request])
            self._check(completion, prompt)
            return
        got: list[int] = []
        async with aclosing(self.llm.astream(request)) as pieces:
            async for piece in pieces:
                got += piece.token_ids
                if piece.completion is not None:
                    self._check(piece.completion, prompt)
                elif leaves_after is not None and len(got) >= leaves_after:
                    self.counts["left"] += 1
                    return

    def _check(self, completion: Any, prompt: int) -> None:
        self.counts["finished"] += 1
        right = self.crowd.right[completion.digest, prompt]
        if list(completion.token_ids) != right[: len(completion.token_ids)]:
            self.wrong.append(
                f"{completion.model} ({completion.digest[:12]}), prompt {prompt}: "
                f"{completion.token_ids} instead of {right}"
            )

    async def _trouble(self, end: float) -> None:
        while time.monotonic() < end:
            await asyncio.sleep(self._random.expovariate(1 / TROUBLE))
            try:
                if self._random.random() < 0.5:
                    await self._ingest_anew()
                else:
                    await self._damage()
            except Exception as error:  # told at the end; the soak goes on
                traceback.print_exc()
                self.wrong.append(f"trouble itself failed: {error!r}")

    async def _ingest_anew(self) -> None:
        name = self._random.choice(sorted(self.crowd.variants))
        folder = self._random.choice(self.crowd.variants[name])
        await asyncio.to_thread(self.crowd.ingest, folder, name)
        self.counts["ingested anew"] += 1

    async def _damage(self) -> None:
        name = self._random.choice(self.crowd.victims)
        path = self._random.choice(self.crowd.own_files(name))
        removed = self._random.random() < 0.3
        self._harmed[name] = math.inf
        aside = path.with_name(f"{path.name}.aside")
        # the file is exchanged, not written to: who has it mapped keeps the old one
        path.rename(aside)
        try:
            if not removed:
                data = bytearray(aside.read_bytes())
                data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
                path.write_bytes(data)
            self.counts["removed" if removed else "damaged"] += 1
            await asyncio.sleep(DAMAGED_FOR)
        finally:
            aside.replace(path)
            self._harmed[name] = time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=50, help="requests a second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tenants", type=int, default=40)
    parser.add_argument("--out", type=Path, help="write what was seen here as JSON")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", module="transformers|peft")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        crowd = make_crowd(Path(folder), given.tenants)
        budget = crowd.budget(10)
        print(f"{len(crowd.names)} tenants and {len(crowd.right)} right answers "
              f"in {time.perf_counter() - began:.0f} s; budget {budget / 1e6:.1f} MB of "
              f"{crowd.distinct / 1e6:.1f} MB of weights")  # fmt: skip
        watch = Watch(budget)
        with LLM(crowd.zoo, dtype="float32", memory=budget) as llm:
            soak = Soak(crowd, llm, given.seed, given.rate)
            asyncio.run(soak.run(60 * given.minutes, watch))
            watch.settle(llm)
            stats = llm.stats()
        print(stats)
    counts = dict(sorted(soak.counts.items()))
    print(", ".join(f"{count:,} {what}" for what, count in counts.items()))
    findings = [*dict.fromkeys(soak.wrong), *watch.findings()]
    print(watch.table())
    if given.out:
        given.out.write_text(
            json.dumps(
                {
                    "minutes": given.minutes,
                    "counts": counts,
                    "engine": stats.to_json(),
                    "samples": watch.some(60),
                    "findings": findings,
                },
                indent=1,
            )
        )
    for finding in findings[:40]:
        print(f"WRONG: {finding}")
    print(f"{len(findings)} findings" if findings else "nothing wrong")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
