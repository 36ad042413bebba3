"""One tenant's requests through its chain, all rows at once, until each is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from blockzoo_runtime.engine.row import Row
from blockzoo_runtime.tenant import Tenant


def run(tenant: Tenant, rows: Sequence[Row], most: int) -> Iterator[tuple[Row, str]]:
    """Generate for all of them, in batches of at most `most` rows.

    Yields
    ------
    row : Row
        That has just got a token.
    text : str
        What is certain of its text since its last turn.
    """
    for batch in _batches(rows, most, tenant.equal_lengths):
        yield from _Batch(tenant, batch).run()


def _batches(rows: Sequence[Row], most: int, equal_lengths: bool) -> Iterator[list[Row]]:
    """Rows of like lengths together, so that little is padding."""
    ordered = sorted(rows, key=lambda row: len(row.prompt))
    batch: list[Row] = []
    for row in ordered:
        differs = batch and equal_lengths and len(batch[0].prompt) != len(row.prompt)
        if len(batch) == most or differs:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


class _Batch:
    """Rows that go through the chain together, left-padded, with one KV cache."""

    def __init__(self, tenant: Tenant, rows: list[Row]) -> None:
        self._tenant = tenant
        self._rows = rows
        self._cache: Any = None

    def run(self) -> Iterator[tuple[Row, str]]:
        mask = self._begin()
        while self._rows:
            logits = self._tenant.forward(self._inputs, mask, self._cache)  # (B, 1, V)
            for row, scores in zip(self._rows, logits[:, -1], strict=True):
                yield row, row.advance(scores)
            mask = self._next(mask)

    def _begin(self) -> torch.Tensor | None:
        """A new cache and every row whole; returns the mask (B, T), None where all is text."""
        ids = [row.ids for row in self._rows]
        length = max(map(len, ids))
        device = self._tenant.device
        # what is masked has no effect, but must be a token of the vocabulary
        padded = [[0] * (length - len(row)) + row for row in ids]
        self._inputs = torch.tensor(padded, device=device)  # (B, T)
        self._cache = self._tenant.chain.new_cache()
        if all(len(row) == length for row in ids):
            return None
        mask = [[0] * (length - len(row)) + [1] * len(row) for row in ids]
        return torch.tensor(mask, device=device)

    def _next(self, mask: torch.Tensor | None) -> torch.Tensor | None:
        """Drop finished rows and make the next step's inputs; returns its mask (B, past + 1)."""
        kept = [i for i, row in enumerate(self._rows) if row.finish_reason is None]
        if not kept:
            self._rows, self._cache = [], None
            return None
        device = self._tenant.device
        if len(kept) < len(self._rows):
            self._rows = [self._rows[i] for i in kept]
            index = torch.tensor(kept, device=device)
            self._cache.batch_select_indices(index)
            mask = mask[index] if mask is not None else None
        limit = self._tenant.chain.recompute_after
        if limit is not None and len(self._rows[0].ids) == limit + 1:
            return self._begin()
        self._inputs = torch.tensor([[row.last] for row in self._rows], device=device)
        if mask is None:
            return None
        return torch.cat((mask, mask.new_ones(len(self._rows), 1)), dim=1)
