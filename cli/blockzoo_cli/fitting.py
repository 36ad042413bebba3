"""A training loop for the demo's small models: a schedule that keeps time, and its optimizers."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

#: input ids and labels, each (rows, positions) int64
Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]

_MUON = 5.0  # its learning rate over AdamW's
_PROBES = 4  # timed steps for each number of threads


@dataclass(frozen=True)
class Schedule:
    """Peak learning rate, and an end by steps or seconds, whichever comes first."""

    rate: float
    steps: int
    seconds: float

    def share(self, step: int, done: float) -> float:
        """What part of the peak to learn with: a short warm-up, then a cosine to 2%."""
        warmup = min(1.0, (step + 1) / max(1, self.steps // 20))
        return warmup * (0.02 + 0.98 * math.cos(math.pi / 2 * done) ** 2)


def fit(
    model: Any, batches: Batches, schedule: Schedule, progress: Callable[[float, str], None]
) -> None:
    """Train what `model` has that requires a gradient.

    Parameters
    ----------
    model : transformers' or PEFT's causal LM
        In float32.
    batches : iterator
    schedule : Schedule
    progress : callable
        Told what part is done, and the loss.
    """
    optimizers = _optimizers(model, schedule.rate)
    parameters = [p for p in model.parameters() if p.requires_grad]
    model.train()
    started = time.monotonic()
    loss = 0.0
    for step in range(schedule.steps):
        done = max(step / schedule.steps, (time.monotonic() - started) / schedule.seconds)
        if done >= 1:
            break
        share = schedule.share(step, done)
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * share
        loss = _backward(model, *next(batches))
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        progress(done, f"loss {loss:.2f}")
    model.eval()
    progress(1.0, f"loss {loss:.2f}")


@contextmanager
def best_threads(model: Any, ids: torch.Tensor) -> Iterator[None]:
    """Within, torch uses the number of threads with which `model` is fastest just now.

    Operations this small wait for their threads more than they gain from them, the more so on
    a machine with many cores or with other work.
    """
    before = torch.get_num_threads()
    times = {}
    for threads in (1, 2, 4):
        if threads > (os.cpu_count() or 1):
            break
        torch.set_num_threads(threads)
        _backward(model, ids, ids)  # the first call allocates
        started = time.monotonic()
        for _ in range(_PROBES):
            _backward(model, ids, ids)
        times[threads] = time.monotonic() - started
    torch.set_num_threads(min(times, key=lambda threads: times[threads]))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _backward(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> float:
    loss = model(input_ids=ids, labels=labels, use_cache=False).loss
    loss.backward()
    return float(loss.item())


def _optimizers(model: Any, rate: float) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the layers' matrices, which then learn in half the steps; AdamW for the rest.

    Each comes with its peak learning rate.
    """
    tuned = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    hidden = [p for name, p in tuned if p.ndim == 2 and "proj.weight" in name]
    chosen = {id(p) for p in hidden}
    others = [p for _, p in tuned if id(p) not in chosen]
    optimizers: list[tuple[torch.optim.Optimizer, float]] = []
    if hidden:
        muon = torch.optim.Muon(hidden, lr=rate, weight_decay=0.0)
        optimizers.append((muon, _MUON * rate))
    if others:
        adam = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
        optimizers.append((adam, rate))
    return optimizers
