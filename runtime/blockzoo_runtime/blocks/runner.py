"""One step for rows of any tenants: lane after lane."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from blockzoo_runtime.blocks.lane import Lane
from blockzoo_runtime.blocks.profile import Profile
from blockzoo_runtime.blocks.resident import ResidentTensors
from blockzoo_runtime.blocks.rows import Work
from blockzoo_runtime.kv.cache import KVCache

if TYPE_CHECKING:
    pass

__all__ = ["Logits", "Runner", "StepReport", "Work"]


@dataclass
class Part:
    """The logits of one lane's rows.

    Parameters
    ----------
    values : torch.Tensor
        (R, V) float32; ``-inf`` past a smaller vocabulary.
    rows : list of (int, int, int)
        Place in the step's works, first row of ``values``, how many.
    """

    values: torch.Tensor
    rows: list[tuple[int, int, int]]


@dataclass
class Logits:
    """A step's logits, lane by lane."""

    parts: list[Part] = field(default_factory=list)

    def of(self, work: int) -> torch.Tensor:
        """A work's logits, (outputs, V) float32, by its place in the step."""
        for part in self.parts:
            for index, first, count in part.rows:
                if index == work:
                    return part.values[first : first + count]
        raise KeyError(work)


@dataclass(frozen=True)
class StepReport:
    """What a step took.

    Parameters
    ----------
    rows, tokens, lanes : int
        Rows, new slots computed in the last hop group, and groups of tenants of one make.
    weight_bytes : int
        Bytes of weights read: each distinct tensor of the active tenants once.
    separate_bytes : int
        What a step of each active tenant by itself would have read.
    kv_bytes : int
        Bytes of keys and values that attention read.
    """

    rows: int
    tokens: int
    lanes: int
    weight_bytes: int
    separate_bytes: int
    kv_bytes: int


class Runner:
    """Runs steps; one thread at a time.

    Parameters
    ----------
    resident : ResidentTensors
    kv : KVCache
    profile : callable, optional
        Finds the figures of this device for a compute dtype, see `profile`.
    """

    def __init__(
        self,
        resident: ResidentTensors,
        kv: KVCache,
        profile: Callable[[torch.dtype], Profile | None] = lambda _: None,
    ) -> None:
        self.resident = resident
        self.kv = kv
        self._profile = profile
        self._lanes: dict[Hashable, Lane] = {}

    def step(self, works: Sequence[Work]) -> tuple[Logits, StepReport]:
        """Compute new slots of rows whose tenants are resident and stay so (`using`).

        Returns
        -------
        Logits
        StepReport
        """
        by_lane: dict[Hashable, list[int]] = {}
        for i, work in enumerate(works):
            by_lane.setdefault(work.tenant.lane, []).append(i)
        logits = Logits()
        weights = separate = kv = tokens = 0
        with torch.inference_mode():
            for key, mine in by_lane.items():
                lane = self._lanes.get(key)
                if lane is None:
                    first = works[mine[0]].tenant
                    profile = self._profile(first.dtype)
                    lane = self._lanes[key] = Lane(self.resident, self.kv, first, profile)
                own = [works[i] for i in mine]
                new = sum(work.end - work.pages.starts[-1] for work in own)
                kv += sum(work.end * work.tenant.layout.slot_bytes for work in own)
                values, order = lane.step(own)
                rows, first_row = [], 0
                for i in order:
                    rows.append((mine[i], first_row, own[i].outputs))
                    first_row += own[i].outputs
                logits.parts.append(Part(values, rows))
                weights += lane.route.weight_bytes + lane.route.row_bytes * new
                separate += lane.route.separate_bytes
                tokens += new
        report = StepReport(len(works), tokens, len(by_lane), weights, separate, kv)
        return logits, report
