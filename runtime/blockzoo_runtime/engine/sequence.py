"""A request while it runs: its slots, its pages, its sampler, its text, and how long it took."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from blockzoo.errors import BlockzooError, UsageError
from blockzoo_runtime.engine.handle import Handle
from blockzoo_runtime.engine.job import Job
from blockzoo_runtime.engine.processors import Process
from blockzoo_runtime.engine.request import Completion, FinishReason, Piece, Sampling, Scored
from blockzoo_runtime.engine.sampling import Choice, Sampler
from blockzoo_runtime.engine.text import TextStream

if TYPE_CHECKING:
    from blockzoo_runtime.assembly.menu import Menu, Option
    from blockzoo_runtime.kv.pages import Pages
    from blockzoo_runtime.tenant import Tenant

#: positions of a scored text whose logits are made at once: they are (positions, vocabulary)
_SCORED_AT_ONCE = 128


class Sequence:
    """What generation and scoring have in common.

    Parameters
    ----------
    menu : Menu
        The chains that may serve it.
    model : str
        The name as asked for.
    prompt : list of int
    length : int
        How many of the text's first tokens are to be computed at first.
    chunk : int, optional
        At most so many in one step.

    Attributes
    ----------
    slots : list of int
        Virtual tokens, prompt, generated.
    job : Job
        How the scheduler sees it.
    option : Option
        The chain that serves it.
    pages : Pages or None
        None while it has not started.
    asked, first, last : float or None
        When it was asked for and when its first and last token came, in seconds.
    """

    handle: Handle[Any]

    def __init__(
        self,
        menu: Menu,
        model: str,
        prompt: list[int],
        length: int,
        chunk: int | None = None,
    ) -> None:
        tenant = menu.exact.tenant
        self.menu = menu
        self.option = menu.exact
        self.answered: list[tuple[Option, int]] = []  # tokens by chains that it has left
        self.model = model
        self.slots = [*tenant.virtual, *prompt]
        self.pages: Pages | None = None
        self.reused: int | None = None
        self.asked = time.perf_counter()
        self.first: float | None = None
        self.last: float | None = None
        self.prompt = len(prompt)
        length += len(tenant.virtual)
        atomic = length if tenant.whole else 0
        self.job = Job(model, tenant.digest, len(self.slots), length, chunk, atomic)

    @property
    def tenant(self) -> Tenant:
        """What runs the chain that serves it."""
        return self.option.tenant

    @property
    def tokens_done(self) -> int:
        """How many tokens of the answer are there."""
        raise NotImplementedError

    @property
    def served(self) -> list[tuple[Option, int]]:
        """The chains that answered, and how many tokens each."""
        before = sum(count for _, count in self.answered)
        return [*self.answered, (self.option, self.tokens_done - before)]

    @property
    def assembly(self) -> str:
        """The names of the chains that answered."""
        return ", ".join(dict.fromkeys(option.name for option, _ in self.served))

    @property
    def settled(self) -> bool:
        """Whether its chain has begun to answer, and can still be had."""
        return self.reused is not None and self.option in self.menu.options

    def move(self, option: Option) -> None:
        """Go on in another chain; it holds no pages."""
        if count := self.served[-1][1]:
            self.answered.append((self.option, count))
        self.option = option

    @property
    def token_seconds(self) -> float | None:
        """Between tokens after the first, on average."""
        count = len(self.slots) - len(self.tenant.virtual) - self.prompt
        if self.first is None or self.last is None or count < 2:
            return None
        return (self.last - self.first) / (count - 1)

    def began(self, pages: Pages) -> None:
        """It has pages now, some of which may stand already."""
        self.pages = pages
        if self.reused is None:
            self.reused = max(pages.starts[-1] - len(self.tenant.virtual), 0)

    @property
    def kept_last(self) -> int:
        """How many of the job's last slots are to be computed even where they stand."""
        raise NotImplementedError

    def outputs(self, end: int) -> int:
        """The logits of how many last slots before `end` are wanted."""
        raise NotImplementedError

    def fail(self, error: BlockzooError) -> None:
        """Tell the caller why there is no answer."""
        self.handle.fail(error)

    def cancelled(self) -> None:
        """Tell the caller that it ended because they asked."""
        raise NotImplementedError


