"""Compact models with random differences, and the dense weights that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from blockzoo.compact.options import keep
from blockzoo.compact.weights import is_weights
from blockzoo.execution.chain import RunnableChain
from blockzoo.execution.packing import middle, pack
from blockzoo.execution.tensors import StreamedTensors
from blockzoo.records import Block, Model
from blockzoo.store.refs import tagged
from blockzoo.store.session import Session
from blockzoo.tensors import TensorRef
from blockzoo.zoo import Zoo

Add = Callable[[torch.Tensor], TensorRef]
Way = int | str
"""Bits of a code, ``"lowrank"``, ``"none"``, or ``"full"``: the whole tensor is replaced."""

RANK = 3


@dataclass(frozen=True)
class Compacted:
    """A compact model.

    Parameters
    ----------
    model : Model
        The base's chain with adapter blocks.
    blocks : dict of str to Block
        The adapter blocks.
    changes : dict of str to torch.Tensor
        What is added to which parameter of transformers' model.
    """

    model: Model
    blocks: Mapping[str, Block]
    changes: Mapping[str, torch.Tensor]

    def apply(self, dense: Any) -> Any:
        """Transformers' model of the base, changed to what the compact model stands for."""
        parameters = dict(dense.named_parameters())  # of two tied ones, the first
        with torch.no_grad():
            for name, change in self.changes.items():
                if name in parameters:
                    parameters[name].add_(change)
        return dense


def compacted(
    chain: RunnableChain,
    model: Model,
    read: Callable[[TensorRef], torch.Tensor],
    add: Add,
    ways: Callable[[str], Way],
    seed: int = 0,
) -> Compacted:
    """Lay random differences on every matrix, and move every other parameter.

    Parameters
    ----------
    chain : RunnableChain
        Of the base.
    model : Model
        The base.
    read, add : callable
        Gives a tensor that is kept; keeps one.
    ways : callable
        A parameter's full name to how its difference is kept.
    """
    made = _Made(read, add, ways, torch.Generator().manual_seed(seed), {}, {})
    hops, blocks = [], {}
    for hop, (executor, _, binding) in zip(model.chain, chain.compiled.parts(), strict=True):
        modules, replaces, tensors = {}, {}, {}
        for slot, bound in binding.parameters.items():
            if not isinstance(bound, TensorRef):
                continue  # fused experts
            path, _, end = slot.rpartition(".")
            leaf = executor.leaves[path]
            name = model.ties.get(f"{hop.prefix}{slot}", f"{hop.prefix}{slot}")
            is_matrix = end == "weight" and isinstance(leaf, (nn.Linear, Conv1D, nn.Embedding))
            way = ways(name)
            if way == "none":
                continue
            if is_matrix and way != "full":
                facts, parts = made.difference(name, leaf, bound.shape, way)
                modules[path] = facts
                tensors |= {f"{path}.{part}": ref for part, ref in parts.items()}
            else:
                replaces[slot] = slot
                tensors[slot] = made.whole(name, bound)
        spec = {"type": "compact", "config": {}, "modules": modules, "replaces": replaces}
        if tensors:
            block = Block("adapter", spec, tensors)
            blocks[block.digest] = block
            hop = replace(hop, adapters=(block.digest,))
        hops.append(hop)
    return Compacted(replace(model, chain=tuple(hops)), blocks, made.changes)


def keep_compact(
    zoo: Zoo, base: str, name: str, ways: Callable[[str], Way], seed: int = 0
) -> Compacted:
    """A compact model of a zoo's, by name; it has the base's files but for weights."""
    model = zoo.model(base)
    with Session(zoo.objects) as session:
        zoo.rely_on(session, model)
        read = StreamedTensors(zoo.tensor).tensor
        made = compacted(zoo.chain(model), model, read, lambda t: keep(session, t), ways, seed)
        for block in made.blocks.values():
            session.block(block)
        files = tuple(recipe for recipe in model.files if not is_weights(recipe))
        compact = replace(made.model, files=files)
        session.model(compact)
        assert session.commit()
    zoo.refs.set(name, None, tagged(compact), "compact")
    return replace(made, model=compact)


@dataclass
class _Made:
    read: Callable[[TensorRef], torch.Tensor]
    add: Add
    ways: Callable[[str], Way]
    draw: torch.Generator
    changes: dict[str, torch.Tensor]
    known: dict[str, tuple[dict[str, Any], dict[str, TensorRef]]]

    def difference(
        self, name: str, leaf: nn.Module, shape: tuple[int, ...], way: Way
    ) -> tuple[dict[str, Any], dict[str, TensorRef]]:
        """Facts and tensors; a tied head's are the embedding's."""
        if name in self.known:
            return self.known[name]
        lies: dict[str, Any] = {"transposed": True} if isinstance(leaf, Conv1D) else {}
        rows, columns = shape[::-1] if lies else shape
        if way == "lowrank":
            a, b = self._random(RANK, columns), self._random(rows, RANK) * 0.1
            change = b @ a
            ends = ("lora_A.weight", "lora_B.weight")
            if isinstance(leaf, nn.Embedding):
                a, b, ends = b.T, a.T, ("lora_embedding_A", "lora_embedding_B")
            parts = {end: self.add(t.contiguous()) for end, t in zip(ends, (a, b), strict=True)}
            facts = {"method": "lowrank", "rank": RANK, "alpha": RANK, **lies}
        else:
            bits = int(way)
            codes = torch.randint(0, 2**bits, (rows, columns), generator=self.draw)
            largest = self._random(rows).abs() * 0.1 + 0.05
            scale = (largest / middle(bits)).bfloat16()
            change = (codes - middle(bits)) * scale.float()[:, None]
            parts = {"codes": self.add(pack(codes, bits)), "scale": self.add(scale)}
            facts = {"method": "bits", "bits": bits, "columns": columns, **lies}
        self.changes[name] = change.T if lies else change
        self.known[name] = facts, parts
        return facts, parts

    def whole(self, name: str, bound: TensorRef) -> TensorRef:
        """A tensor with noise on it."""
        before = self.read(bound).float()
        if name not in self.changes:
            self.changes[name] = self._random(*before.shape) * 0.1
        return self.add(before + self.changes[name])

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.draw)
