"""Where an adapter's tensors go: the hop of a module, with the base at hand or without it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blockzoo.errors import SourceError
from blockzoo.partition.checks import QUANTISED
from blockzoo.partition.families import FAMILIES
from blockzoo.records import Block, Hop
from blockzoo.tensors import TensorRef

_NUMBERED = re.compile(r"^(?P<stack>(?:[^.]+\.)*?)(?P<index>\d{1,6})\.")
_EMBEDDING_NAMES = ("embed", "wte", "wpe", "shared.")


class Base:
    """What is known of the base: its tensors by their full names, its family, its config."""

    def __init__(self, hops: Sequence[Hop], blocks: Mapping[str, Block]) -> None:
        self.tensors: dict[str, TensorRef] = {}
        for hop in hops:
            for name, ref in blocks[hop.block].tensors.items():
                self.tensors[hop.prefix + name] = ref
        spec = blocks[hops[0].block].spec if hops else {}
        self.family: str = spec.get("family", "")
        self.config: Mapping[str, Any] = spec.get("config", {})
        #: quantised weights have other shapes than an adapter sees
        self.packed = any(self.config.get(key) for key in QUANTISED)
        self.layers = len({hop.prefix for hop in hops if hop.prefix})
        family = FAMILIES.get(self.family)
        if family is not None:
            # of two tied tensors a checkpoint may hold one
            both = ("lm_head.weight", f"{family.root}{family.tokens}.weight")
            for name, other in (both, both[::-1]):
                if name not in self.tensors and other in self.tensors:
                    self.tensors[name] = self.tensors[other]

    def weight(self, module: str) -> tuple[int, ...] | None:
        """The shape of a module's weight; None where it has none, or it is packed."""
        ref = None if self.packed else self.tensors.get(f"{module}.weight")
        return None if ref is None else ref.shape


@dataclass(frozen=True)
class Place:
    """A hop, by name, what its names begin with, and the base where it is at hand."""

    hop: str
    prefix: str
    base: Base | None


class Places:
    """Hops of a base's chain by module."""

    def __init__(self, hops: Sequence[Hop], blocks: Mapping[str, Block]) -> None:
        if not hops:
            raise SourceError("the base model has no tensors for an adapter to go on")
        self._hops = hops
        self._base = Base(hops, blocks)
        self._places = {hop.name: Place(hop.name, hop.prefix, self._base) for hop in hops}
        self._modules: dict[str, Place] = {}
        for hop in hops:
            for name in blocks[hop.block].tensors:
                module = (hop.prefix + name).rpartition(".")[0]
                self._modules[module] = self._places[hop.name]
        family = FAMILIES.get(self._base.family)
        if family is not None:
            self._modules.setdefault("lm_head", self._places["head"])
            tokens = f"{family.root}{family.tokens}"
            self._modules.setdefault(tokens, self._places["embedding"])

    def of_module(self, module: str) -> Place | None:
        """The hop that has this module's tensors."""
        return self._modules.get(module)

    def first(self) -> Place:
        return self._places[self._hops[0].name]

    def prefix(self, hop: str) -> str:
        return self._places[hop].prefix

    def near(self, name: str) -> Place:
        """The hop that a tensor of an unserved adapter goes with: nearest by its name."""
        module = name
        while module := module.rpartition(".")[0]:
            if module in self._modules:
                return self._modules[module]
        for hop in self._hops:
            if hop.prefix and name.startswith(hop.prefix):
                return self._places[hop.name]
        return self._places[self._hops[-1].name]


class DetachedPlaces:
    """The same without a base: layers by the first number in a name."""

    def __init__(self) -> None:
        self._layers: dict[str, tuple[str, int]] = {}

    def of_module(self, module: str) -> Place | None:
        return self.near(f"{module}.")

    def first(self) -> Place:
        return Place("embedding", "", None)

    def near(self, name: str) -> Place:
        match = _NUMBERED.match(name)
        if match and str(int(match["index"])) == match["index"]:
            prefix = match[0]
            hop = prefix.rstrip(".")
            self._layers[hop] = (match["stack"], int(match["index"]))
            return Place(hop, prefix, None)
        return Place("embedding" if any(p in name for p in _EMBEDDING_NAMES) else "head", "", None)

    def prefix(self, hop: str) -> str:
        return f"{hop}." if hop in self._layers else ""

    def kind(self, hop: str) -> str:
        return "layer" if hop in self._layers else hop

    def in_order(self) -> list[str]:
        """Names of all hops met, in order of execution."""
        return ["embedding", *sorted(self._layers, key=self._layers.__getitem__), "head"]

    def name_in_chain(self, hop: str) -> str:
        """What the hop is called: ``layers.3`` where there is one stack of layers."""
        if hop in self._layers and len({stack for stack, _ in self._layers.values()}) == 1:
            return f"layers.{self._layers[hop][1]}"
        return hop
