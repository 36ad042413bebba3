"""Rows of many tenants stepped by hand: joined when wanted, in chunks of any size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from blockzoo_runtime.blocks.resident import ResidentTensors
from blockzoo_runtime.blocks.runner import Runner, StepReport, Work
from blockzoo_runtime.kv.cache import KVCache
from blockzoo_runtime.kv.memory import Memory
from blockzoo_runtime.kv.pages import Pages
from blockzoo_runtime.tenant import Tenant
from blockzoo_runtime.tenants import Tenants

from blockzoo.zoo import Zoo

CPU = torch.device("cpu")


@dataclass(eq=False)
class Row:
    tenant: Tenant
    prompt: list[int]
    slots: list[int]
    pages: Pages
    count: int
    chunk: int
    reused: tuple[int, ...]
    logits: list[torch.Tensor] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        """What was generated."""
        return self.slots[len(self.tenant.virtual) + len(self.prompt) :]

    @property
    def done(self) -> bool:
        return len(self.tokens) >= self.count


class Stepper:
    """A runner over a zoo, greedy, one thread."""

    def __init__(
        self, zoo: Zoo, dtype: torch.dtype | None = torch.float32, device: torch.device = CPU
    ) -> None:
        self.memory = Memory(None)
        self.resident = ResidentTensors(zoo.tensor, device, self.memory)
        self.kv = KVCache(self.memory, device)
        self.runner = Runner(self.resident, self.kv)
        self.tenants = Tenants(zoo, self.resident, dtype)
        self.computed = 0  # slots, in the last group

    def row(
        self, name: str, prompt: Sequence[int], count: int, chunk: int = 1 << 30, share: bool = True
    ) -> Row:
        tenant = self.tenants.get(name)
        self.resident.load(tenant.digest, tenant.needs)
        slots = [*tenant.virtual, *prompt]
        pages = self.kv.begin(tenant.layout, tenant.upstream if share else None, slots)
        if tenant.whole:
            chunk = 1 << 30
        reused = tuple(pages.starts)
        return Row(tenant, list(prompt), slots, pages, count, chunk, reused)

    def step(self, rows: Iterable[Row]) -> StepReport:
        """Every row gets its next chunk, or its next token."""
        rows = list(rows)
        works = []
        for row in rows:
            self._recompute(row)
            end = min(len(row.slots), row.pages.starts[-1] + row.chunk)
            assert self.kv.extend(row.pages, end)
            works.append(Work(row.tenant, row.pages, row.slots, end, int(end == len(row.slots))))
        with self.resident.using([row.tenant.digest for row in rows]):
            logits, report = self.runner.step(works)
        self.computed += report.tokens
        for i, (row, work) in enumerate(zip(rows, works, strict=True)):
            self.kv.computed(row.pages, row.tenant.upstream, row.slots, work.end)
            if work.outputs:
                last = logits.of(i)[-1, : row.tenant.vocabulary].to(CPU, copy=True)
                row.logits.append(last)
                row.slots.append(int(last.argmax()))
        return report

    def _recompute(self, row: Row) -> None:
        limit = row.tenant.recompute_after
        if limit is not None and len(row.slots) == limit + 1:
            self.kv.release(row.pages)
            row.pages = self.kv.begin(row.tenant.layout, None, row.slots)

    def run(self, rows: Sequence[Row], joins: Sequence[int] = ()) -> None:
        """Step until all are done; row i joins at step ``joins[i]``."""
        at = list(joins) or [0] * len(rows)
        step = 0
        while not all(row.done for row in rows):
            active = [row for row, join in zip(rows, at, strict=True)
                      if join <= step and not row.done]  # fmt: skip
            if active:
                self.step(active)
            step += 1
        for row in rows:
            self.kv.release(row.pages)
