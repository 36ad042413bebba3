"""The models of a zoo that have been asked for."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch

from blockzoo.errors import BlockzooError, UnservableError
from blockzoo.execution.chain import RunnableChain
from blockzoo.execution.compile import Compiled
from blockzoo.execution.executor import Executors
from blockzoo.execution.modules import configuration
from blockzoo.execution.stitch import KIND
from blockzoo.records import Model
from blockzoo.tensors import bytes_digest, canonical_json
from blockzoo.zoo import Zoo
from blockzoo_runtime.assembly.certified import Certified
from blockzoo_runtime.assembly.menu import Menu, parse_assembly
from blockzoo_runtime.blocks.needs import needs_of
from blockzoo_runtime.blocks.resident import ResidentTensors
from blockzoo_runtime.dtypes import own_dtype
from blockzoo_runtime.engine.processors import processing
from blockzoo_runtime.kv import attention
from blockzoo_runtime.kv.layout import Group, Layout
from blockzoo_runtime.tenant import Tenant
from blockzoo_runtime.tokenizer import Tokenizers

#: rotary embeddings that depend on how long the text is
_LENGTH_IS_HEARD = ("dynamic", "longrope")

#: how many groups a chain's layers are cut into, each with pages of its own
_GROUPS = 4


class Tenants:
    """The models of a zoo that have been asked for.

    Parameters
    ----------
    zoo : Zoo
    resident : ResidentTensors
    dtype : torch.dtype or None
        None: each checkpoint's own.
    any_text : bool
        Whether certificates count that name no text of the tenant's own domain.
    """

    def __init__(
        self,
        zoo: Zoo,
        resident: ResidentTensors,
        dtype: torch.dtype | None,
        any_text: bool = False,
    ) -> None:
        self._zoo = zoo
        self._resident = resident
        self._dtype = dtype
        self._tokenizers = Tokenizers(zoo)
        self._loaded: dict[str, Tenant] = {}
        self._names: dict[str, str] = {}
        self._lock = threading.RLock()
        attention.register()
        self._executors = Executors(attention.NAME)
        self._certified = Certified(zoo, self._make, any_text)
        self._variants: dict[str, Tenant] = {}

    def __iter__(self) -> Any:
        # others may be loaded meanwhile
        return iter([*self._loaded.copy().items(), *self._variants.copy().items()])

    def knows(self, digest: str) -> bool:
        """Whether some name that was asked for means this model."""
        return digest in self._loaded or digest in self._variants

    def names(self, digest: str) -> list[str]:
        """The names by which a loaded model was last asked for, and for a certified chain which."""
        if digest in self._variants:
            model, chain = self._certified.names(digest) or ("", "")
            return [f"{name} {chain}" for name in self.names(model)]
        return sorted(name for name, meant in list(self._names.items()) if meant == digest)

    def get(self, name: str) -> Tenant:
        """The tenant that a name means now.

        Raises
        ------
        NotFoundError
        UnservableError
            Where the model cannot be run exactly; the message names the model and why.
        """
        with self._lock:
            digest = self._zoo.resolve(name)
            before = self._names.get(name)
            if digest not in self._loaded:
                try:
                    self._loaded[digest] = self._make(self._zoo.model(digest))
                except BlockzooError as error:
                    raise type(error)(f"{name}: {error.message}", hint=error.hint) from error
            self._names[name] = digest
            if before and before != digest and not self.names(before):
                del self._loaded[before]
                self._resident.forget(before)
                for chain in self._certified.forget(before):
                    self._variants.pop(chain, None)
                    self._resident.forget(chain)
            return self._loaded[digest]

    def menu(self, name: str, assembly: str) -> Menu:
        """The chains that a request for a name may get.

        Parameters
        ----------
        name : str
        assembly : str
            See `parse_assembly`.

        Raises
        ------
        UsageError
            Where there is no such assembly.
        NotFoundError, UnservableError
            As `get`.
        """
        at_most = parse_assembly(assembly)
        with self._lock:
            menu = self._certified.menu(name, self.get(name), at_most)
            for option in menu.options[1:]:
                self._variants[option.tenant.digest] = option.tenant
            return menu

    def _make(self, model: Model, dtype: torch.dtype | None = None) -> Tenant:
        zoo = self._zoo
        if model.detached:
            wants = f" {model.wants!r}" if model.wants else ""
            raise UnservableError(
                f"it is an adapter, and its base model{wants} is not in the zoo",
                hint="ingest the base, then the adapter again (with --base NAME)",
            )
        base = zoo.model(model.base) if model.base else None
        config = zoo.config(base or model)
        blocks = zoo.blocks_of(model)
        dtype = dtype or self._dtype or own_dtype(config, model, blocks)
        source = self._resident.source(dtype)
        chain = RunnableChain(model, blocks, config, source, executors=self._executors)
        compiled = chain.compiled
        full = configuration(config["model_type"], config)
        generation = zoo.file(base or model, "generation_config.json")
        try:
            asked = dict(json.loads(bytes(generation))) if generation is not None else None
            process = processing(asked or {}, self._resident.device)
        except (ValueError, TypeError) as error:  # no JSON, or what transformers does not take
            raise UnservableError(
                f"its generation_config.json cannot be applied: {error}"
            ) from error
        eos = (
            asked.get("eos_token_id") if asked is not None else getattr(full, "eos_token_id", None)
        )
        limits = [_context(full), chain.max_positions]
        layout = _layout(full, compiled, dtype)
        whole = any(kind in _LENGTH_IS_HEARD for kind in _rope_types(full))
        virtual = compiled.virtual.tokens if compiled.virtual is not None else 0
        executors = tuple(id(executor) for executor, _, _ in compiled.parts())
        return Tenant(
            digest=model.digest,
            model=model,
            compiled=compiled,
            recompute_after=chain.recompute_after,
            blocks=tuple(part for hop in model.chain for part in (hop.block, *hop.adapters)),
            dtype=dtype,
            device=self._resident.device,
            needs=needs_of(compiled, dtype, self._resident.device),
            lane=(executors, layout),
            layout=layout,
            upstream=None if whole else _upstream(model, compiled, layout),
            virtual=tuple(-1 - i for i in range(virtual)),
            tokenizer=self._tokenizers.of(model, base),
            eos=frozenset([eos] if isinstance(eos, int) else eos or ()),
            process=process,
            vocabulary=full.vocab_size,
            context=min((n for n in limits if isinstance(n, int)), default=None),
            whole=whole,
        )


def _layout(config: Any, compiled: Compiled, dtype: torch.dtype) -> Layout:
    """How the keys and values of a chain lie in pages; cut where a stitch stands, too."""
    layers = config.num_hidden_layers
    groups = min(_GROUPS, layers)
    stitches = {hop.depth for hop in compiled.hops if hop.block.kind == KIND}
    cuts = sorted({layers * i // groups for i in range(groups + 1)} | stitches)
    shapes = {hop.depth: config for hop in compiled.hops}
    if stitches:
        for hop in compiled.hops:
            if hop.block.kind != KIND:
                shapes[hop.depth] = configuration(config.model_type, hop.block.spec["config"])
    return Layout(
        tuple(_group(shapes[first], last - first) for first, last in pairwise(cuts)), dtype
    )


def _group(config: Any, layers: int) -> Group:
    """A group of layers whose shape a configuration tells."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Group(layers, heads, width, width, config.hidden_size)


