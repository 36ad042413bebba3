"""What goes in and what comes out: requests, their sampling, completions. Plain data, no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from blockzoo.errors import BlockzooError, UsageError
from blockzoo_runtime.assembly.menu import EXACT

#: text, token ids, or chat messages such as ``[{"role": "user", "content": "Hi"}]``
Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]

#: how many tokens are generated where nobody says
MAX_NEW_TOKENS = 128

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Sampling:
    """How one request's tokens are chosen, and when it ends.

    Repetition, frequency and presence penalties act first, then temperature, top-k, top-p and
    min-p, in that order; all but frequency and presence as in transformers.

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
    min_p : float, optional
        Sample among tokens that have at least this share of the likeliest one's probability, in
        [0, 1].
    repetition_penalty : float, optional
        Above 1: what the prompt or the answer holds already becomes less likely. None: what the
        model's generation_config.json says.
    frequency_penalty, presence_penalty : float
        As OpenAI's: taken off a token's logit for each time it was generated, and once if it
        was at all.
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
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
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
        sound = self.min_p is None or 0 <= self.min_p <= 1
        _require(sound, f"min_p is {self.min_p}, not between 0 and 1")
        penalty = self.repetition_penalty
        sound = penalty is None or (penalty > 0 and math.isfinite(penalty))
        _require(sound, f"repetition_penalty is {penalty}, not a number above 0")
        for name in ("frequency_penalty", "presence_penalty"):
            sound = math.isfinite(getattr(self, name))
            _require(sound, f"{name} is {getattr(self, name)}, not a number")
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
    assembly : str, optional
        Which chains may serve it: ``"exact"``, or ``"at_most:A"``, ``"at_most:B"``,
        ``"at_most:C"``. The engine's where None.
    """

    model: str
    prompt: Prompt
    sampling: Sampling | None = None
    assembly: str | None = None


@dataclass(frozen=True)
class Completion:
    """What a model went on with.

    Parameters
    ----------
    text : str
        Without special tokens, up to the stop string; ``""`` where the model has no tokenizer.
    token_ids : tuple of int
        All generated tokens, the end token included where it ended there.
    finish_reason : {"stop", "length", "cancelled"}
        An end token or a stop string, ``max_new_tokens``, or `Handle.cancel`.
    model : str
        The name as asked for.
    digest : str
        The model it meant.
    chain : tuple of str
        Digests of the blocks that served it, in order, each followed by its adapters.
    prompt_tokens : int
    logprobs : tuple of float, optional
        One for each of `token_ids`, natural logarithm.
    assembly : str
        The chain by name: ``"exact"``, or the grade and certificate of another, such as
        ``"B:0123456789ab"``; several where the first could no longer be had midway.
    reused_tokens : int
        Tokens of the prompt whose keys and values stood already in every layer.
    first_token_seconds : float, optional
        From the request to its first token.
    token_seconds : float, optional
        Between tokens after the first, on average.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    model: str
    digest: str
    chain: tuple[str, ...]
    prompt_tokens: int
    logprobs: tuple[float, ...] | None = None
    assembly: str = EXACT
    # how it went, not what was answered: no part of equality
    reused_tokens: int = field(default=0, compare=False)
    first_token_seconds: float | None = field(default=None, compare=False)
    token_seconds: float | None = field(default=None, compare=False)

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


@dataclass(frozen=True)
class Scored:
    """How likely a model finds a text.

    Parameters
    ----------
    token_ids : tuple of int
        The tokens that were scored: a text's all but its first, or the continuation's.
    logprobs : tuple of float
        One for each of them, given all before it; natural logarithm.
    greedy : bool
        Whether each of them was the likeliest.
    model : str
        The name as asked for.
    digest : str
        The model it meant.
    assembly : str
        The chain by name, see `Completion`.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    greedy: bool
    model: str
    digest: str
    assembly: str = EXACT

    @property
    def total(self) -> float:
        """The log probability of all of them together."""
        return math.fsum(self.logprobs)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True)
class Failed:
    """A request that was not answered, where the call asked to be told so instead of raising.

    Parameters
    ----------
    model : str
        The name as asked for.
    error : BlockzooError
    """

    model: str
    error: BlockzooError

    def to_json(self) -> dict[str, Any]:
        return {"model": self.model, "error": self.error.message, "hint": self.error.hint}
