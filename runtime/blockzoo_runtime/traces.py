"""Workloads drawn from public traces of real services.

A trace tells when requests came and how long their prompts and answers were. It tells neither
the words nor the model; both are made up, see `workload.Assumptions`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from blockzoo.errors import UsageError
from blockzoo_runtime.workload import Arrival, Assumptions, Picker, Workload, in_order, json_lines

#: tokens that one entry of a Mooncake trace's ``hash_ids`` stands for
MOONCAKE_BLOCK = 512


def read_trace(path: Path | str, assumed: Assumptions) -> Workload:
    """A workload drawn from a public trace.

    Azure's LLM inference traces (CSV: ``TIMESTAMP, ContextTokens, GeneratedTokens``) and
    Mooncake's (JSONL: ``timestamp`` in ms, ``input_length``, ``output_length``, ``hash_ids``,
    arXiv 2407.00079). Equal hash ids of the latter become equal runs of tokens, so prefixes are
    shared as they were; requests that share more than their first run go to one tenant.

    Raises
    ------
    UsageError
        Where there are no tenants to map requests to, or the file is neither kind of trace.
    """
    path = Path(path)
    if not assumed.models:
        raise UsageError("a trace names no models", hint="name the tenants to draw from")
    try:
        with open(path, encoding="utf-8") as file:
            first = file.readline()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    read = _mooncake if first.lstrip().startswith("{") else _azure
    try:
        arrivals = in_order(path, list(read(path, assumed)))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path.name} is no trace that is known here: {error!r}",
            hint="known are Azure's CSV and Mooncake's JSONL",
        ) from error
    made_up = ["which tenant a request is for", "token ids"]
    if assumed.scale != 1 or assumed.longest is not None:
        made_up.append("lengths, which are scaled or cut")
    began = arrivals[0].at
    started = tuple(replace(arrival, at=arrival.at - began) for arrival in arrivals)
    return Workload(path.name, started, tuple(made_up))


def _azure(path: Path, assumed: Assumptions) -> Iterator[Arrival]:
    pick = Picker(assumed)
    with open(path, newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file)):
            if number == assumed.limit:
                return
            at = _seconds(row["TIMESTAMP"])
            prompt, answer = assumed.fit(int(row["ContextTokens"]), int(row["GeneratedTokens"]))
            yield Arrival(at, pick(), tuple(assumed.tokens(0, number, prompt)), answer)


def _mooncake(path: Path, assumed: Assumptions) -> Iterator[Arrival]:
    pick = Picker(assumed)
    tenants: dict[int, str] = {}
    block = max(1, round(assumed.scale * MOONCAKE_BLOCK))
    for _, data in json_lines(path, assumed.limit):
        hashes = [int(key) for key in data["hash_ids"]]
        prompt, answer = assumed.fit(int(data["input_length"]), int(data["output_length"]))
        ids = [token for key in hashes for token in assumed.tokens(1, key, block)][:prompt]
        if not ids:
            raise ValueError("a request has no hash_ids")
        own = hashes[1:]  # the first run is the system prompt of nearly all of them
        known = next((tenants[key] for key in reversed(own) if key in tenants), None)
        model = known or pick()
        for key in own:
            tenants.setdefault(key, model)
        yield Arrival(float(data["timestamp"]) / 1000, model, tuple(ids), answer)


def _seconds(timestamp: str) -> float:
    """Of ``2023-11-16 18:15:46.6805900``, whose seventh decimal Python does not read."""
    return datetime.fromisoformat(timestamp[:26]).replace(tzinfo=UTC).timestamp()
