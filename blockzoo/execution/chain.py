"""A model as a chain of blocks that runs.

The runtime calls `RunnableChain` for each step of a tenant's batch; certification runs whole
texts through it. It keeps no weights: each hop takes its tensors from the `TensorSource` when
its turn comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from blockzoo.errors import UnservableError, UsageError
from blockzoo.execution.compile import Compiled, compile_chain
from blockzoo.execution.context import Context
from blockzoo.execution.executor import EXECUTORS, Executors
from blockzoo.execution.modules import configuration, family_of
from blockzoo.execution.tensors import TensorSource
from blockzoo.partition import why_not_served
from blockzoo.records import Block, Model
from blockzoo.tensors import TensorRef


class RunnableChain:
    """Runs one model.

    Parameters
    ----------
    model : Model
        A causal LM, or an adapter attached to one.
    blocks : mapping of str to Block
        By digest: every block of the chain, adapter blocks too.
    config : mapping
        The model's config.json; for an adapter, its base's.
    tensors : TensorSource
        Where the chain's tensors come from, in compute dtype and device.
    executors : Executors, optional
        The process's by default.

    Raises
    ------
    UnservableError
        Where the model cannot be run exactly; the message names why.

    Notes
    -----
    Calls take turns: executors are shared by all chains of a process.
    """

    def __init__(
        self,
        model: Model,
        blocks: Mapping[str, Block],
        config: Mapping[str, Any],
        tensors: TensorSource,
        *,
        executors: Executors = EXECUTORS,
    ) -> None:
        self._tensors = tensors
        self._executors = executors
        if reason := why_not_served(model, blocks, config):
            hint = "ingest the base, then the adapter again with --base" if model.detached else None
            raise UnservableError(f"the model cannot be run exactly: {reason}", hint=hint)
        family = family_of(blocks[model.chain[0].block].spec)
        self._config = configuration(config.get("model_type", family.model_types[0]), config)
        with executors.lock:
            layers = self._config.num_hidden_layers
            self._compiled: Compiled = compile_chain(model, blocks, layers, executors)
        self._recompute_after = _longrope_limit(self._config)

    @property
    def compiled(self) -> Compiled:
        """Each hop's executor and tensors, for those who run several chains at once."""
        return self._compiled

    @property
    def max_positions(self) -> int | None:
        """How many tokens fit before a learned position table ends; None where there is none.

        Virtual tokens of an adapter are already taken off.
        """
        return self._compiled.max_positions

    @property
    def context_length(self) -> int | None:
        """For how many tokens the model was made, by its config; None where that does not say."""
        told = getattr(self._config, "max_position_embeddings", None)
        limits = [limit for limit in (told, self.max_positions) if limit]
        return min(limits) if limits else None

    @property
    def recompute_after(self) -> int | None:
        """The length past which a cache filled before no longer fits; None for most models.

        Longrope models change their rotary factors there. A text that grows past it is to be
        run whole, in one call with a new cache, as transformers' ``generate`` does.
        """
        return self._recompute_after

    def refs(self) -> Iterator[TensorRef]:
        """Every tensor that a call uses, adapters' too; one may come up more than once."""
        for _, _, binding in self._compiled.parts():
            yield from binding.refs()
        prefix = self._compiled.virtual
        if prefix is not None:
            yield from prefix.refs()

    def new_cache(self) -> Any:
        """An empty cache, transformers' `DynamicCache` with the layers this model needs."""
        from transformers import DynamicCache

        virtual = self._compiled.virtual
        if virtual is not None and virtual.plain_cache:
            return DynamicCache()
        return DynamicCache(config=self._config)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: Any = None,
        *,
        logits_to_keep: int = 1,
    ) -> torch.Tensor:
        """Run tokens through the chain.

        Parameters
        ----------
        input_ids : torch.Tensor
            (B, T) int64: the tokens not yet in the cache.
        attention_mask : torch.Tensor, optional
            (B, past + T): 1 for tokens, 0 for padding on the left. Positions count the tokens,
            as in transformers' ``generate``. An adapter's virtual tokens are not in it.
        cache : transformers' Cache, optional
            From `new_cache`; grows by T. None: none is kept.
        logits_to_keep : int
            The logits of how many last positions are wanted; 0 for all T.

        Returns
        -------
        torch.Tensor
            Logits (B, kept, V), float32.

        Raises
        ------
        UsageError
            Where the text is longer than the model's learned positions.
        """
        with torch.no_grad(), self._executors.lock:
            context = self.begin(input_ids, attention_mask, cache)
            hidden = context.hidden
            for hop in self._compiled.hops:
                with hop.binding.bound(self._tensors):
                    hidden = hop.executor.run(hidden, hop.depth, context.of(hop.layer_type))
            return self.end(hidden[:, -(logits_to_keep or input_ids.shape[1]) :])

    __call__ = forward

    def begin(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: Any = None,
    ) -> Context:
        """The embedding hop: hidden states, and what the layers are given beside them.

        For those who take a text through a chain hop by hop (`passage`); parameters are those
        of `forward`. Then each of ``compiled.hops`` runs, then `end`.
        """
        compiled, tensors = self._compiled, self._tensors
        virtual = compiled.virtual
        if cache is None and virtual is not None and virtual.needs_cache:
            cache = self.new_cache()
        batch, length = input_ids.shape
        past = cache.get_seq_length() if cache is not None else 0
        prompt = None
        positions: torch.Tensor | None
        # tokens of the text in the cache, without an adapter's
        past_text = past - virtual.tokens if virtual is not None and past else past
        self._check_length(past_text, length)
        if attention_mask is None:
            positions = torch.arange(past_text, past_text + length, device=input_ids.device)[None]
        else:
            positions = attention_mask.long().cumsum(-1) - 1
            positions = positions.masked_fill(attention_mask == 0, 0)[:, -length:]
        with torch.no_grad(), self._executors.lock:
            if virtual is not None:
                attention_mask, positions, prompt = virtual.prepare(
                    tensors, batch, past, attention_mask, positions, cache
                )
            with compiled.embedding.bound(tensors):
                embedded = None
                if prompt is not None:
                    tokens = compiled.backbone.tokens(input_ids)
                    prompts = prompt.to(tokens.dtype).expand(batch, *prompt.shape)
                    embedded = torch.cat((prompts, tokens), dim=1)
                return compiled.backbone.run(input_ids, attention_mask, positions, cache, embedded)

    @contextmanager
    def hop(
        self, number: int, *, grad: bool = False
    ) -> Iterator[Callable[[torch.Tensor, Context], torch.Tensor]]:
        """One of ``compiled.hops`` with its tensors in memory inside, and not outside.

        With ``grad``, gradients go back through it to its input, its own tensors staying what
        they are; these stay in memory until then.

        Yields
        ------
        callable
            (hidden states (B, T, width), the `Context` of their text) to (B, T, width).
        """
        hop = self._compiled.hops[number]
        with (
            torch.set_grad_enabled(grad),
            self._executors.lock,
            hop.binding.bound(self._tensors),
        ):
            yield lambda hidden, context: hop.executor.run(
                hidden, hop.depth, context.of(hop.layer_type)
            )

    def end(self, hidden: torch.Tensor, *, grad: bool = False) -> torch.Tensor:
        """The head hop: logits (B, T, V), float32, of hidden states (B, T, width).

        With ``grad``, gradients go back through it, as in `hop`.
        """
        compiled = self._compiled
        with (
            torch.set_grad_enabled(grad),
            self._executors.lock,
            compiled.head.bound(self._tensors),
        ):
            return compiled.tail.run(hidden).float()

    def _check_length(self, past: int, length: int) -> None:
        most = self.max_positions
        if most is not None and past + length > most:
            raise UsageError(
                f"the text has {past + length} tokens, but the model's learned "
                f"positions end at {most}",
                hint="shorten the prompt or ask for fewer new tokens",
            )
        limit = self._recompute_after
        if limit is not None and 0 < past <= limit < past + length:
            raise UnservableError(
                f"the text grows past {limit} tokens, where this model changes its rotary "
                "factors and what the cache holds no longer fits",
                hint="run the whole text in one call with a new cache",
            )


def _longrope_limit(config: Any) -> int | None:
    """Up to how many tokens a longrope model uses its short factors; None for other models."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return None
    limit = rope.get("original_max_position_embeddings")
    return int(limit) if limit is not None else None
