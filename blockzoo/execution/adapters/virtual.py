"""Prefix and prompt tuning: virtual tokens before the text, placed as PEFT's ``generate`` does.

A prefix is keys and values put in the cache before the first call; a prompt is embeddings put
before the first tokens. Both lengthen every attention mask. PEFT counts a text's positions on
from a prefix; with a prompt it leaves counting to the model, which then counts padding too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch

from blockzoo.errors import UnservableError
from blockzoo.execution.tensors import TensorSource
from blockzoo.records import Block
from blockzoo.tensors import TensorRef

Prepared = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


class VirtualTokens(Protocol):
    """What a prefix or a prompt does to a call."""

    #: how many there are
    tokens: int
    #: whether a call without a cache needs one all the same
    needs_cache: bool
    #: whether PEFT gives the model a cache without sliding layers
    plain_cache: bool

    def refs(self) -> Iterable[TensorRef]: ...

    def prepare(
        self,
        source: TensorSource,
        batch: int,
        past: int,
        attention_mask: torch.Tensor | None,
        positions: torch.Tensor,
        cache: Any,
    ) -> Prepared:
        """What the backbone is given instead: attention mask, positions, prompt."""
        ...


class Prompt:
    """Prompt tuning (arXiv 2104.08691), and P-tuning as PEFT saves it.

    Parameters
    ----------
    embeddings : TensorRef
        (tokens, width of the embedding).
    """

    needs_cache = False
    plain_cache = False

    def __init__(self, embeddings: TensorRef) -> None:
        self._ref = embeddings
        self.tokens = embeddings.shape[0]

    def refs(self) -> Iterable[TensorRef]:
        return (self._ref,)

    def embeddings(self, source: TensorSource) -> torch.Tensor:
        """(tokens, width of the embedding)."""
        return source.tensor(self._ref)

    def prepare(
        self,
        source: TensorSource,
        batch: int,
        past: int,
        attention_mask: torch.Tensor | None,
        positions: torch.Tensor,
        cache: Any,
    ) -> Prepared:
        prompt = self.embeddings(source) if past == 0 else None
        return _longer(attention_mask, self.tokens), None, prompt


class Prefix:
    """Prefix tuning (arXiv 2101.00190).

    Parameters
    ----------
    keys_values : TensorRef
        (tokens, layers · 2 · heads · head width).
    layers, heads : int
    plain_cache : bool
    """

    needs_cache = True

    def __init__(self, keys_values: TensorRef, layers: int, heads: int, plain_cache: bool) -> None:
        self._ref = keys_values
        self._layers = layers
        self._heads = heads
        self.tokens = keys_values.shape[0]
        self.plain_cache = plain_cache

    def refs(self) -> Iterable[TensorRef]:
        return (self._ref,)

    def keys_values(self, source: TensorSource) -> torch.Tensor:
        """(layers, 2, heads, tokens, head width)."""
        stored = source.tensor(self._ref)
        split = stored.view(self.tokens, self._layers, 2, self._heads, -1)
        return split.permute(1, 2, 3, 0, 4)

    def prepare(
        self,
        source: TensorSource,
        batch: int,
        past: int,
        attention_mask: torch.Tensor | None,
        positions: torch.Tensor,
        cache: Any,
    ) -> Prepared:
        if past == 0:
            for layer, (keys, values) in enumerate(self.keys_values(source)):
                shape = (batch, -1, -1, -1)
                cache.update(keys[None].expand(shape), values[None].expand(shape), layer)
        return _longer(attention_mask, self.tokens), positions + self.tokens, None


def _longer(attention_mask: torch.Tensor | None, tokens: int) -> torch.Tensor | None:
    if attention_mask is None:
        return None
    return torch.cat((attention_mask.new_ones(len(attention_mask), tokens), attention_mask), dim=1)


def virtual_tokens(adapter: Block, family: str, layers: int) -> VirtualTokens | None:
    """What the adapter block puts before a text; None where it is of another type.

    Parameters
    ----------
    adapter : Block
    family : str
        The base's.
    layers : int
        How many the chain has.
    """
    kind = adapter.spec.get("type")
    if kind not in _MAKERS:
        return None
    facts = _facts(adapter)
    ref = adapter.tensors.get("prompt_embeddings")
    if ref is None:
        raise UnservableError("the adapter has no prompt_embeddings")
    return _MAKERS[str(kind)](ref, facts, family, layers)


def _facts(adapter: Block) -> Mapping[str, Any]:
    return {**adapter.spec, **adapter.spec.get("config", {})}


def _prompt(ref: TensorRef, facts: Mapping[str, Any], family: str, layers: int) -> Prompt:
    return Prompt(ref)


def _prefix(ref: TensorRef, facts: Mapping[str, Any], family: str, layers: int) -> Prefix:
    if facts["num_layers"] != layers:
        raise UnservableError(
            f"the prefix is for {facts['num_layers']} layers, the model has {layers}"
        )
    return Prefix(ref, layers, facts["num_attention_heads"], not family.startswith("gemma"))


_Maker = Callable[[TensorRef, Mapping[str, Any], str, int], VirtualTokens]

_MAKERS: dict[str, _Maker] = {
    "prefix_tuning": _prefix,
    "prompt_tuning": _prompt,
    "p_tuning": _prompt,
}
