"""A checkpoint's tensor names and config to a chain of blocks.

`partition` is called by the zoo at ingest. It refuses nothing for being unknown: a family that
is not in `families.py` gets whole layers by the numbered prefix of its names, and every tensor
ends up in exactly one block.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from blockzoo.errors import SourceError
from blockzoo.partition import spec as specs
from blockzoo.partition.checks import check_shapes
from blockzoo.partition.families import family_of_config
from blockzoo.partition.family import Family, Sublayer
from blockzoo.partition.names import canonical_names, resolve_ties
from blockzoo.records import Block, Hop
from blockzoo.tensors import TensorRef

#: parts of the names of embeddings in families that are not known
_EMBEDDING_NAMES = ("embed", "wte", "wpe", "shared.weight")
#: the first number in a name that has modules, not just a tensor, after it
_NUMBERED = re.compile(r"^(?P<stack>(?:[^.]+\.)*?)(?P<index>\d{1,6})\.(?P<local>[^.]+\..+)$")


@dataclass(frozen=True)
class Partitioned:
    """A chain, its blocks and its ties.

    Parameters
    ----------
    family : str
        Empty where unknown; for an adapter its type in lower case.
    hops : tuple of Hop
        In order of execution, with the digests of their blocks.
    blocks : dict of str to Block
        By digest.
    ties : dict of str to str
        Names that stand for another's tensor.
    """

    family: str
    hops: tuple[Hop, ...]
    blocks: Mapping[str, Block]
    ties: Mapping[str, str] = field(default_factory=dict)


def partition(config: Mapping[str, Any], tensors: Mapping[str, TensorRef]) -> Partitioned:
    """Split a checkpoint into blocks.

    Parameters
    ----------
    config : mapping
        Its config.json; empty where it has none.
    tensors : mapping of str to TensorRef
        By the name in the file.

    Returns
    -------
    Partitioned
        Each tensor is in exactly one block.

    Raises
    ------
    SourceError
        Where the config of a known family has values that make no sense, or that disagree with
        the tensors' shapes.
    """
    family = family_of_config(config)
    try:
        if family is None:
            return _Chain().of_unknown(config, tensors)
        check_shapes(config, tensors)
        return _Chain().of_family(family, specs.complete(family, config), tensors)
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise SourceError(f"config.json cannot be read: {error}") from error


class _Chain:
    """A chain in the making."""

    def __init__(self) -> None:
        self._hops: list[Hop] = []
        self._blocks: dict[str, Block] = {}

    def of_family(
        self, family: Family, values: Mapping[str, Any], tensors: Mapping[str, TensorRef]
    ) -> Partitioned:
        names = canonical_names(family, tensors)
        canonical = {names[name]: ref for name, ref in tensors.items()}
        layers: defaultdict[int, dict[str, TensorRef]] = defaultdict(dict)
        embedding: dict[str, TensorRef] = {}
        head: dict[str, TensorRef] = {}
        inner = re.compile(re.escape(family.root + family.layers) + r"(\d{1,6})\.(.+)")
        first = tuple(
            f"{family.root}{name}."
            for name in (family.tokens, family.positions, family.project)
            if name
        )
        for name, ref in canonical.items():
            match = inner.fullmatch(name)
            # "layers.01" would collide with "layers.1"
            if match and str(int(match[1])) == match[1]:
                layers[int(match[1])][match[2]] = ref
            else:
                (embedding if name.startswith(first) else head)[name] = ref

        base = {"family": family.name, "config": specs.config_of_spec(family, values)}
        split = all(values[key] == wanted for key, wanted in family.split_if.items())
        types = specs.layer_types(family, values, max(layers, default=-1) + 1)
        self._add("embedding", "embedding", "", {**base, "layer": {}}, embedding)
        for index in sorted(layers):
            prefix = f"{family.root}{family.layers}{index}."
            halves = _split(family.sublayers, layers[index]) if split else {"layer": layers[index]}
            for kind, part in halves.items():
                name = f"layers.{index}" + ("" if kind == "layer" else f".{kind}")
                layer = specs.layer_spec(family, values, kind, index, types)
                self._add(name, kind, prefix, {**base, "layer": layer}, part)
        self._add("head", "head", "", {**base, "layer": {}}, head)
        ties = resolve_ties(family, values, canonical)
        return Partitioned(family.name, tuple(self._hops), self._blocks, ties)

    def of_unknown(
        self, config: Mapping[str, Any], tensors: Mapping[str, TensorRef]
    ) -> Partitioned:
        stacks: defaultdict[str, defaultdict[int, dict[str, TensorRef]]]
        stacks = defaultdict(lambda: defaultdict(dict))
        embedding: dict[str, TensorRef] = {}
        head: dict[str, TensorRef] = {}
        for name, ref in tensors.items():
            match = _NUMBERED.match(name)
            if match and str(int(match["index"])) == match["index"]:
                stacks[match["stack"]][int(match["index"])][match["local"]] = ref
            elif any(part in name for part in _EMBEDDING_NAMES):
                embedding[name] = ref
            else:
                head[name] = ref

        base = {"family": "", "config": specs.config_of_unknown(config)}
        if embedding:
            self._add("embedding", "embedding", "", {**base, "layer": {}}, embedding)
        # an encoder comes before its decoder, by name as in execution
        for stack in sorted(stacks, key=lambda path: ("decoder" in path, path)):
            for index in sorted(stacks[stack]):
                name = f"layers.{index}" if len(stacks) == 1 else f"{stack}{index}"
                # nothing is known of what depends on depth: no two depths are taken for alike
                layer = {"stack": stack, "index": index}
                part = stacks[stack][index]
                self._add(name, "layer", f"{stack}{index}.", {**base, "layer": layer}, part)
        if head:
            self._add("head", "head", "", {**base, "layer": {}}, head)
        return Partitioned("", tuple(self._hops), self._blocks)

    def _add(
        self,
        name: str,
        kind: str,
        prefix: str,
        spec: Mapping[str, Any],
        tensors: Mapping[str, TensorRef],
    ) -> None:
        block = Block(kind, spec, dict(sorted(tensors.items())))
        self._blocks[block.digest] = block
        self._hops.append(Hop(name, kind, prefix, block.digest))


def _split(
    sublayers: tuple[Sublayer, ...], tensors: Mapping[str, TensorRef]
) -> dict[str, dict[str, TensorRef]]:
    """A layer's tensors by the half they belong to; what belongs to none goes with the first."""
    halves: dict[str, dict[str, TensorRef]] = {half.kind: {} for half in sublayers}
    for name, ref in tensors.items():
        kinds = [half.kind for half in sublayers if name.startswith(_starts(half))]
        halves[(kinds or [sublayers[0].kind])[0]][name] = ref
    return halves


def _starts(half: Sublayer) -> tuple[str, ...]:
    modules = (half.norm, *half.ops, *([half.post_norm] if half.post_norm else []))
    return (*(f"{module}." for module in modules), *half.stored)
