"""Fitting a stitch: a ridge regression first, then distillation through the frozen blocks.

The regression maps one model's hidden states to another's on the same tokens, all positions
together, in standardised dimensions. It minimises a squared error that the layers behind the
stitch do not ask for; so a short distillation follows: the stitch alone learns, by gradients
through the second model's frozen layers, to give that model's own next-token distributions.
(Stitching: Lenc & Vedaldi 2015; Bansal et al. 2021. That the target of a regression is not what
counts: Csiszárik et al. 2021.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn.functional import log_softmax

from blockzoo.errors import SourceError
from blockzoo.execution.chain import RunnableChain
from blockzoo.execution.passage import LENGTH
from blockzoo.execution.stitch import Stitch
from blockzoo.progress import Progress, silent

#: so many tokens for each dimension that the regression has, at least
TOKENS_PER_DIMENSION = 10
_AT_ONCE = 2048  # tokens of the regression that are in memory
_STEP = 512  # tokens of a step: the stitch is small, and many steps teach it more than large ones
_EPSILON = 1e-6

Position = tuple[int, int]
"""After how many layers of the source, before which layer of the target."""


@dataclass(frozen=True)
class Settings:
    """How a stitch is fitted.

    Parameters
    ----------
    steps : int
        Of distillation, over all positions together; 0 for the regression alone.
    rate : float
        AdamW's largest learning rate; it rises over a tenth of the steps and falls to nought
        along a cosine.
    ridge : float
        What is added to the diagonal of the inputs' correlation.
    seed : int
        Of the order in which text is read.
    """

    steps: int = 400
    rate: float = 1e-2
    ridge: float = 1e-3
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Pair:
    """The model whose first layers a stitch takes, and the one whose last layers it leads to.

    Parameters
    ----------
    source, target : RunnableChain
        With one vocabulary.
    """

    source: RunnableChain
    target: RunnableChain


def pieces(documents: Sequence[Sequence[int]], width: int, length: int = LENGTH) -> torch.Tensor:
    """Documents one after another, cut into pieces of one length.

    Parameters
    ----------
    documents : sequence of sequence of int
    width : int
        The wider model's.
    length : int

    Returns
    -------
    torch.Tensor
        (pieces, length) int64.

    Raises
    ------
    SourceError
        Where there are fewer than ten tokens for each dimension.
    """
    ids = [token for document in documents for token in document]
    length = min(length, LENGTH // 2)
    whole = len(ids) // length * length
    if whole < TOKENS_PER_DIMENSION * width:
        raise SourceError(
            f"the calibration text is too small: {len(ids):,} tokens, where a stitch of width "
            f"{width} takes at least {TOKENS_PER_DIMENSION * width + length:,}",
            hint="give more text with --calibration FILE, which may be repeated",
        )
    return torch.tensor(ids[:whole]).view(-1, length)


def fit(
    pair: Pair,
    positions: Sequence[Position],
    ids: torch.Tensor,
    settings: Settings,
    *,
    mapped: bool = True,
    shuffled: bool = False,
    progress: Progress = silent,
) -> Stitch:
    """Fit one stitch for some positions.

    Parameters
    ----------
    pair : Pair
    positions : sequence of (int, int)
        After how many layers of the source, before which layer of the target.
    ids : torch.Tensor
        (pieces, length) int64.
    settings : Settings
    mapped : bool
        False for a control: the matrix is nought and stays so.
    shuffled : bool
        True for a control: what the source says of a token is taken for another token's.
    progress : Progress
        Told tokens, then steps.
    """
    stitch, ends = _regression(pair, positions, ids, settings, shuffled, progress)
    if not mapped:
        stitch.map.weight.data.zero_()
        stitch.map.weight.requires_grad_(False)
    if settings.steps:
        _distil(stitch, pair, positions, ids, ends, settings, shuffled, progress)
    return stitch.eval().requires_grad_(False)


def until(chain: RunnableChain, layer: int) -> int:
    """How many of a chain's hops stand before a layer."""
    return sum(hop.depth < layer for hop in chain.compiled.hops)


def _states(
    chain: RunnableChain, ids: torch.Tensor, layers: Sequence[int]
) -> dict[int, torch.Tensor]:
    """The hidden states before some layers, (B, T, width) each."""
    wanted = {until(chain, layer): layer for layer in layers}
    context = chain.begin(ids)
    hidden, found = context.hidden, {}
    for number in range(max(wanted) + 1):
        if number in wanted:
            found[wanted[number]] = hidden
        if number < max(wanted):
            with chain.hop(number) as run:
                hidden = run(hidden, context)
    return found


