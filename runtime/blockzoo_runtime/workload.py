"""Workloads: which requests arrive when, from a file of one's own; see `traces` for others'.

What a file leaves open (the tenant of a request, the words of a prompt that is only a length) is
made up from a seed: tenants by Zipf's law, token ids at random. `Workload.made_up` says what
was, and whoever reports figures repeats it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from blockzoo.errors import UsageError
from blockzoo_runtime.engine.request import Prompt

#: how unevenly requests fall on tenants: the k-th gets 1 / k**ZIPF of the first one's
ZIPF = 1.0

_LINE_KEYS = frozenset(
    {"model", "prompt", "prompt_tokens", "prompt_length", "max_new_tokens", "at"}
)


@dataclass(frozen=True)
class Arrival:
    """One request and when it comes.

    Parameters
    ----------
    at : float
        Seconds after the workload's start.
    model : str
        A name in the zoo.
    prompt : str, tuple of int, or messages
    max_new_tokens : int or None
        None: the engine's default.
    """

    at: float
    model: str
    prompt: Prompt
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class Workload:
    """Requests in the order of their arrival.

    Parameters
    ----------
    name : str
        The file's.
    arrivals : tuple of Arrival
    made_up : tuple of str
        What of it the source did not say.
    """

    name: str
    arrivals: tuple[Arrival, ...]
    made_up: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """The names asked for, each once, in the order of their first request."""
        return tuple(dict.fromkeys(arrival.model for arrival in self.arrivals))

    @property
    def duration(self) -> float:
        """Seconds between the first and the last arrival."""
        return self.arrivals[-1].at - self.arrivals[0].at if self.arrivals else 0.0

    def faster(self, times: float) -> Workload:
        """The same requests, arriving so many times as fast.

        Raises
        ------
        UsageError
            Where `times` is not above 0.
        """
        if not times > 0:
            raise UsageError(f"a workload cannot be {times} times as fast")
        quick = tuple(replace(arrival, at=arrival.at / times) for arrival in self.arrivals)
        return replace(self, arrivals=quick)


@dataclass(frozen=True)
class Assumptions:
    """How what a source leaves open is filled in.

    Parameters
    ----------
    models : sequence of str
        The tenants, the most asked for first.
    vocabulary : int
        Token ids are drawn below this: the smallest vocabulary of the tenants.
    seed : int
    zipf : float
        The k-th tenant gets ``1 / k**zipf`` of the first one's requests; 0: all alike.
    scale : float
        What lengths in tokens are multiplied by, so that a trace of long texts fits a small model.
    longest : int, optional
        What a prompt and its answer may have together, after scaling: prompts are cut to make
        room, and answers to half of it.
    limit : int, optional
        How many requests are taken, from the start. None: all.

    Raises
    ------
    UsageError
        For values out of range.
    """

    models: Sequence[str] = ()
    vocabulary: int = 256
    seed: int = 0
    zipf: float = ZIPF
    scale: float = 1.0
    longest: int | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.vocabulary < 1 or self.zipf < 0 or not self.scale > 0:
            raise UsageError("vocabulary and scale are above 0, zipf from 0 up")
        if self.longest is not None and self.longest < 2:
            raise UsageError("a prompt and its answer need 2 tokens or more")

    def fit(self, prompt: int, answer: int) -> tuple[int, int]:
        """Lengths of a prompt and its answer in tokens, scaled and cut; each at least 1."""
        prompt, answer = (max(1, round(self.scale * n)) for n in (prompt, answer))
        if self.longest is not None:
            answer = min(answer, self.longest // 2)
            prompt = min(prompt, self.longest - answer)
        return prompt, answer

    def tokens(self, stream: int, key: int, count: int) -> list[int]:
        """`count` token ids that depend on the seed, a stream and a key alone."""
        draw = np.random.default_rng([self.seed, stream, key])
        ids: list[int] = draw.integers(0, self.vocabulary, count).tolist()
        return ids


def read_workload(path: Path | str, assumed: Assumptions | None = None) -> Workload:
    """A workload from JSONL: one request a line.

    Keys: ``model``; one of ``prompt`` (text or chat messages), ``prompt_tokens`` (ids) and
    ``prompt_length`` (a number: ids are made up); ``max_new_tokens``; ``at`` (seconds, 0 where
    absent). Lines without a model get one of ``assumed.models``.

    Raises
    ------
    UsageError
        Naming the line.
    """
    path, assumed = Path(path), assumed or Assumptions()
    pick = Picker(assumed)
    made_up: dict[str, None] = {}
    arrivals = []
    for number, data in json_lines(path, assumed.limit):
        try:
            if unknown := sorted(set(data) - _LINE_KEYS):
                raise ValueError(f"it has the unknown key {unknown[0]!r}")
            model = data.get("model")
            if model is None:
                model = pick()
                made_up["which tenant a request is for"] = None
            if "prompt_length" in data:
                made_up["token ids"] = None
            arrivals.append(
                Arrival(
                    float(data.get("at", 0.0)),
                    _text(model),
                    _prompt(data, number, assumed),
                    _positive(data, "max_new_tokens") if "max_new_tokens" in data else None,
                )
            )
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"{path.name}, line {number}: {error}", hint=f"keys are {', '.join(_LINE_KEYS)}"
            ) from error
    return Workload(path.name, in_order(path, arrivals), tuple(made_up))


def write_workload(path: Path | str, workload: Workload) -> None:
    """Write as JSONL what `read_workload` reads."""
    with open(path, "w", encoding="utf-8") as out:
        for arrival in workload.arrivals:
            ids = not isinstance(arrival.prompt, str) and all(
                isinstance(item, int) for item in arrival.prompt
            )
            line: dict[str, Any] = {"at": arrival.at, "model": arrival.model}
            line["prompt_tokens" if ids else "prompt"] = arrival.prompt
            if arrival.max_new_tokens is not None:
                line["max_new_tokens"] = arrival.max_new_tokens
            out.write(json.dumps(line, ensure_ascii=False) + "\n")


class Picker:
    """Draws a tenant for each request."""

    def __init__(self, assumed: Assumptions) -> None:
        self._models = list(assumed.models)
        self._weights = [(k + 1) ** -assumed.zipf for k in range(len(self._models))]
        self._random = random.Random(assumed.seed)

    def __call__(self) -> str:
        if not self._models:
            raise ValueError("it names no model, and there are none to choose from")
        return self._random.choices(self._models, self._weights)[0]


def json_lines(path: Path, limit: int | None) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Objects with their line numbers, empty lines left out."""
    taken = 0
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                if taken == limit:
                    return
                taken += 1
                data = json.loads(line)
                if not isinstance(data, dict):
                    raise ValueError("it is no JSON object")
                yield number, data
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    except ValueError as error:  # JSON's and Unicode's too
        raise UsageError(f"{path.name}, line {number}: {error}") from error


def _prompt(data: Mapping[str, Any], number: int, assumed: Assumptions) -> Prompt:
    given = [key for key in ("prompt", "prompt_tokens", "prompt_length") if key in data]
    if len(given) != 1:
        raise ValueError("it has not exactly one of prompt, prompt_tokens and prompt_length")
    if given == ["prompt_length"]:
        return tuple(assumed.tokens(2, number, _positive(data, "prompt_length")))
    value = data[given[0]]
    if given == ["prompt_tokens"]:
        return tuple(int(token) for token in value)
    if not isinstance(value, str) and not (
        isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
    ):
        raise ValueError("its prompt is neither text nor chat messages")
    return value


def _positive(data: Mapping[str, Any], key: str) -> int:
    value = data[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{key} is {value!r}, not a number from 1 up")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"its model is {value!r}, not a name")
    return value


def in_order(path: Path, arrivals: list[Arrival]) -> tuple[Arrival, ...]:
    if not arrivals:
        raise UsageError(f"{path.name} has no requests in it")
    if not all(0 <= arrival.at < float("inf") for arrival in arrivals):
        raise UsageError(f"{path.name} has a request at a time before 0 or never")
    return tuple(sorted(arrivals, key=lambda arrival: arrival.at))
