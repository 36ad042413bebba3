"""What runs a block: a module of transformers' for its spec, one for all blocks that have it.

`Executors` builds each once. An executor holds no weights; `binding.Binding` puts a block's
tensors in its parameter slots before a call.

The layer's keyword arguments (masks, rotary embeddings, the cache) are those that transformers'
own model hands to its layers; see `context.Backbone`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from blockzoo.errors import UnservableError
from blockzoo.execution.context import Backbone
from blockzoo.execution.modules import causal_lm, family_of, parameter_slots, submodule
from blockzoo.execution.stitch import KIND, Stitch
from blockzoo.partition.family import Family, Sublayer
from blockzoo.tensors import canonical_json

#: arguments of whole layers that the attention inside them is not given
_NOT_FOR_ATTENTION = ("encoder_hidden_states", "encoder_attention_mask")


class LayerExecutor:
    """A whole layer, or one residual half of it.

    Parameters
    ----------
    family : Family
    layer : nn.Module
        transformers' layer, parameters on the meta device.
    sublayer : Sublayer or None
        Which half; None for the whole layer.

    Attributes
    ----------
    slots : dict
        Local parameter name to where it is bound: the dictionary and its key.
    leaves : dict of str to nn.Module
        The modules that own parameters, by local name; a linear, norm or embedding each. A
        binding may replace a leaf's ``forward`` for a call.
    """

    def __init__(self, family: Family, layer: nn.Module, sublayer: Sublayer | None) -> None:
        self.family = family
        self.layer = layer
        self._sublayer = sublayer
        paths = [""] if sublayer is None else _module_paths(sublayer)
        self.slots = {
            name: slot
            for name, slot in parameter_slots(layer).items()
            if sublayer is None or name.startswith(tuple(f"{path}." for path in paths))
        }
        self.leaves = {
            name.rpartition(".")[0]: layer.get_submodule(name.rpartition(".")[0])
            for name in self.slots
        }
        self._indexed = [m for m in layer.modules() if hasattr(m, "layer_idx")]
        if sublayer is not None:
            self._norm = layer.get_submodule(sublayer.norm)
            self._ops = [layer.get_submodule(path) for path in sublayer.ops]
            post = sublayer.post_norm
            self._post_norm = layer.get_submodule(post) if post else None

    def run(self, hidden: torch.Tensor, depth: int, arguments: Mapping[str, Any]) -> torch.Tensor:
        """Run the block, its tensors being bound.

        Parameters
        ----------
        hidden : torch.Tensor
            (B, T, width).
        depth : int
            The layer's place in the chain: its place in the cache.
        arguments : mapping
            The keyword arguments of transformers' layer (`Context.arguments`).

        Returns
        -------
        torch.Tensor
            (B, T, width).
        """
        for module in self._indexed:
            module.__dict__["layer_idx"] = depth
        if self._sublayer is None:
            out: torch.Tensor = self.layer(hidden, **arguments)
            return out
        update: torch.Tensor = self._norm(hidden)
        for op in self._ops:
            if self._sublayer.kind == "attention" and op is self._ops[0]:
                given = {k: v for k, v in arguments.items() if k not in _NOT_FOR_ATTENTION}
                update, _ = op(update, **given)
            else:
                update = op(update)
        if self._post_norm is not None:
            update = self._post_norm(update)
        return hidden + update


def _module_paths(sublayer: Sublayer) -> list[str]:
    post = [sublayer.post_norm] if sublayer.post_norm else []
    return [sublayer.norm, *sublayer.ops, *post]


class StitchExecutor:
    """A stitch at one position; ``slots`` and ``leaves`` are as in `LayerExecutor`."""

    def __init__(self, layer: Stitch) -> None:
        self.layer = layer
        self.slots = parameter_slots(layer)
        self.leaves = {
            name.rpartition(".")[0]: layer.get_submodule(name.rpartition(".")[0])
            for name in self.slots
        }

    def run(self, hidden: torch.Tensor, depth: int, arguments: Mapping[str, Any]) -> torch.Tensor:
        """Hidden states (B, T, width) of one model to those of another, (B, T, its width)."""
        out: torch.Tensor = self.layer(hidden)
        return out


class HeadExecutor:
    """The final norm and the LM head: transformers' causal LM over hidden states.

    ``slots`` and ``leaves`` are as in `LayerExecutor`, by full names.
    """

    def __init__(self, family: Family, model: Any) -> None:
        self._tail = _Tail(submodule(model, family.root), family.head)
        _replace(model, family.root, self._tail)
        self.model = model
        self.slots = parameter_slots(model)
        self.leaves = {
            name.rpartition(".")[0]: model.get_submodule(name.rpartition(".")[0])
            for name in self.slots
        }

    def run(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (B, T, V) of hidden states (B, T, width)."""
        self._tail.hidden = hidden
        try:
            logits: torch.Tensor = self.model(input_ids=None, use_cache=False).logits
        finally:
            self._tail.hidden = None
        return logits


