"""From a model's records to what runs it: each hop's executor, tensors and adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from blockzoo.execution.adapters.registry import lay_on
from blockzoo.execution.adapters.virtual import VirtualTokens, virtual_tokens
from blockzoo.execution.binding import Attachment, Binding, Source, missing_tensors
from blockzoo.execution.context import Backbone
from blockzoo.execution.executor import (
    Executor,
    Executors,
    HeadExecutor,
    LayerExecutor,
    StitchExecutor,
)
from blockzoo.execution.fused import fused_parameter
from blockzoo.execution.modules import family_of, submodule
from blockzoo.execution.stitch import KIND
from blockzoo.partition.family import Family
from blockzoo.records import Block, Hop, Model
from blockzoo.tensors import TensorRef


@dataclass(frozen=True)
class CompiledHop:
    """A layer, half of one, or a stitch, ready to run.

    Parameters
    ----------
    block : Block
    executor : LayerExecutor or StitchExecutor
    binding : Binding
    depth : int
        The layer's place in the cache; a stitch's is that of the layer after it.
    layer_type : str or None
    """

    block: Block
    executor: LayerExecutor | StitchExecutor
    binding: Binding
    depth: int
    layer_type: str | None


@dataclass(frozen=True)
class Compiled:
    """A chain, ready to run.

    Parameters
    ----------
    family : Family
    backbone, embedding
        The embedding hop's executor and binding.
    hops : tuple of CompiledHop
    tail, head
        The head hop's executor and binding.
    max_positions : int or None
        The rows of a learned position table that are free for tokens.
    virtual : VirtualTokens or None
        What a prefix or prompt adapter puts before the text.
    """

    family: Family
    backbone: Backbone
    embedding: Binding
    hops: tuple[CompiledHop, ...]
    tail: HeadExecutor
    head: Binding
    max_positions: int | None = None
    virtual: VirtualTokens | None = None

    def parts(self) -> Iterator[tuple[Executor, int, Binding]]:
        """Each hop's executor, depth (-1 at both ends) and binding, in order."""
        yield self.backbone, -1, self.embedding
        for hop in self.hops:
            yield hop.executor, hop.depth, hop.binding
        yield self.tail, -1, self.head


def compile_chain(
    model: Model, blocks: Mapping[str, Block], layers: int, executors: Executors
) -> Compiled:
    """Find each hop's executor, tensors and adapters.

    Parameters
    ----------
    model : Model
    blocks : mapping of str to Block
        By digest, adapter blocks too.
    layers : int
        How many the config says to run; a checkpoint may keep more.
    executors : Executors

    Raises
    ------
    UnservableError
        Where a parameter has no tensor or an adapter cannot be applied exactly.
    """
    first, *middle, last = model.chain
    family = family_of(blocks[first.block].spec)
    named = model.bound(blocks)
    types: list[str | None] = []
    hops: list[CompiledHop] = []
    for hop in middle:
        block = blocks[hop.block]
        if block.kind == KIND:
            stitch = executors.stitch(block.spec, hop.at)
            binding = _bind(stitch, dict(block.tensors), hop, blocks)
            after = 1 + max((done.depth for done in hops), default=-1)
            hops.append(CompiledHop(block, stitch, binding, after, None))
            continue
        depth = _depth(hop)
        if depth >= layers:
            continue
        layer_type = block.spec.get("layer", {}).get("layer_type")
        if block.kind in ("attention", "layer") and layer_type not in types:
            types.append(layer_type)
        executor = executors.layer(block.kind, block.spec)
        binding = _bind(executor, _layer_parameters(executor, block), hop, blocks)
        hops.append(CompiledHop(block, executor, binding, depth, layer_type))
    there = {hop.depth for hop in hops if hop.block.kind != KIND}
    if absent := set(range(layers)) - there:
        raise missing_tensors(f"layer {depth}" for depth in absent)
    backbone = executors.backbone(blocks[first.block].spec, types)
    tail = executors.head(blocks[last.block].spec)
    embedding = _bind(backbone, _full_parameters(backbone, named), first, blocks)
    head = _bind(tail, _full_parameters(tail, named), last, blocks)
    virtual = None
    for digest in first.adapters:
        virtual = virtual_tokens(blocks[digest], family.name, layers) or virtual
    most = _positions(backbone, named)
    if most is not None and virtual is not None:
        most -= virtual.tokens
    return Compiled(family, backbone, embedding, tuple(hops), tail, head, most, virtual)


def _bind(
    executor: Executor,
    parameters: dict[str, Source],
    hop: Hop,
    blocks: Mapping[str, Block],
) -> Binding:
    attachments: dict[str, tuple[nn.Module, Attachment]] = {}
    for digest in hop.adapters:
        lay_on(blocks[digest], executor.leaves, parameters, attachments)
    return Binding(executor.slots, parameters, attachments)


def _positions(backbone: Backbone, named: Mapping[str, TensorRef]) -> int | None:
    """How many positions the learned table has; None where there is no table."""
    path = backbone.family.positions
    if path is None:
        return None
    table = submodule(backbone.model, path)
    rows = named[f"{backbone.family.root}{path.rstrip('.')}.weight"].shape[0]
    return rows - int(getattr(table, "offset", 0))


def _depth(hop: Hop) -> int:
    return int(hop.name.split(".")[1])


def _full_parameters(
    executor: Backbone | HeadExecutor, named: Mapping[str, TensorRef]
) -> dict[str, Source]:
    if missing := [name for name in executor.slots if name not in named]:
        raise missing_tensors(missing)
    return {name: named[name] for name in executor.slots}


def _layer_parameters(executor: LayerExecutor, block: Block) -> dict[str, Source]:
    """What fills each slot of a layer's executor: a tensor of the name, or a fused one."""
    halves = [half for half in executor.family.sublayers if half.kind == block.kind]
    ops = {op for half in halves for op in half.ops}
    stored = [prefix for half in halves for prefix in half.stored]
    prefixes = [*stored, *(f"{op}." for op in ops)]
    found: dict[str, Source] = {}
    missing = []
    for name in executor.slots:
        module, _, rest = name.partition(".")
        names = [name, *(f"{prefix}{rest}" for prefix in stored if module in ops)]
        ref: Source | None = next((block.tensors[n] for n in names if n in block.tensors), None)
        if ref is None:
            ref = fused_parameter(name, block.tensors, prefixes)
        if ref is None:
            missing.append(name)
        else:
            found[name] = ref
    if missing:
        raise missing_tensors(missing)
    return found
