"""Times blocks on a device; `profile` says what becomes of the figures.

A batch of T tokens is T rows of one token each with nothing before them: what a decode step
computes, less the reading of KV, which depends on the rows' lengths and not on the block. Blocks
of one kind take turns, so that each finds the processor's caches as it does between its
neighbours in a real step, not warm from its own last run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from blockzoo.errors import UnservableError
from blockzoo.execution.binding import Binding
from blockzoo.execution.chain import RunnableChain
from blockzoo.execution.context import Context
from blockzoo.execution.executor import Executors
from blockzoo.execution.stitch import KIND
from blockzoo.execution.tensors import Build, StreamedTensors, TensorSource
from blockzoo.records import Block
from blockzoo.tensors import TensorRef
from blockzoo.zoo import Zoo
from blockzoo_runtime.blocks.profile import (
    SIZES,
    BlockProfile,
    Profile,
    device_name,
    dtype_name,
    spec_key,
)

#: how long one size of one kind is measured, seconds, and how often at least
_LONG_ENOUGH = 0.05
_OFTEN_ENOUGH = 3
#: how many blocks of a kind take turns
_TURNS = 8
#: the batch that floating point operations are counted on
_COUNTED = 16

Run = Callable[[int], object]
"""Runs a block on a batch of so many tokens."""


@dataclass(frozen=True)
class _Place:
    """A hop that is measured: its block, where it stands, and how it is run."""

    block: Block
    name: str
    binding: Binding
    run: Run


def measure(
    zoo: Zoo,
    names: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    *,
    sizes: Sequence[int] = SIZES,
    tell: Callable[[str], object] = str,
) -> Profile:
    """Time every kind of block that the models have.

    Parameters
    ----------
    zoo : Zoo
    names : sequence of str
        Models that can be served; for an adapter, its base is measured.
    device : torch.device
    dtype : torch.dtype
        Of the computation.
    sizes : sequence of int
        Batch sizes in tokens, ascending.
    tell : callable
        Called with the kind of block that is measured next.

    Raises
    ------
    NotFoundError, UnservableError
    """
    executors = Executors()
    places: dict[str, list[_Place]] = {}
    with torch.inference_mode(), executors.lock:
        source = _Held(zoo, dtype, device)
        for digest in dict.fromkeys(_base(zoo, name) for name in names):
            for place in _places(zoo, digest, source, device, executors):
                places.setdefault(spec_key(place.block.kind, place.block.spec), []).append(place)
        blocks = {}
        for key, found in places.items():
            tell(found[0].block.kind)
            blocks[key] = _measure(key, found, source, device, tuple(sizes))
            source.let_go()
    return Profile(device_name(device), dtype_name(dtype), blocks)


def _base(zoo: Zoo, name: str) -> str:
    digest = zoo.resolve(name)
    model = zoo.model(digest)
    if reason := zoo.why_not_served(model):
        raise UnservableError(f"{name}: the model cannot be run exactly: {reason}")
    if any(hop.kind == KIND for hop in model.chain):
        raise UnservableError(
            f"{name} is stitched, and its blocks have no width in common",
            hint="profile the models that it was made of: their blocks are its own",
        )
    return model.base or digest


def _places(
    zoo: Zoo, digest: str, source: _Held, device: torch.device, executors: Executors
) -> Iterator[_Place]:
    model = zoo.model(digest)
    blocks = zoo.blocks_of(model)
    compiled = RunnableChain(model, blocks, zoo.config(model), source, executors=executors).compiled
    first, *middle, last = model.chain
    embedding, backbone = compiled.embedding, compiled.backbone

    def embed(tokens: int) -> Context:
        ids = torch.zeros((tokens, 1), dtype=torch.int64, device=device)
        positions = torch.zeros((1, 1), dtype=torch.int64, device=device)
        return backbone.run(ids, None, positions, None)

    contexts: dict[int, Context] = {}

    def context(tokens: int) -> Context:
        if tokens not in contexts:
            with embedding.bound(source):
                contexts[tokens] = embed(tokens)
        return contexts[tokens]

    yield _Place(blocks[first.block], first.name, embedding, embed)
    depths = {hop.depth for hop in compiled.hops}
    run_hops = [hop for hop in middle if int(hop.name.split(".")[1]) in depths]
    for hop, made in zip(run_hops, compiled.hops, strict=True):

        def run(tokens: int, made: Any = made) -> object:
            given = context(tokens)
            return made.executor.run(given.hidden, made.depth, given.of(made.layer_type))

        yield _Place(blocks[hop.block], hop.name, made.binding, run)
    tail = compiled.tail
    yield _Place(
        blocks[last.block], last.name, compiled.head, lambda n: tail.run(context(n).hidden)
    )


def _measure(
    key: str, places: list[_Place], source: _Held, device: torch.device, sizes: tuple[int, ...]
) -> BlockProfile:
    turns = list({place.block.digest: place for place in places}.values())[:_TURNS]
    first = turns[0]
    with first.binding.bound(source):
        first.run(_COUNTED)  # so that what is made once is not counted
        nbytes = source.nbytes_of(first.binding)
        with FlopCounterMode(display=False) as counter:
            first.run(_COUNTED)
    seconds = tuple(_time(turns, source, size, device) for size in sizes)
    flops = counter.get_total_flops() // _COUNTED
    block = first.block
    return BlockProfile(block.kind, key, first.name, len(places), nbytes, flops, sizes, seconds)


def _time(turns: list[_Place], source: TensorSource, size: int, device: torch.device) -> float:
    """Seconds for one block, the best round over all of them."""
    best, spent, rounds = float("inf"), 0.0, 0
    while spent < _LONG_ENOUGH or rounds <= _OFTEN_ENOUGH:
        took = 0.0
        for place in turns:
            with ExitStack() as stack:
                stack.enter_context(place.binding.bound(source))
                _wait(device)
                began = time.perf_counter()
                place.run(size)
                _wait(device)
                took += time.perf_counter() - began
        if rounds:  # the first one warms up
            best = min(best, took / len(turns))
        spent, rounds = spent + took, rounds + 1
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Held:
    """A `TensorSource` that holds what was asked for until it is told to let go."""

    def __init__(self, zoo: Zoo, dtype: torch.dtype, device: torch.device) -> None:
        self._stream = StreamedTensors(zoo.tensor, dtype, device)
        self._kept: dict[str, torch.Tensor] = {}

    def tensor(self, ref: TensorRef) -> torch.Tensor:
        if ref.digest not in self._kept:
            self._kept[ref.digest] = self._stream.tensor(ref)
        return self._kept[ref.digest]

    def derived(self, key: str, parts: Sequence[TensorRef], build: Build) -> torch.Tensor:
        if key not in self._kept:
            self._kept[key] = self._stream.derived(key, parts, build)
        return self._kept[key]

    def nbytes_of(self, binding: Binding) -> int:
        """Bytes of a binding's tensors, each once, as they are computed with."""
        sources: Mapping[str, Any] = binding.parameters
        keys = {getattr(bound, "key", None) or bound.digest for bound in sources.values()}
        return sum(self._kept[key].nbytes for key in keys)

    def let_go(self) -> None:
        self._kept.clear()
