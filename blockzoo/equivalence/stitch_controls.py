"""What a stitch must beat: the same layers behind it, with nothing of the source's before it.

Noise can be stitched, too: layers that follow make something of whatever they are given, and a
trained map may do the work alone. Each control is fitted as the stitch is, on the same text, for
as many steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from blockzoo.execution.stitch import KIND, Stitch
from blockzoo.execution.tensors import Build, TensorSource
from blockzoo.records import Block
from blockzoo.tensors import TensorInfo, TensorRef, tensor_digest

_RANDOM = "random:"

#: by how many nats a token a control must be worse, at least, to have lost clearly
CLEARLY = 0.1


@dataclass(frozen=True)
class Control:
    """One way of having nothing to stitch.

    Parameters
    ----------
    name : str
    mapped, shuffled : bool
        See `stitch_fit.fit`.
    random : bool
        Whether the source's matrices are drawn at random, as large as its own.
    """

    name: str
    mapped: bool = True
    shuffled: bool = False
    random: bool = False


CONTROLS = (
    Control("random weights", random=True),
    Control("shuffled tokens", shuffled=True),
    Control("zero map", mapped=False),
)


@dataclass(frozen=True)
class StitchBlock:
    """A stitch as a block, and those of its tensors that no zoo has yet, float32, by digest."""

    block: Block
    tensors: Mapping[str, torch.Tensor]

    @classmethod
    def of(cls, stitch: Stitch, family: str) -> StitchBlock:
        """The block of a fitted stitch between models of a family."""
        refs, tensors = {}, {}
        for name, tensor in stitch.state_dict().items():
            held = tensor.detach().float().contiguous()
            info = TensorInfo("F32", tuple(held.shape))
            digest = tensor_digest(info, data_of(held))
            refs[name] = TensorRef(info.dtype, info.shape, digest)
            tensors[digest] = held
        return cls(Block(KIND, stitch.spec(family), dict(sorted(refs.items()))), tensors)

    @property
    def parameters(self) -> int:
        """How many numbers it has."""
        return sum(ref.elements for ref in self.block.tensors.values())


def data_of(tensor: torch.Tensor) -> memoryview:
    """A contiguous CPU tensor's bytes."""
    return memoryview(tensor.numpy().tobytes())


class Beside:
    """A `TensorSource` with some tensors that no zoo has, and random ones for `randomised`.

    Parameters
    ----------
    source : TensorSource
    held : mapping of str to torch.Tensor
        By digest.
    """

    def __init__(self, source: TensorSource, held: Mapping[str, torch.Tensor]) -> None:
        self._source = source
        self._held = held

    def tensor(self, ref: TensorRef) -> torch.Tensor:
        if ref.digest in self._held:
            return self._held[ref.digest]
        if not ref.digest.startswith(_RANDOM):
            return self._source.tensor(ref)
        own = self._source.tensor(replace(ref, digest=ref.digest.removeprefix(_RANDOM)))
        if own.ndim < 2:
            return own  # a norm's weight says nothing of what was learned
        draw = torch.Generator().manual_seed(int(ref.digest.removeprefix(_RANDOM)[:15], 16))
        return torch.randn(own.shape, generator=draw) * own.std()

    def derived(self, key: str, parts: Sequence[TensorRef], build: Build) -> torch.Tensor:
        return build([self.tensor(part) for part in parts])


def drawn(ref: TensorRef) -> TensorRef:
    """A tensor of the same shape that `Beside` draws at random."""
    return replace(ref, digest=_RANDOM + ref.digest)


def randomised(block: Block) -> Block:
    """A block of the same shape whose matrices are `drawn`."""
    return replace(block, tensors={name: drawn(ref) for name, ref in block.tensors.items()})
