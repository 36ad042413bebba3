"""What goes in and what comes out: requests, their sampling, completions. Plain data, no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from blockzoo.errors import UsageError

#: text, token ids, or chat messages such as ``[{"role": "user", "content": "Hi"}]``
Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]

#: how many tokens are generated where nobody says
MAX_NEW_TOKENS = 128

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How one request's tokens are chosen, and when it ends.

    Temperature, top-k and top-p act in that order and as in transformers.

    Parameters
    ----------
    max_new_tokens : int, optional
        None: 128, or fewer where the model's context ends before.
    temperature : float
        0: greedy, the likeliest token each time.
    top_k : int, optional
        Sample among the k likeliest tokens only.
    top_p : float, optional
        Sample among the fewest tokens that together have this probability, in [0, 1].
    seed : int, optional
        Equal seeds give equal tokens, whatever else is in the batch. None: another each time.
    stop : str or sequence of str
        The text ends before the first of these to appear.
    ignore_eos : bool
        Go on past the model's end token.
    logprobs : bool
        Give each token's log probability under the model, before temperature and the like.

    Raises
    ------
    UsageError
        For values out of range.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | Sequence[str] = ()
    ignore_eos: bool = False
    logprobs: bool = False

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        object.__setattr__(self, "stop", stop)
        sound = self.max_new_tokens is None or self.max_new_tokens >= 1
        _require(sound, f"max_new_tokens is {self.max_new_tokens}, not 1 or more")
        sound = self.temperature >= 0 and math.isfinite(self.temperature)
        _require(sound, f"temperature is {self.temperature}, not a number from 0 up")
        _require(self.top_k is None or self.top_k >= 1, f"top_k is {self.top_k}, not 1 or more")
        sound = self.top_p is None or 0 <= self.top_p <= 1
        _require(sound, f"top_p is {self.top_p}, not between 0 and 1")
        _require(all(stop), "a stop string is empty")

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, always a tuple."""
        return tuple(self.stop)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UsageError(message)


@dataclass(frozen=True)
class Request:
    """A prompt for one tenant's model.

    Parameters
    ----------
    model : str
        A name in the zoo, with or without a tag, or a digest.
    prompt : str, sequence of int, or sequence of messages
    sampling : Sampling, optional
        The call's where None.
    """

    model: str
    prompt: Prompt
    sampling: Sampling | None = None


@dataclass(frozen=True)
class Completion:
    """What a model went on with.

    Parameters
    ----------
    text : str
        Without special tokens, up to the stop string; ``""`` where the model has no tokenizer.
    token_ids : tuple of int
        All generated tokens, the end token included where it ended there.
    finish_reason : {"stop", "length"}
        An end token or a stop string, or ``max_new_tokens``.
    model : str
        The name as asked for.
    digest : str
        The model it meant.
    chain : tuple of str
        Digests of the blocks that served it, in order, each followed by its adapters.
    prompt_tokens : int
    logprobs : tuple of float, optional
        One for each of `token_ids`, natural logarithm.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    model: str
    digest: str
    chain: tuple[str, ...]
    prompt_tokens: int
    logprobs: tuple[float, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Piece:
    """One step of a stream.

    Parameters
    ----------
    text : str
        What is certain of the text since the last piece; may be empty.
    token_ids : tuple of int
        The step's new token.
    completion : Completion, optional
        The whole, with the last piece.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    completion: Completion | None = None