class _Tail(nn.Module):
    """Stands in a causal LM where its backbone was: only the modules after the last layer."""

    def __init__(self, backbone: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.hidden: torch.Tensor | None = None
        self._names = [name for name in names if getattr(backbone, name, None) is not None]
        for name in self._names:
            self.add_module(name, getattr(backbone, name))

    def forward(self, *_: Any, **__: Any) -> _Output:
        hidden = self.hidden
        for name in self._names:
            hidden = getattr(self, name)(hidden)
        return _Output(hidden)


class _Output:
    """What a causal LM reads of its backbone's output; all but the hidden states is None."""

    def __init__(self, hidden: torch.Tensor | None) -> None:
        self.last_hidden_state = hidden

    def __getattr__(self, name: str) -> None:
        return None


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rstrip(".").rpartition(".")
    setattr(submodule(model, parent), name, module)


Executor = LayerExecutor | StitchExecutor | HeadExecutor | Backbone


class Executors:
    """Builds executors and keeps them: one for a spec.

    Executors are shared by all chains that are given them, so a call holds ``lock`` from binding
    to result.

    Parameters
    ----------
    attention : str, optional
        Which of transformers' attention functions their modules call. None: its choice.
    """

    def __init__(self, attention: str | None = None) -> None:
        self.lock = threading.RLock()
        self._attention = attention
        self._kept: dict[bytes, Any] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def layer(self, kind: str, spec: Mapping[str, Any]) -> LayerExecutor:
        """The executor of an attention, MLP, MoE or layer block."""
        key = canonical_json([kind, spec])
        with self.lock:
            if key not in self._kept:
                self._kept[key] = self._build_layer(kind, spec)
            kept: LayerExecutor = self._kept[key]
            return kept

    def stitch(self, spec: Mapping[str, Any], at: Sequence[int]) -> StitchExecutor:
        """The executor of a stitch block where it stands.

        Raises
        ------
        UnservableError
            Where it was not fitted for that.
        """
        key = canonical_json([KIND, spec, list(at)])
        with self.lock:
            if key not in self._kept:
                with torch.device("meta"):
                    layer = Stitch.of_spec(spec).stand(at)
                self._kept[key] = StitchExecutor(layer.eval().requires_grad_(False))
            kept: StitchExecutor = self._kept[key]
            return kept

    def _build_layer(self, kind: str, spec: Mapping[str, Any]) -> LayerExecutor:
        family = family_of(spec)
        facts = spec.get("layer", {})
        index = int(facts.get("index", 0))
        types = [facts.get("layer_type")] * (index + 1)
        model = causal_lm(family, spec["config"], types, index + 1, self._attention)
        layer = submodule(model, f"{family.root}{family.layers}{index}")
        if kind == "layer":
            return LayerExecutor(family, layer, None)
        for sublayer in family.sublayers:
            if sublayer.kind == kind:
                return LayerExecutor(family, layer, sublayer)
        raise UnservableError(f"the family {family.name} has no blocks of the kind {kind!r}")

    def backbone(self, spec: Mapping[str, Any], layer_types: Sequence[str | None]) -> Backbone:
        """The executor of an embedding block.

        Parameters
        ----------
        spec : mapping
            The embedding block's.
        layer_types : sequence of str or None
            The distinct kinds of attention in the chain; ``[None]`` where there is but one.
        """
        key = canonical_json(["embedding", spec, list(layer_types)])
        with self.lock:
            if key not in self._kept:
                family = family_of(spec)
                count = len(layer_types)
                model = causal_lm(family, spec["config"], layer_types, count, self._attention)
                self._kept[key] = Backbone(family, model, layer_types)
            kept: Backbone = self._kept[key]
            return kept

    def head(self, spec: Mapping[str, Any]) -> HeadExecutor:
        """The executor of a head block."""
        key = canonical_json(["head", spec])
        with self.lock:
            if key not in self._kept:
                family = family_of(spec)
                layer_type = "full_attention" if family.layer_types is not None else None
                model = causal_lm(family, spec["config"], [layer_type], 1)
                self._kept[key] = HeadExecutor(family, model)
            kept: HeadExecutor = self._kept[key]
            return kept


#: the executors of this process
EXECUTORS = Executors()
