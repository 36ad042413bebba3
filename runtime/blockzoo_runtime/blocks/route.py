"""The operations of a lane's executors for some tenants, in order.

Made once for a set of tenants and kept while they are resident. A hop's operations are put on
its executor's leaves before it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from blockzoo.execution.adapters.compact import CompactEmbedding, CompactLinear
from blockzoo.execution.adapters.ia3 import Scale
from blockzoo.execution.adapters.lora import LinearLora
from blockzoo.execution.binding import Binding
from blockzoo.execution.executor import Executor
from blockzoo.execution.fused import Fused
from blockzoo.tensors import TensorRef
from blockzoo_runtime.blocks.compact import Difference, Differences
from blockzoo_runtime.blocks.frame import Frame, Owner
from blockzoo_runtime.blocks.needs import Key, low_rank
from blockzoo_runtime.blocks.nibbles import resident_form
from blockzoo_runtime.blocks.resident import ResidentTensors
from blockzoo_runtime.blocks.routed import RoutedLeaf, RoutedLinear, Rows, Run, Update
from blockzoo_runtime.blocks.stack import Chunk

if TYPE_CHECKING:
    from blockzoo_runtime.tenant import Tenant

Operation = Callable[..., torch.Tensor]


class Route:
    """What stands on the leaves of each hop.

    Parameters
    ----------
    tenants : sequence of Tenant
        Of one lane, all resident.
    resident : ResidentTensors

    Attributes
    ----------
    frame : Frame
        To be told how many tokens each tenant has in the next call.
    weight_bytes : int
        Bytes of tensors that a step reads, without looked-up embeddings.
    separate_bytes : int
        What a step of each tenant by itself would read.
    row_bytes : int
        Bytes of embeddings that a token looks up.
    """

    def __init__(self, tenants: Sequence[Tenant], resident: ResidentTensors) -> None:
        self.frame = Frame(len(tenants))
        self._tenants = tenants
        self._resident = resident
        self._dtype = tenants[0].dtype
        self._multiplied: set[Key] = set()
        self._tables: dict[Key, int] = {}  # and the bytes of a row
        self._update_bytes = 0
        self._signatures: dict[tuple[tuple[Owner, ...], int], int] = {}
        self._hops: list[list[tuple[dict[str, Any], Operation]]] = []
        self._slots: dict[tuple[int, str], tuple[dict[str, Any], str, Any]] = {}
        for each in zip(*(tenant.compiled.parts() for tenant in tenants), strict=True):
            executor, depth, _ = each[0]
            own = [binding for _, _, binding in each]
            self._hops.append(self._operations(executor, depth, own))
        read = {
            key: size
            for tenant in tenants
            for key, size in tenant.needs.nbytes.items()
            if key not in tenant.needs.stacked
        }
        looked_up = {k: v for k, v in self._tables.items() if k not in self._multiplied}
        self.weight_bytes = sum(v for k, v in read.items() if k not in looked_up)
        self.weight_bytes += self._update_bytes
        needs = [tenant.needs.nbytes for tenant in tenants]
        self.row_bytes = max(sum(v for k, v in looked_up.items() if k in own) for own in needs)
        self.separate_bytes = sum(v for own in needs for k, v in own.items() if k not in looked_up)

    def enter(self, hop: int) -> None:
        """Put a hop's operations on its executor's leaves."""
        for leaf, operation in self._hops[hop]:
            leaf["forward"] = operation

    def leave(self) -> None:
        """Hold no tensors: what is let go of must be freed."""
        for parameters, name, empty in self._slots.values():
            parameters[name] = empty

    def _operations(
        self, executor: Executor, depth: int, own: Sequence[Binding]
    ) -> list[tuple[dict[str, Any], Operation]]:
        by_leaf: dict[str, list[str]] = {}
        for name in executor.slots:
            path, _, parameter = name.rpartition(".")
            by_leaf.setdefault(path, []).append(parameter)
        result: list[tuple[dict[str, Any], Operation]] = []
        for path, names in by_leaf.items():
            leaf = executor.leaves[path]
            bound = [
                {name: self._key(binding.parameters[f"{path}.{name}".lstrip(".")])
                 for name in names}
                for binding in own
            ]  # fmt: skip
            operation: Operation
            if isinstance(leaf, (nn.Linear, Conv1D)):
                operation = self._linear(executor, depth, path, leaf, bound, own)
            else:
                operation = self._leaf(path, leaf, bound, own)
            keys = {key for each in bound for key in each.values()}
            if isinstance(leaf, nn.Embedding):
                keys |= {self._key(ref) for ref in _looked_up(path, own)}
                self._tables |= {key: self._resident.tensors[key][:1].nbytes for key in keys}
            else:
                self._multiplied |= keys
            result.append((leaf.__dict__, operation))
        return result

    def _key(self, source: Any) -> Key:
        return (source.key if isinstance(source, Fused) else source.digest), self._dtype

    def _leaf(
        self, path: str, leaf: nn.Module, bound: list[dict[str, Key]], own: Sequence[Binding]
    ) -> RoutedLeaf:
        for name in bound[0]:
            slot = leaf._parameters
            self._slots.setdefault((id(slot), name), (slot, name, slot[name]))
        attached: list[Any] = []
        for binding in own:
            found = binding.attachments.get(path)
            if found is not None:
                found[1].load(self._resident.source(self._dtype))
            attached.append(found[1] if found is not None else None)
        each = [(*keys.items(), id(own)) for keys, own in zip(bound, attached, strict=True)]
        runs = [Run(first, last, bound[first], attached[first]) for first, last in _runs(each)]
        return RoutedLeaf(leaf, runs, self.frame, self._resident.tensors)

    def _linear(
        self,
        executor: Executor,
        depth: int,
        path: str,
        leaf: nn.Module,
        bound: list[dict[str, Key]],
        own: Sequence[Binding],
    ) -> RoutedLinear:
        each = [tuple(keys.items()) for keys in bound]
        runs = [Run(first, last, bound[first]) for first, last in _runs(each)]
        rows = Rows()
        owners: dict[int, tuple[Chunk, list[Owner]]] = {}
        differences: dict[int, list[Difference]] = {}
        for tenant, binding in enumerate(own):
            found = binding.attachments.get(path)
            if found is None:
                continue
            attached = found[1]
            if isinstance(attached, Scale):
                vectors = rows.before if attached.before else rows.after
                vectors.append((tenant, self._key(attached.vector)))
                continue
            if isinstance(attached, CompactLinear):
                form = resident_form(attached.codes, self._resident.device, self._dtype)
                codes, scale = self._key(form), self._key(attached.scale)
                self._multiplied |= {codes, scale}
                difference = Difference(tenant, codes, scale, attached.columns)
                differences.setdefault(attached.bits, []).append(difference)
                continue
            assert isinstance(attached, LinearLora)
            low = low_rank(executor, depth, path, binding, self._dtype)
            assert low is not None
            chunk, first, last = self._resident.stacks[low.place].find(low.key(self._dtype))
            place = owners.setdefault(id(chunk), (chunk, []))
            place[1].append((tenant, first, last, attached.scaling))
            if attached.bias is not None:
                rows.biases.append((tenant, self._key(attached.bias), attached.scaling))
            if attached.ratio is not None:
                ratio = self._key(attached.ratio)
                rows.ratios.append((tenant, ratio, bound[tenant].get("bias")))
        updates = [self._update(chunk, each) for chunk, each in owners.values()]
        self._update_bytes += sum(update.nbytes for update in updates)
        transposed = isinstance(leaf, Conv1D)
        tensors, kind = self._resident.tensors, (self._resident.device, self._dtype)
        coded = [Differences(bits, each, self.frame, tensors, *kind)
                 for bits, each in differences.items()]  # fmt: skip
        return RoutedLinear(runs, self.frame, tensors, transposed, updates, rows, coded)

    def _update(self, chunk: Chunk, owners: Sequence[Owner]) -> Update:
        first = min(begin for _, begin, _, _ in owners)
        last = max(end for _, _, end, _ in owners)
        moved = tuple((t, begin - first, end - first, scaling) for t, begin, end, scaling in owners)
        # the chunk may grow meanwhile, into other tensors: what is here stays as it is
        a, b = chunk.a[first:last], chunk.b[first:last]
        signature = self._signatures.setdefault((moved, last - first), len(self._signatures))
        return Update(a, b, moved, signature)


def _looked_up(path: str, own: Sequence[Binding]) -> list[TensorRef]:
    """What compact differences of an embedding keep: only rows of it are read."""
    found = [binding.attachments[path][1] for binding in own if path in binding.attachments]
    each = [one for one in found if isinstance(one, CompactEmbedding)]
    return [ref for one in each for ref in (one.codes, one.scale)]


def _runs(signatures: Sequence[Any]) -> list[tuple[int, int]]:
    """Where equal neighbours begin and end."""
    runs, first = [], 0
    for _, same in groupby(signatures):
        last = first + len(list(same))
        runs.append((first, last))
        first = last
    return runs
