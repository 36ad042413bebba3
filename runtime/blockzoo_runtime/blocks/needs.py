"""What a chain computes with: the tensors that must be resident before it takes a step."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch

from blockzoo.execution.adapters.compact import CompactLinear
from blockzoo.execution.adapters.lora import LinearLora
from blockzoo.execution.binding import Binding, Source
from blockzoo.execution.compile import Compiled
from blockzoo.execution.executor import Executor
from blockzoo.execution.fused import Fused
from blockzoo.execution.tensors import TORCH_DTYPES
from blockzoo.tensors import TensorInfo, TensorRef
from blockzoo_runtime.blocks.nibbles import resident_form

Key = tuple[str, torch.dtype]
"""A digest, or the name of what is made from several tensors, and the compute dtype."""

Place = Hashable
"""Where adapters of several tenants may lie side by side: an operation of a chain."""


@dataclass(frozen=True)
class LowRank:
    """An adapter's A and B at one place."""

    place: Place
    a: TensorRef
    b: TensorRef

    def key(self, dtype: torch.dtype) -> Key:
        return f"lowrank:{self.place}:{self.a.digest}:{self.b.digest}", dtype


@dataclass
class Needs:
    """What a tenant computes with.

    Parameters
    ----------
    dtype : torch.dtype
        Of the computation.
    stored : dict of Key to TensorRef
        Tensors used as they are stored, floats cast.
    derived : dict of Key to Fused
        Tensors made from others, which are not kept themselves unless they are in ``stored``.
    stacked : dict of Key to LowRank
        Adapters that lie beside those of others.
    nbytes : dict of Key to int
        Resident bytes of each, all three kinds.
    """

    dtype: torch.dtype
    stored: dict[Key, TensorRef] = field(default_factory=dict)
    derived: dict[Key, Fused] = field(default_factory=dict)
    stacked: dict[Key, LowRank] = field(default_factory=dict)
    nbytes: dict[Key, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Bytes of all together."""
        return sum(self.nbytes.values())

    def use(self, source: Source) -> None:
        """Take in a tensor, or one that is made from others."""
        if isinstance(source, Fused):
            key = (source.key, self.dtype)
            self.derived[key] = source
            self.nbytes[key] = resident_bytes(source.info, self.dtype)
        else:
            key = (source.digest, self.dtype)
            self.stored[key] = source
            self.nbytes[key] = resident_bytes(source, self.dtype)

    def stack(self, low: LowRank) -> None:
        """Take in an adapter's A and B."""
        key = low.key(self.dtype)
        self.stacked[key] = low
        self.nbytes[key] = sum(resident_bytes(ref, self.dtype) for ref in (low.a, low.b))


def resident_bytes(info: TensorInfo, dtype: torch.dtype) -> int:
    """Bytes of a tensor in memory: floats in the compute dtype."""
    floating = TORCH_DTYPES[info.dtype].is_floating_point
    return info.elements * dtype.itemsize if floating else info.nbytes


def low_rank(
    executor: Executor, depth: int, path: str, binding: Binding, dtype: torch.dtype
) -> LowRank | None:
    """The adapter on a linear leaf that may lie beside others'; None where there is none."""
    attached = binding.attachments.get(path)
    if attached is None or not isinstance(attached[1], LinearLora):
        return None
    lora = attached[1]
    return LowRank((id(executor), depth, path, str(dtype)), lora.a, lora.b)


def needs_of(compiled: Compiled, dtype: torch.dtype, device: torch.device) -> Needs:
    """All that a chain computes with on a device."""
    needs = Needs(dtype)
    for executor, depth, binding in compiled.parts():
        for source in binding.parameters.values():
            needs.use(source)
        for path, (_, attached) in binding.attachments.items():
            if isinstance(attached, CompactLinear):
                needs.use(resident_form(attached.codes, device, dtype))
                needs.use(attached.scale)
                continue
            low = low_rank(executor, depth, path, binding, dtype)
            if low is not None:
                needs.stack(low)
            stacked = (low.a, low.b) if low is not None else ()
            for source in attached.sources():
                if source not in stacked:
                    needs.use(source)
    if compiled.virtual is not None:
        for ref in compiled.virtual.refs():
            needs.use(ref)
    return needs
