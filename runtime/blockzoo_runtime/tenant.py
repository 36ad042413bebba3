"""A model ready to answer: its chain, what it needs, its tokenizer, its limits."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from blockzoo.errors import UsageError
from blockzoo.execution.compile import Compiled
from blockzoo.records import Model
from blockzoo_runtime.blocks.needs import Needs
from blockzoo_runtime.engine.processors import Process
from blockzoo_runtime.engine.request import MAX_NEW_TOKENS, Prompt
from blockzoo_runtime.kv.layout import Layout
from blockzoo_runtime.tokenizer import Tokenizer


@dataclass(frozen=True)
class Tenant:
    """What serves the requests for one model.

    Parameters
    ----------
    digest : str
        The model's.
    model : Model
    compiled : Compiled
        The chain's executors and what they are bound to.
    recompute_after : int or None
        See `RunnableChain.recompute_after`.
    blocks : tuple of str
        Digests of the chain's blocks, each followed by its adapters.
    dtype : torch.dtype
        Of the computation.
    device : torch.device
    needs : Needs
        The tensors that a step uses.
    lane : hashable
        Equal for tenants whose rows may run together.
    layout : Layout
        Of its keys and values.
    upstream : tuple of str or None
        For each hop group a digest over all that its keys, values and results depend on besides
        tokens. None: nothing is shared between requests.
    virtual : tuple of int
        What stands before a text: the virtual tokens of an adapter, as negative ids.
    tokenizer : Tokenizer or None
    eos : frozenset of int
    process : callable or None
        See `processors`.
    vocabulary : int
        How many token ids there are.
    context : int or None
        How many tokens fit.
    whole : bool
        Whether a prompt must be computed in one step, and by itself.
    """

    digest: str
    model: Model
    compiled: Compiled
    recompute_after: int | None
    blocks: tuple[str, ...]
    dtype: torch.dtype
    device: torch.device
    needs: Needs
    lane: Hashable
    layout: Layout
    upstream: tuple[str, ...] | None
    virtual: tuple[int, ...]
    tokenizer: Tokenizer | None
    eos: frozenset[int]
    process: Process | None
    vocabulary: int
    context: int | None
    whole: bool

    def encode(self, prompt: Prompt) -> list[int]:
        """A prompt's token ids.

        Raises
        ------
        UsageError
            For text without a tokenizer, messages without a chat template, ids outside the
            vocabulary, or nothing at all.
        """
        ids = self._ids(prompt)
        if not ids:
            raise UsageError("the prompt is empty", hint="give at least one token")
        if wrong := [i for i in ids if not 0 <= i < self.vocabulary]:
            raise UsageError(
                f"token id {wrong[0]} is not in the vocabulary of {self.vocabulary:,} tokens"
            )
        return ids

    def _ids(self, prompt: Prompt) -> list[int]:
        if not isinstance(prompt, str):
            items = _items(prompt)
            if not items or not isinstance(items[0], Mapping):
                return _integers(items)
        if self.tokenizer is None:
            raise UsageError(
                "it has no tokenizer, neither has its base" if self.model.base
                else "it has no tokenizer",
                hint="give the prompt as token ids: [1, 17, 42], or --ids -p '1 17 42'",
            )  # fmt: skip
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        return self.tokenizer.encode_chat(items)

    def room(self, prompt: int, wanted: int | None) -> int:
        """How many tokens to generate after a prompt of so many.

        Parameters
        ----------
        prompt : int
        wanted : int or None
            None: `MAX_NEW_TOKENS`, or fewer where the context ends before.

        Raises
        ------
        UsageError
            Where what is wanted does not fit the context.
        """
        if self.context is None:
            return wanted or MAX_NEW_TOKENS
        room = self.context - prompt
        if room < (wanted or 1):
            raise UsageError(
                f"{prompt} prompt tokens and {wanted or 1} new ones do not fit its context of "
                f"{self.context} tokens",
                hint=f"ask for at most {room} new tokens" if room > 0 else "shorten the prompt",
            )
        return wanted or min(room, MAX_NEW_TOKENS)


def _items(prompt: Any) -> list[Any]:
    try:
        return list(prompt)
    except TypeError:
        raise UsageError(
            f"a prompt is text, token ids or chat messages, not {type(prompt).__name__}"
        ) from None


def _integers(items: list[Any]) -> list[int]:
    try:
        return [operator.index(item) for item in items]
    except TypeError:
        raise UsageError(
            "a prompt is text, token ids or chat messages, "
            f"not a list with {type(items[0]).__name__} in it"
        ) from None
