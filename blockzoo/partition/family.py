"""What a family of models is: data that says which tensors make which block and how it runs.

Read by `partition` (tensor names to blocks) and by `execution` (blocks to transformers'
modules). The families themselves are listed in `families.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
class RopeDefaults:
    """How a family's rotary parameters are given where ``rope_parameters`` is not.

    Parameters
    ----------
    theta : float
        The base wavelength where none is given.
    theta_key : str
        The config key that older versions give it under.
    partial_key : str
        Likewise for the fraction of a head that is rotated.
    partial : float, optional
        That fraction where none is given; None leaves it out.
    local_theta : float, optional
        Where sliding layers have rotary parameters of their own, their base wavelength
        (``rope_local_base_freq`` in older versions).
    renamed : dict
        Rope types that transformers takes for others.
    """

    theta: float = 10000.0
    theta_key: str = "rope_theta"
    partial_key: str = "partial_rotary_factor"
    partial: float | None = None
    local_theta: float | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)


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
        Expected tensors of a layer: local name to shape, each dimension a sum of products of
        config values, such as ``"num_attention_heads*head_dim"`` or ``"2*intermediate_size"``
        (``checks.py`` reads them).
    outer_shapes : dict
        Likewise for the tensors outside the layers, by their full names.
    only_if : dict
        Which of the expected tensors exist only under a condition: end of the name to config
        values that must hold.
    experts : str
        The config value that says over how many a ``*`` in an expected name runs.
    defaults : dict
        What transformers takes for config values that are not given, of those that change the
        result.
    aliases : dict
        Config keys that transformers takes for others.
    renames : dict
        Starts of tensor names that transformers reads as others.
    rope : RopeDefaults, optional
        How rotary parameters are found in older configs; None without rotary positions.
    ignored : tuple of str
        Ends of tensor names that transformers leaves out when it loads (buffers of old versions).
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
    layer_types: Callable[[Mapping[str, Any]], list[str]] | None = None
    shapes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    outer_shapes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    only_if: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    experts: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    renames: Mapping[str, str] = field(default_factory=dict)
    rope: RopeDefaults | None = None
    ignored: tuple[str, ...] = ()

    @property
    def base_prefix(self) -> str:
        """What a causal LM's names have before those of the bare model: ``"model."``."""
        return self.root.split(".", 1)[0] + "."
