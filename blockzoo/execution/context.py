"""What surrounds the layers of a chain: embeddings, positions, masks and rotary embeddings.

All of it is transformers' own code: `Backbone` is the family's model with recorders where its
layers were. One call embeds the tokens and records what each kind of layer would be given; the
chain hands that to its blocks. So masks (causal, sliding, padded), rotary embeddings (scaled,
local, global), learned positions and embedding scales are right by construction.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from blockzoo.execution.modules import parameter_slots, submodule
from blockzoo.partition.family import Family


@dataclass(frozen=True)
class Context:
    """What a chain's layers work on in one call.

    Parameters
    ----------
    hidden : torch.Tensor
        The embedded tokens, (B, T, width); T counts virtual tokens put before them.
    arguments : mapping
        For each kind of attention, the keyword arguments of transformers' layer: attention
        mask, rotary embeddings, position ids, cache.
    """

    hidden: torch.Tensor
    arguments: Mapping[str | None, Mapping[str, Any]]

    def of(self, layer_type: str | None) -> Mapping[str, Any]:
        """The arguments of one kind of attention; none for blocks that have no attention."""
        return self.arguments.get(layer_type, {})


class Backbone:
    """The executor of embedding blocks.

    Parameters
    ----------
    family : Family
    model : transformers' causal LM
        With one layer for each of ``layer_types``, parameters on the meta device. Taken over.
    layer_types : sequence of str or None

    Attributes
    ----------
    slots, leaves
        As in `executor.LayerExecutor`, by full names such as ``"model.embed_tokens.weight"``.
    """

    def __init__(self, family: Family, model: Any, layer_types: Sequence[str | None]) -> None:
        self.family = family
        self.layer_types = tuple(layer_types)
        self.model = submodule(model, family.root)
        layers = submodule(self.model, family.layers)
        assert isinstance(layers, nn.ModuleList)
        self._recorders = [_Recorder(layer) for layer in layers]
        for i, recorder in enumerate(self._recorders):
            layers[i] = recorder
        for name in family.head:
            if getattr(self.model, name, None) is not None:
                setattr(self.model, name, nn.Identity())
        self.slots = {
            f"{family.root}{name}": slot for name, slot in parameter_slots(self.model).items()
        }
        self.leaves = {
            name.rpartition(".")[0]: model.get_submodule(name.rpartition(".")[0])
            for name in self.slots
        }
        self.tokens = submodule(self.model, family.tokens)
        self._dynamic = [
            (module.__dict__, dict(module.__dict__), module._buffers, dict(module._buffers))
            for module in self.model.modules()
            if "dynamic" in str(getattr(module, "rope_type", ""))
        ]

    def run(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        cache: Any,
        embedded: torch.Tensor | None = None,
    ) -> Context:
        """Embed tokens and make what the layers need, the block's tensors being bound.

        Parameters
        ----------
        input_ids : torch.Tensor
            (B, T) int64.
        attention_mask : torch.Tensor or None
            (B, past + P + T), 0 at padding. None where there is none.
        position_ids : torch.Tensor or None
            (B or 1, P + T). None: counted from what the cache holds, as transformers does.
        cache : transformers' Cache or None
        embedded : torch.Tensor, optional
            (B, P + T, width of the embedding): what stands for the tokens, such as virtual ones
            of an adapter and those of `tokens`. None: the tokens are looked up.
        """
        for state, first_state, buffers, first_buffers in self._dynamic:
            # dynamic scaling remembers the longest text it saw, which may be another tenant's
            state.update(first_state)
            buffers.update(first_buffers)
        given: dict[str, Any] = {"input_ids": input_ids}
        if embedded is not None:
            given = {"inputs_embeds": embedded}
        hidden: torch.Tensor = self.model(
            **given,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        recorded = [recorder.take() for recorder in self._recorders]
        return Context(hidden, dict(zip(self.layer_types, recorded, strict=True)))


class _Recorder(nn.Module):
    """Stands where a layer was: keeps what it is given, changes nothing."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        # the first parameter is the hidden states
        self._names = list(inspect.signature(layer.forward).parameters)[1:]
        self._given: dict[str, Any] = {}

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._given = dict(zip(self._names, args, strict=False)) | kwargs
        return hidden

    def take(self) -> dict[str, Any]:
        given, self._given = self._given, {}
        return given
