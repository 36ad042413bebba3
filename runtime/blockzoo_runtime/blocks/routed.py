"""Operations that serve the rows of many tenants in one call.

Each stands before one leaf of an executor (a linear, a norm, an embedding) and is given the
packed tokens of all tenants, in order. Where neighbours have the same tensor, the operation runs
once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear, pad

from blockzoo_runtime.blocks.compact import Differences
from blockzoo_runtime.blocks.frame import Frame, Owner
from blockzoo_runtime.blocks.needs import Key

Tensors = dict[Key, torch.Tensor]

#: up to how many packed tokens each are multiplied with the adapters of all
_FEW = 64


@dataclass(frozen=True)
class Run:
    """Neighbouring tenants with the same tensors.

    Parameters
    ----------
    first, last : int
        Places in the order of tenants, the last one excluded.
    bound : dict of str to Key
        What the leaf's parameters are: ``"weight"``, ``"bias"``, ….
    attached : callable, optional
        What computes the leaf instead of its own ``forward``.
    """

    first: int
    last: int
    bound: dict[str, Key]
    attached: Callable[..., torch.Tensor] | None = None


class RoutedLeaf:
    """Any leaf that treats tokens one by one: its own ``forward``, once for each run.

    Parameters
    ----------
    leaf : nn.Module
    runs : sequence of Run
    frame : Frame
    tensors : dict
        What is resident.
    """

    def __init__(
        self, leaf: nn.Module, runs: Sequence[Run], frame: Frame, tensors: Tensors
    ) -> None:
        self._parameters = leaf._parameters
        self._forward: Callable[..., torch.Tensor] = type(leaf).forward.__get__(leaf)
        self._runs = runs
        self._frame = frame
        self._tensors = tensors

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if len(self._runs) == 1:
            return self._run(self._runs[0], args, kwargs)
        bounds, parts = self._frame.bounds, []
        for run in self._runs:
            first, last = bounds[run.first], bounds[run.last]
            if first < last:
                own = [self._cut(arg, first, last) for arg in args]
                named = {name: self._cut(arg, first, last) for name, arg in kwargs.items()}
                parts.append(self._run(run, own, named))
        along = 1 if args[0].shape[0] == 1 and args[0].dim() > 1 else 0
        return torch.cat(parts, along)

    def _run(self, run: Run, args: Sequence[Any], kwargs: dict[str, Any]) -> torch.Tensor:
        for name, key in run.bound.items():
            self._parameters[name] = self._tensors[key]  # type: ignore[assignment]
        return (run.attached or self._forward)(*args, **kwargs)

    def _cut(self, arg: Any, first: int, last: int) -> Any:
        """The tokens' part of an argument that has one entry a token."""
        if not isinstance(arg, torch.Tensor):
            return arg
        if arg.dim() > 1 and arg.shape[0] == 1 and arg.shape[1] == self._frame.tokens:
            return arg[:, first:last]
        if arg.dim() and arg.shape[0] == self._frame.tokens:
            return arg[first:last]
        return arg


@dataclass
class Rows:
    """What adapters of single tenants do at a linear leaf, by the tenant's place in the order.

    Parameters
    ----------
    before, after : list of (int, Key)
        IA3's vectors for the input and the output.
    ratios : list of (int, Key, Key or None)
        DoRA's vector, and the leaf's bias, which it does not scale.
    biases : list of (int, Key, float)
        A bias of LoRA's own, and its scaling.
    """

    before: list[tuple[int, Key]] = field(default_factory=list)
    after: list[tuple[int, Key]] = field(default_factory=list)
    ratios: list[tuple[int, Key, Key | None]] = field(default_factory=list)
    biases: list[tuple[int, Key, float]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.before or self.after or self.ratios or self.biases)


@dataclass(frozen=True)
class Update:
    """The low-rank adapters of one chunk that are active.

    Parameters
    ----------
    a, b : torch.Tensor
        Their part of the chunk's, (R, in) and (R, out).
    owners : tuple of Owner
        Whose ranks are which.
    signature : int
        Equal for updates with equal owners.
    """

    a: torch.Tensor
    b: torch.Tensor
    owners: tuple[Owner, ...]
    signature: int

    @property
    def nbytes(self) -> int:
        """Bytes of A and B that a call reads."""
        return self.a.nbytes + self.b.nbytes


