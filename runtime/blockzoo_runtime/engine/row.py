"""One request while it runs: its tokens, its sampler, its text, and when it is done."""

from __future__ import annotations

import torch

from blockzoo_runtime.engine.processors import Process
from blockzoo_runtime.engine.request import Completion, FinishReason, Piece, Sampling
from blockzoo_runtime.engine.sampling import Sampler, logprob
from blockzoo_runtime.engine.text import Decode, TextStream


class Row:
    """A request of one tenant: a row of its batch.

    Parameters
    ----------
    index : int
        Its place among the call's requests.
    name : str
    prompt : list of int
    sampling : Sampling
    most : int
        How many tokens to generate.
    eos : frozenset of int
        The model's end tokens.
    decode : callable, optional
        Token ids to text; None without a tokenizer.
    process : callable, optional
        What the model's own generation config does to logits first, given all tokens so far.
    """

    def __init__(
        self,
        index: int,
        name: str,
        prompt: list[int],
        sampling: Sampling,
        most: int,
        eos: frozenset[int],
        decode: Decode | None,
        process: Process | None = None,
    ) -> None:
        self.index = index
        self.name = name
        self.prompt = prompt
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._sampling = sampling
        self._most = most
        self._eos = frozenset() if sampling.ignore_eos else eos
        self._sampler = Sampler(sampling)
        self._process = process
        self._stream = TextStream(decode, sampling.stops)
        self._logprobs: list[float] = []

    @property
    def ids(self) -> list[int]:
        """Prompt and generated tokens."""
        return self.prompt + self.tokens

    @property
    def last(self) -> int:
        return self.tokens[-1]

    def advance(self, logits: torch.Tensor) -> str:
        """Choose the next token from logits (V,) float32; returns the text that is certain now."""
        scores = self._process(self.ids, logits) if self._process else logits
        token = self._sampler.choose(scores)
        self.tokens.append(token)
        if self._sampling.logprobs:
            self._logprobs.append(logprob(logits, token))
        text = self._stream.push(token)
        if token in self._eos or self._stream.stopped:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self._most:
            self.finish_reason = "length"
        if self.finish_reason is not None:
            text += self._stream.finish()
            if self._stream.stopped:  # what was held back completed a stop string
                self.finish_reason = "stop"
        return text

    def piece(self, text: str, digest: str, chain: tuple[str, ...]) -> Piece:
        """The step just taken, with the completion where it was the last."""
        completion = None
        if self.finish_reason is not None:
            completion = Completion(
                text=self._stream.text,
                token_ids=tuple(self.tokens),
                finish_reason=self.finish_reason,
                model=self.name,
                digest=digest,
                chain=chain,
                prompt_tokens=len(self.prompt),
                logprobs=tuple(self._logprobs) if self._sampling.logprobs else None,
            )
        return Piece(text, (self.last,), completion)