class _Moments:
    """Sums over tokens of what goes in, what should come out, and their products, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._sums: list[torch.Tensor] | None = None

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Take in (tokens, width in) and (tokens, width out)."""
        x, y = x.double(), y.double()
        sums = [x.sum(0), y.sum(0), (y * y).sum(0), x.T @ x, y.T @ x]
        own = self._sums
        self._sums = sums if own is None else [a + b for a, b in zip(own, sums, strict=True)]
        self.count += len(x)

    def standard(self) -> tuple[torch.Tensor, ...]:
        """Means and deviations of both, the inputs' correlation, and the correlation of both."""
        assert self._sums is not None
        x, y, yy, xx, yx = (total / self.count for total in self._sums)
        of_x = (xx.diagonal() - x * x).clamp_min(0).sqrt() + _EPSILON
        of_y = (yy - y * y).clamp_min(0).sqrt() + _EPSILON
        inner = (xx - x[:, None] * x) / of_x[:, None] / of_x
        across = (yx - y[:, None] * x) / of_y[:, None] / of_x
        return x, of_x, y, of_y, inner, across


def _regression(
    pair: Pair,
    positions: Sequence[Position],
    ids: torch.Tensor,
    settings: Settings,
    shuffled: bool,
    progress: Progress,
) -> tuple[Stitch, torch.Tensor]:
    """The regression's stitch, and the target's states before its head, (pieces, T, width)."""
    sources, targets = (sorted(set(depths)) for depths in zip(*positions, strict=True))
    end = 1 + max(hop.depth for hop in pair.target.compiled.hops)
    ends = []
    moments = {position: _Moments() for position in positions}
    order = torch.Generator().manual_seed(settings.seed)
    rows = max(1, _AT_ONCE // ids.shape[1])
    for first in range(0, len(ids), rows):
        some = ids[first : first + rows]
        before = _states(pair.source, some, sources)
        after = _states(pair.target, some, [*targets, end])
        ends.append(after[end])
        for (source, target), sums in moments.items():
            x, y = before[source].flatten(0, 1), after[target].flatten(0, 1)
            sums.add(x[torch.randperm(len(x), generator=order)] if shuffled else x, y)
        progress("regression", min(first + rows, len(ids)) * ids.shape[1], ids.numel(), 0)
    told = {position: sums.standard() for position, sums in moments.items()}
    width_in, width_out = (len(told[positions[0]][n]) for n in (0, 2))
    inner = torch.stack([each[4] for each in told.values()]).mean(0)
    across = torch.stack([each[5] for each in told.values()]).mean(0)
    inner = inner + settings.ridge * torch.eye(width_in, dtype=inner.dtype)
    with torch.random.fork_rng(devices=[]):  # nobody else's random numbers change
        stitch = Stitch(sources, targets, width_in, width_out)
    stitch.map.weight.data = torch.linalg.solve(inner, across.T).T.float().contiguous()
    for (source, target), (x, of_x, y, of_y, *_) in told.items():
        row, column = sources.index(source), targets.index(target)
        stitch.enter.weight.data[row] = (1 / of_x).float()
        stitch.enter.bias.data[row] = (-x / of_x).float()
        stitch.leave.weight.data[column] = of_y.float()
        stitch.leave.bias.data[column] = y.float()
    return stitch, torch.cat(ends)


def _distil(
    stitch: Stitch,
    pair: Pair,
    positions: Sequence[Position],
    ids: torch.Tensor,
    ends: torch.Tensor,
    settings: Settings,
    shuffled: bool,
    progress: Progress,
) -> None:
    """Let the stitch learn the target's next-token distributions, position after position."""
    learning = [p for p in stitch.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr=settings.rate, weight_decay=0.0)
    order = torch.Generator().manual_seed(settings.seed)
    batches = _batches(len(ids), max(1, _STEP // ids.shape[1]), order)
    for step in range(settings.steps):
        rows, at = next(batches), positions[step % len(positions)]
        some = ids[rows]
        [hidden] = _states(pair.source, some, [at[0]]).values()
        expected = log_softmax(pair.target.end(ends[rows]), -1)
        if shuffled:
            flat = hidden.flatten(0, 1)
            hidden = flat[torch.randperm(len(flat), generator=order)].view_as(hidden)
        for group in optimiser.param_groups:
            group["lr"] = settings.rate * _schedule(step, settings.steps)
        got = log_softmax(_tail(pair.target, stitch.stand(at)(hidden), some, at[1]), -1)
        loss = (expected.exp() * (expected - got)).sum(-1).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step()
        progress("distillation", step + 1, settings.steps, 0)


def _schedule(step: int, steps: int) -> float:
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 + 0.5 * math.cos(math.pi * (step - warm) / max(1, steps - warm))


def _batches(count: int, rows: int, order: torch.Generator) -> Iterator[torch.Tensor]:
    """Numbers of pieces, so many at a time, in random order, over and over."""
    rows = min(count, rows)
    while True:
        shuffled = torch.randperm(count, generator=order)
        for first in range(0, count - rows + 1, rows):
            yield shuffled[first : first + rows]


def _tail(
    chain: RunnableChain, hidden: torch.Tensor, ids: torch.Tensor, layer: int
) -> torch.Tensor:
    """Logits of hidden states before a layer; gradients go back to them."""
    context = chain.begin(ids)
    for number in range(until(chain, layer), len(chain.compiled.hops)):
        with chain.hop(number, grad=True) as run:
            hidden = run(hidden, context)
    return chain.end(hidden, grad=True)