class RoutedLinear:
    """A linear leaf: the base's product by runs, adapters on top.

    Tokens are (rows, width) inside: a slice of shape [1, rows, width] takes a path of torch's on
    CPUs in bfloat16 that is 20 times slower.

    Parameters
    ----------
    runs : sequence of Run
    frame : Frame
    tensors : dict
    transposed : bool
        Whether weights are (in, out), as GPT-2's.
    updates : sequence of Update
    rows : Rows
    differences : sequence of Differences
        Those of each width.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        frame: Frame,
        tensors: Tensors,
        transposed: bool,
        updates: Sequence[Update],
        rows: Rows,
        differences: Sequence[Differences] = (),
    ) -> None:
        self._runs = [(run.first, run.last, run.bound["weight"], run.bound.get("bias"))
                      for run in runs]  # fmt: skip
        self._frame = frame
        self._tensors = tensors
        self._transposed = transposed
        self._updates = updates
        self._rows = rows if rows else None
        self._differences = differences

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        rows = self._rows
        if rows is not None and rows.before:
            scaled = x.clone()
            self._scale(scaled, rows.before)
            y = self._product(scaled)
        else:
            y = self._product(x)
        for update in self._updates:
            self._add(update, x, y)
        for differences in self._differences:
            differences.add(x, y)
        if rows is not None:
            self._finish(rows, y)
        return y.view(*shape[:-1], y.shape[-1])

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        if len(self._runs) == 1:
            _, _, weight, bias = self._runs[0]
            return self._one(x, weight, bias)
        bounds = self._frame.bounds
        parts = [
            self._one(x[bounds[first] : bounds[last]], weight, bias)
            for first, last, weight, bias in self._runs
            if bounds[first] < bounds[last]
        ]
        widest = max(part.shape[1] for part in parts)
        # vocabularies may differ by a few tokens
        return torch.cat(
            [part if part.shape[1] == widest else pad(part, (0, widest - part.shape[1]))
             for part in parts]
        )  # fmt: skip

    def _one(self, x: torch.Tensor, weight: Key, bias: Key | None) -> torch.Tensor:
        own = self._tensors[bias] if bias is not None else None
        if not self._transposed:
            return linear(x, self._tensors[weight], own)
        product = x @ self._tensors[weight]
        return product if own is None else product + own

    def _add(self, update: Update, x: torch.Tensor, y: torch.Tensor) -> None:
        """``y += scaling · (x Aᵀ) B`` for each tenant's own tokens."""
        a, b, frame = update.a, update.b, self._frame
        if b.shape[1] < y.shape[1]:  # beside a larger vocabulary
            y = y[:, : b.shape[1]]
        if len(x) <= _FEW:
            low = linear(x, a)
            mask = frame.mask(update.signature, update.owners, low)
            if low.dtype == torch.float16:  # others' tokens may overflow
                low = low.masked_fill(mask == 0, 0)
            y.addmm_(low.mul_(mask), b)
            return
        for tenant, first, last, scaling in update.owners:
            begin, end = frame.bounds[tenant], frame.bounds[tenant + 1]
            if begin < end:
                low = linear(x[begin:end], a[first:last])
                y[begin:end].addmm_(low, b[first:last], alpha=scaling)

    def _finish(self, rows: Rows, y: torch.Tensor) -> None:
        bounds, tensors = self._frame.bounds, self._tensors
        for tenant, key, scaling in rows.biases:
            own = y[bounds[tenant] : bounds[tenant + 1], : len(tensors[key])]
            own.add_(tensors[key], alpha=scaling)
        for tenant, key, bias in rows.ratios:
            own = y[bounds[tenant] : bounds[tenant + 1], : len(tensors[key])]
            if bias is None:
                own.mul_(tensors[key])
            else:
                own.sub_(tensors[bias]).mul_(tensors[key]).add_(tensors[bias])
        self._scale(y, rows.after)

    def _scale(self, y: torch.Tensor, vectors: Sequence[tuple[int, Key]]) -> None:
        bounds = self._frame.bounds
        for tenant, key in vectors:
            vector = self._tensors[key].flatten()
            y[bounds[tenant] : bounds[tenant + 1], : len(vector)].mul_(vector)