def _upstream(model: Model, compiled: Compiled, layout: Layout) -> tuple[str, ...]:
    """For each hop group, a digest over every block and adapter up to its end."""
    first, *middle, _ = model.chain
    seen = [str(layout.dtype), first.block, *first.adapters]
    result: list[str] = []
    depth_of: dict[str, int] = {}
    for hop in middle:  # a stitch belongs to the layer after it
        after = 1 + max(depth_of.values(), default=-1)
        depth_of[hop.name] = after if hop.kind == KIND else int(hop.name.split(".")[1])
    for group in range(len(layout.groups)):
        for hop in middle:
            depth = depth_of[hop.name]
            if depth < layout.layers and layout.group_of(depth)[0] == group:
                seen += [hop.name, *map(str, hop.at), hop.block, *hop.adapters]
        result.append(bytes_digest(canonical_json(seen)))
    return tuple(result)


def _context(config: Any) -> int | None:
    """How many tokens a model is meant for; dynamic rotary scaling stretches the config's."""
    most = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if most is not None and rope.get("rope_type") == "dynamic":
        return int(most * rope["factor"])
    return most


def _rope_types(config: Any) -> list[str]:
    """The kinds of rotary embedding of a model: one, or one for each kind of attention."""
    parameters = getattr(config, "rope_parameters", None) or {}
    each = [parameters, *(value for value in parameters.values() if isinstance(value, Mapping))]
    return [kind for one in each if isinstance(kind := one.get("rope_type"), str)]