class Generation(Sequence):
    """A request for new tokens.

    Parameters
    ----------
    menu, model, prompt
        See `Sequence`.
    sampling : Sampling
    streamed : bool
        Whether the caller wants pieces as they come.

    Raises
    ------
    UsageError
        Where what is asked for does not fit the context, or needs a tokenizer that is not there.
    """

    def __init__(
        self,
        menu: Menu,
        model: str,
        prompt: list[int],
        sampling: Sampling,
        streamed: bool = False,
    ) -> None:
        tenant = menu.exact.tenant
        self._most = tenant.room(len(prompt), sampling.max_new_tokens)
        if sampling.stops and tenant.tokenizer is None:
            raise UsageError("stop strings need a tokenizer, and it has none")
        super().__init__(menu, model, prompt, len(prompt))
        self.handle: Handle[Completion] = Handle()
        self.streamed = streamed
        self.sampler = Sampler(sampling, _process(tenant, sampling), prompt)
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._sampling = sampling
        self._eos = frozenset() if sampling.ignore_eos else tenant.eos
        self._decode = tenant.tokenizer.decode if tenant.tokenizer else None
        # where nobody looks at the text before its end, it is decoded once
        self._stream = (
            TextStream(self._decode, sampling.stops) if streamed or sampling.stops else None
        )
        self._logprobs: list[float] = []

    @property
    def tokens_done(self) -> int:
        return len(self.tokens)

    @property
    def kept_last(self) -> int:
        return 1

    def outputs(self, end: int) -> int:
        return int(end == len(self.slots))

    def advance(self, choice: Choice) -> None:
        """Take the next token; `finish_reason` says whether it was the last."""
        token = choice.token
        self.last = time.perf_counter()
        if self.first is None:
            self.first = self.last
        self.tokens.append(token)
        self.slots.append(token)
        self.job.length += 1
        self.sampler.push(token)
        if choice.logprob is not None:
            self._logprobs.append(choice.logprob)
        text = self._stream.push(token) if self._stream else ""
        stopped = self._stream is not None and self._stream.stopped
        if token in self._eos or stopped:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self._most:
            self.finish_reason = "length"
        if self.finish_reason is not None and self._stream:
            text += self._stream.finish()
            if self._stream.stopped:  # what was held back completed a stop string
                self.finish_reason = "stop"
        self._tell(text, (token,))

    def must_begin_again(self) -> bool:
        """Whether the model computes the whole text differently from this length on."""
        limit = self.tenant.recompute_after
        if limit is None or len(self.slots) - len(self.tenant.virtual) != limit + 1:
            return False
        self.job.atomic = len(self.slots)
        return True

    def cancelled(self) -> None:
        self.finish_reason = "cancelled"
        self._tell(self._stream.finish() if self._stream else "", ())

    def _tell(self, text: str, tokens: tuple[int, ...]) -> None:
        completion = self._completion() if self.finish_reason is not None else None
        if self.streamed:
            self.handle.put(Piece(text, tokens, completion))
        if completion is not None:
            self.handle.finish(completion)

    def _completion(self) -> Completion:
        assert self.finish_reason is not None
        text = ""
        if self._stream is not None:
            text = self._stream.text
        elif self._decode is not None:
            text = self._decode(self.tokens)
        return Completion(
            text=text,
            token_ids=tuple(self.tokens),
            finish_reason=self.finish_reason,
            model=self.model,
            digest=self.menu.exact.tenant.digest,
            chain=self.tenant.blocks,
            prompt_tokens=self.prompt,
            logprobs=tuple(self._logprobs) if self._sampling.logprobs else None,
            assembly=self.assembly,
            reused_tokens=self.reused or 0,
            first_token_seconds=None if self.first is None else self.first - self.asked,
            token_seconds=self.token_seconds,
        )


class Scoring(Sequence):
    """A request for the likelihood of tokens that are given.

    Parameters
    ----------
    menu, model
        See `Sequence`.
    text : list of int
    first : int
        The first token of it that is scored, 1 or more.

    Raises
    ------
    UsageError
        Where nothing can be scored, or the text does not fit the context.
    """

    def __init__(self, menu: Menu, model: str, text: list[int], first: int) -> None:
        tenant = menu.exact.tenant
        if not 1 <= first < len(text):
            raise UsageError(
                "there is nothing to score",
                hint="the first token has no probability: give two or more",
            )
        tenant.room(len(text) - 1, 1)
        super().__init__(menu, model, text, len(text) - 1, _SCORED_AT_ONCE)
        self.handle: Handle[Scored] = Handle()
        self._first = len(tenant.virtual) + first
        self._logprobs: list[float] = []
        self._greedy = True

    @property
    def _next(self) -> int:
        """The slot whose logits are wanted next."""
        return self._first - 1 + len(self._logprobs)

    @property
    def tokens_done(self) -> int:
        return len(self._logprobs)

    @property
    def kept_last(self) -> int:
        return self.job.length - self._next

    def outputs(self, end: int) -> int:
        return max(end - self._next, 0)

    def advance(self, logits: torch.Tensor) -> bool:
        """Take logits (n, V) of the next slots; False where they are no numbers."""
        count = len(logits)
        ids = self.slots[self._next + 1 : self._next + 1 + count]
        targets = torch.tensor(ids, device=logits.device)
        found = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
        sound = logits.amax(-1).isfinite().all()
        greedy = (logits.argmax(-1) == targets).all()
        *values, is_sound, is_greedy = torch.cat((found, torch.stack((sound, greedy)))).tolist()
        if not is_sound:
            return False
        self._greedy &= bool(is_greedy)
        self._logprobs += values
        self.last = time.perf_counter()
        self.first = self.first or self.last
        if self._next == self.job.length:
            self.handle.finish(
                Scored(
                    token_ids=tuple(self.slots[self._first :]),
                    logprobs=tuple(self._logprobs),
                    greedy=self._greedy,
                    model=self.model,
                    digest=self.menu.exact.tenant.digest,
                    assembly=self.assembly,
                )
            )
        return True

    def cancelled(self) -> None:
        self.handle.fail(UsageError(f"{self.model}: scoring was cancelled"))


def _process(tenant: Tenant, sampling: Sampling) -> Process | None:
    """What is done to logits first; a request's repetition penalty stands for the model's."""
    if sampling.repetition_penalty is None:
        return tenant.process
    process = tenant.process or Process({}, tenant.device)
    return process.with_penalty(sampling.repetition_penalty) or None
