"""From logits to the next tokens, with transformers' meaning of temperature, top-k and the rest.

Rows of a step are chosen together: one pass over the logits finds the likeliest token of every
row and whether it is a number at all; only rows that ask for more cost more. A device is waited
for once a step.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from blockzoo_runtime.engine.processors import Process
from blockzoo_runtime.engine.request import Sampling
from blockzoo_runtime.upload import upload


class Sampler:
    """What one request's choices depend on besides logits: its random numbers and its tokens.

    Parameters
    ----------
    sampling : Sampling
    process : Process, optional
        What is done to logits first.
    prompt : sequence of int
    """

    def __init__(
        self, sampling: Sampling, process: Process | None = None, prompt: Sequence[int] = ()
    ) -> None:
        self.sampling = sampling
        self._process = process
        self._ids = list(prompt)
        self._counts: Counter[int] = Counter()
        self._random = random.Random(sampling.seed)
        self._number: float | None = None
        self._counted = bool(sampling.frequency_penalty or sampling.presence_penalty)
        self.alters = process is not None or self._counted

    def alter(self, logits: torch.Tensor) -> torch.Tensor:
        """Scores (V,) from logits (V,) float32, by the processing and the penalties."""
        scores = self._process(self._ids, logits) if self._process else logits
        if self._counts and self._counted:
            ids, counts = upload([list(self._counts), list(self._counts.values())], scores.device)
            penalty = counts * self.sampling.frequency_penalty + self.sampling.presence_penalty
            scores = scores.index_add(0, ids, -penalty.to(scores.dtype))
        return scores

    def draw(self) -> float:
        """The next token's random number in [0, 1): the same until `push`."""
        if self._number is None:
            self._number = self._random.random()
        return self._number

    def push(self, token: int) -> None:
        """A token was chosen."""
        self._number = None
        if self._process is not None:
            self._ids.append(token)
        if self._counted:
            self._counts[token] += 1


@dataclass(frozen=True)
class Choice:
    """A row's next token.

    Parameters
    ----------
    token : int
    sound : bool
        Whether the logits were numbers.
    logprob : float, optional
        Under the model, where it is asked for.
    """

    token: int
    sound: bool
    logprob: float | None = None


def choose(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[Choice]:
    """The next token of each row.

    Parameters
    ----------
    logits : torch.Tensor
        (R, V) float32.
    samplers : sequence of Sampler
        One a row.
    """
    best, tokens = logits.max(-1)
    altered = [i for i, sampler in enumerate(samplers) if sampler.alters]
    drawn = [i for i, sampler in enumerate(samplers) if sampler.sampling.temperature > 0]
    scores = logits
    if altered:
        rows = torch.stack([samplers[i].alter(logits[i]) for i in altered])
        scores = logits.index_copy(0, upload([altered], logits.device)[0], rows)
        tokens = scores.argmax(-1)
    if drawn:
        [index] = upload([drawn], logits.device)
        chosen = draw(warp(scores[index], [samplers[i].sampling for i in drawn]),
                      [samplers[i].draw() for i in drawn])  # fmt: skip
        tokens = tokens.index_copy(0, index, chosen)
    told = [i for i, sampler in enumerate(samplers) if sampler.sampling.logprobs]
    of: dict[int, float] = {}
    if told:
        [index] = upload([told], logits.device)
        of = dict(zip(told, logprobs(logits[index], tokens[index]).tolist(), strict=True))
    both = torch.stack((tokens, best.isfinite().to(tokens.dtype))).tolist()
    return [
        Choice(token, bool(sound), of.get(i))
        for i, (token, sound) in enumerate(zip(*both, strict=True))
    ]


def warp(scores: torch.Tensor, samplings: Sequence[Sampling]) -> torch.Tensor:
    """Scores to sample from: what transformers' logits processors make of them, in their order.

    Parameters
    ----------
    scores : torch.Tensor
        (R, V) float32.
    samplings : sequence of Sampling
        One a row, with a temperature above 0.

    Returns
    -------
    torch.Tensor
        (R, V) float32, ``-inf`` where a token is ruled out. At least one of a row is not.
    """

    def column(values: Sequence[float]) -> torch.Tensor:
        return upload([values], scores.device, scores.dtype)[0][:, None]

    scores = scores / column([sampling.temperature for sampling in samplings])
    size = scores.shape[-1]
    tops = [min(sampling.top_k or size, size) for sampling in samplings]
    if (most := max((top for top in tops if top < size), default=0)) > 0:
        best = torch.topk(scores, most).values  # (R, most)
        [kept] = upload([[min(top, most) - 1 for top in tops]], scores.device)
        least = best.gather(-1, kept[:, None])
        least = least.masked_fill(column(tops) == size, float("-inf"))
        scores = scores.masked_fill(scores < least, float("-inf"))
    shares = [1.0 if sampling.top_p is None else sampling.top_p for sampling in samplings]
    if min(shares) < 1:
        ascending, order = torch.sort(scores)
        # a share of 1 rules nothing out, not even what has no probability
        most_ruled_out = column([1 - share if share < 1 else -1.0 for share in shares])
        ruled_out = ascending.softmax(-1).cumsum(-1) <= most_ruled_out
        ruled_out[:, -1] = False
        scores = scores.masked_fill(ruled_out.scatter(-1, order, ruled_out), float("-inf"))
    floors = [sampling.min_p or 0.0 for sampling in samplings]
    if max(floors) > 0:
        probabilities = scores.softmax(-1)
        least = column(floors) * probabilities.amax(-1, keepdim=True)
        scores = scores.masked_fill(probabilities < least, float("-inf"))
    return scores


def draw(scores: torch.Tensor, numbers: Sequence[float]) -> torch.Tensor:
    """Sample from scores (R, V) by one number in [0, 1) a row; returns tokens (R,) int64.

    By the inverse of the cumulative distribution, so that a row's token depends on its scores
    and its number alone, whatever the batch and the device.
    """
    summed = scores.softmax(-1, dtype=torch.float64).cumsum(-1)
    total = summed[:, -1:].contiguous()
    [number] = upload([numbers], scores.device, torch.float64)
    found = torch.searchsorted(summed, number[:, None] * total, right=True)
    last = torch.searchsorted(summed, total)  # the last token that has any probability
    return torch.minimum(found, last)[:, 0]


def logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log probabilities (R,) float32 of tokens (R,) under logits (R, V)."""
    return logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
