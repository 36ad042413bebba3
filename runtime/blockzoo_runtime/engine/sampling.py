"""From logits to the next token, with transformers' meaning of temperature, top-k and top-p."""

from __future__ import annotations

import torch

from blockzoo_runtime.engine.request import Sampling


def warp(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Scores to sample from: what transformers' logits processors make of them.

    Parameters
    ----------
    logits : torch.Tensor
        (V,) float32.
    sampling : Sampling
        With a temperature above 0.

    Returns
    -------
    torch.Tensor
        (V,) float32, ``-inf`` where a token is ruled out. At least one is not.
    """
    scores = logits / sampling.temperature
    if sampling.top_k is not None:
        least = torch.topk(scores, min(sampling.top_k, scores.shape[-1])).values[-1]
        scores = scores.masked_fill(scores < least, float("-inf"))
    if sampling.top_p is not None and sampling.top_p < 1:
        ascending, order = torch.sort(scores)
        ruled_out = ascending.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        ruled_out[-1] = False
        scores = scores.masked_fill(ruled_out.scatter(0, order, ruled_out), float("-inf"))
    return scores


class Sampler:
    """Chooses one request's tokens; its random numbers are its own.

    Parameters
    ----------
    sampling : Sampling
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator: torch.Generator | None = None
        if sampling.temperature > 0:
            self._generator = torch.Generator()  # on the CPU: one stream whatever the device
            if sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(sampling.seed)

    def choose(self, logits: torch.Tensor) -> int:
        """The next token for logits (V,) float32."""
        if self._generator is None:
            return int(logits.argmax())
        probabilities = warp(logits, self._sampling).softmax(-1).cpu()
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


def logprob(logits: torch.Tensor, token: int) -> float:
    """The token's log probability under logits (V,) float32."""
    return float(logits.log_softmax(-1)[token])
