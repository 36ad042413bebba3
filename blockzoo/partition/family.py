"""What a family of models is: data that says which tensors make which block and how it runs.

Read by `partition` (tensor names to blocks) and by `execution` (blocks to transformers'
modules). The families themselves are listed in `families.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sublayer:
    """One residual half of a layer: ``x + post_norm(ops(norm(x)))``.

    Parameters
    ----------
    kind : str
        ``"attention"``, ``"mlp"`` or ``"moe"``.
    norm : str
        The module, inside the layer, that normalises the input.
    ops : tuple of str
        The modules applied in order; the first of an attention is the attention itself.
    post_norm : str, optional
        A module that normalises the result before it is added.
    stored : tuple of str
        Further prefixes that checkpoints use for tensors of this half, where they differ from
        the module names (Mixtral's ``block_sparse_moe.``).
    """

    kind: str
    norm: str
    ops: tuple[str, ...]
    post_norm: str | None = None
    stored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """A family: one entry serves partition and execution.

    Parameters
    ----------
    name : str
    model_types : tuple of str
        Values of ``model_type`` in config.json.
    root : str
        transformers' attribute for the model without its head, with a dot: ``"model."``.
        Checkpoints saved without it are read as well.
    layers : str
        The module list of layers under the root, with a dot: ``"layers."``.
    tokens : str
        The token embedding under the root.
    head : tuple of str
        Modules under the root applied after the last layer, in order; absent ones are skipped.
        The LM head itself, ``lm_head``, stands outside the root and comes last.
    sublayers : tuple of Sublayer
        Empty: the layer is not split and becomes one ``layer`` block.
    split_if : dict
        Config values that must hold for the split (else whole layers).
    positions : str, optional
        A learned position table under the root.
    project : str, optional
        A module under the root applied to the token embedding before positions are added.
    cache_argument : str
        The name of the layer's (or attention's) argument for the KV cache.
    layer_types : callable, optional
        ``config -> list of str``: which attention each layer has where the config does not
        say so itself.
    shapes : dict
        Expected shapes: local tensor name to config expressions, such as
        ``{"self_attn.q_proj.weight": ("num_attention_heads*head_dim", "hidden_size")}``.
    """

    name: str
    model_types: tuple[str, ...]
    root: str
    layers: str
    tokens: str
    head: tuple[str, ...]
    sublayers: tuple[Sublayer, ...] = ()
    split_if: Mapping[str, Any] = field(default_factory=dict)
    positions: str | None = None
    project: str | None = None
    cache_argument: str = "past_key_values"
    layer_types: Any = None
    shapes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
