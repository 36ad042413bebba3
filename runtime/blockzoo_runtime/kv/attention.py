"""Attention over pages: the cache and the attention function of transformers' modules here.

A step's new tokens are packed, ``(1, heads, N, width)``, and need no mask of transformers':
`PagedAttention` knows which belong to which row and where each row's keys and values lie. A
module first hands its keys and values to `PagedAttention.update`, as to any cache, and then
calls `attend`, which is registered as the attention function `NAME`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from blockzoo_runtime.kv.layout import PAGE, Layout
from blockzoo_runtime.kv.pool import Pool

#: the name under which transformers knows `attend`
NAME = "blockzoo"

#: rows decoded together are padded to the longest, which may have this many pages more …
_SLACK = 4
#: … or be this many times as long as the shortest
_SPREAD = 1.5


@dataclass(frozen=True)
class Span:
    """A row's new tokens in one group.

    Parameters
    ----------
    first : int
        Where they begin among the packed tokens.
    start, end : int
        The slots they fill.
    table : sequence of int
        The row's pages in this group.
    """

    first: int
    start: int
    end: int
    table: Sequence[int]


class _Together:
    """Rows with one new token each, attended to in one call.

    Their pages are gathered side by side, padded with pages of their own.
    """

    def __init__(self, spans: Sequence[Span], everything: bool, device: torch.device) -> None:
        counts = [-(-span.end // PAGE) for span in spans]
        most = max(counts)
        padded = [
            [*span.table[:count], *([span.table[0]] * (most - count))]
            for span, count in zip(spans, counts, strict=True)
        ]
        self._rows = len(spans)
        self._length = most * PAGE
        self._pages = torch.tensor(list(chain.from_iterable(padded)), device=device)
        self._ends = torch.tensor([span.end for span in spans], device=device)
        #: their places among the packed tokens; None where they are all there is, in order
        self.index: torch.Tensor | None = None
        if not everything:
            self.index = torch.tensor([span.first for span in spans], device=device)
        self._full = all(span.end == self._length for span in spans)
        self._masks: dict[int | None, torch.Tensor | None] = {}

    def gather(self, stored: torch.Tensor) -> torch.Tensor:
        """(rows, heads, length, width) from a layer's (slots, heads, width)."""
        _, heads, width = stored.shape
        paged = stored.view(-1, PAGE * heads * width).index_select(0, self._pages)
        return paged.view(self._rows, self._length, heads, width).transpose(1, 2)

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """(rows, 1, 1, length): 0 where a token may look, else -inf; None: everywhere."""
        if self._full and (window is None or window >= self._length):
            return None
        if window not in self._masks:
            slots = torch.arange(self._length, device=self._ends.device)
            seen = slots < self._ends[:, None]
            if window is not None:
                seen &= slots >= (self._ends - window)[:, None]
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            self._masks[window] = mask.masked_fill_(~seen, float("-inf"))[:, None, None]
        return self._masks[window]


class _Plan:
    """One group's part of a step: the same for each of its layers."""

    def __init__(self, spans: Sequence[Span], device: torch.device) -> None:
        self.slots = torch.tensor(
            [
                span.table[slot // PAGE] * PAGE + slot % PAGE
                for span in spans
                for slot in range(span.start, span.end)
            ],
            device=device,
            dtype=torch.long,
        )  # where each packed token's keys and values go
        single = sorted(
            (span for span in spans if span.end - span.start == 1), key=lambda span: span.end
        )
        self.longer = [span for span in spans if span.end - span.start > 1]
        buckets: list[list[Span]] = []
        for span in single:
            fits = buckets and span.end <= buckets[-1][0].end * _SPREAD + _SLACK * PAGE
            if fits:
                buckets[-1].append(span)
            else:
                buckets.append([span])
        if len(buckets) == 1 and not self.longer:
            self.together = [_Together(spans, True, device)]
        else:
            self.together = [_Together(bucket, False, device) for bucket in buckets]
        self._pages: dict[int, torch.Tensor] = {}
        self._device = device
        # unfilled slots of new pages must hold numbers: what is masked is multiplied by nought
        self.blank = [
            span.table[slot // PAGE] * PAGE + slot % PAGE
            for span in spans
            if span.start <= (span.end - 1) // PAGE * PAGE
            for slot in range(span.end, -(-span.end // PAGE) * PAGE)
        ]

    def stored(self, span: Span, of_layer: torch.Tensor) -> torch.Tensor:
        """A row's keys or values up to its end, (1, heads, end, width)."""
        if span.first not in self._pages:
            pages = list(span.table[: -(-span.end // PAGE)])
            self._pages[span.first] = torch.tensor(pages, device=self._device)
        _, heads, width = of_layer.shape
        paged = of_layer.view(-1, PAGE * heads * width).index_select(0, self._pages[span.first])
        return paged.view(1, -1, heads, width)[:, : span.end].transpose(1, 2)


_now = threading.local()


class PagedAttention:
    """A step's KV cache, as transformers' modules see one.

    Parameters
    ----------
    layout : Layout
    pools : sequence of Pool
        One for each group.
    spans : sequence of sequence of Span
        For each group, every row with new tokens, in packed order.
    device : torch.device
    """

    def __init__(
        self,
        layout: Layout,
        pools: Sequence[Pool],
        spans: Sequence[Sequence[Span]],
        device: torch.device,
    ) -> None:
        self._layout = layout
        self._pools = pools
        self._plans = []
        for pool, of_group in zip(pools, spans, strict=True):
            plan = _Plan(of_group, device)
            self._plans.append(plan)
            if plan.blank:
                index = torch.tensor(plan.blank, device=device)
                pool.keys.index_fill_(1, index, 0)
                pool.values.index_fill_(1, index, 0)

    def slots(self, group: int) -> torch.Tensor:
        """Where the packed tokens of a group go, (N,) int64."""
        return self._plans[group].slots

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a layer's new keys and values, (1, heads, N, width) each; returns them."""
        group, within = self._layout.group_of(layer)
        plan, pool = self._plans[group], self._pools[group]
        of_layer = pool.keys[within], pool.values[within]
        of_layer[0].index_copy_(0, plan.slots, keys[0].transpose(0, 1))
        of_layer[1].index_copy_(0, plan.slots, values[0].transpose(0, 1))
        _now.plan, _now.stored = plan, of_layer
        return keys, values


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of packed tokens over each row's pages.

    Parameters
    ----------
    query : torch.Tensor
        (1, query heads, N, width).
    key, value : torch.Tensor
        (1, heads, N, width): the new ones, which `PagedAttention.update` has stored.
    sliding_window : int, optional
        How many tokens back a token looks, itself included.
    softcap : float, optional
        Scores pass through ``softcap · tanh(score / softcap)``.

    Returns
    -------
    torch.Tensor
        (1, N, query heads, width).
    """
    plan: _Plan = _now.plan
    keys, values = _now.stored
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    attention = _Attention(scale, sliding_window, softcap)
    if not plan.longer and len(plan.together) == 1 and plan.together[0].index is None:
        return attention.together(plan.together[0], query[0].transpose(0, 1), keys, values), None
    heads, count = query.shape[1:3]
    out = query.new_empty(1, count, heads, values.shape[-1])
    for rows in plan.together:
        assert rows.index is not None
        queries = query[0].index_select(1, rows.index).transpose(0, 1)
        out.index_copy_(1, rows.index, attention.together(rows, queries, keys, values))
    for span in plan.longer:
        last = span.first + span.end - span.start
        queries = query[:, :, span.first : last]
        if span.start == 0:
            own = key[:, :, span.first : last], value[:, :, span.first : last]
        else:
            own = plan.stored(span, keys), plan.stored(span, values)
        out[:, span.first : last] = attention.longer(span, queries, *own).transpose(1, 2)
    return out, None


@dataclass(frozen=True)
class _Attention:
    scale: float
    window: int | None
    softcap: float | None

    def together(
        self, rows: _Together, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """One query a row, (rows, query heads, width), to (1, rows, query heads, width).

        The query heads that share a key head are given as so many queries of that head: its
        keys are read once, and on CPUs torch's attention is several times faster for it.
        """
        count, heads, width = queries.shape
        shared = keys.shape[1]
        folded = queries.reshape(count, shared, heads // shared, width)
        alone = heads == shared and queries.dtype != torch.float32 and queries.device.type == "cpu"
        if alone:  # as above: two equal queries are faster than one
            folded = folded.expand(-1, -1, 2, -1)
        mask = rows.mask(self.window, queries.dtype)
        out = self._attend(folded, rows.gather(keys), rows.gather(values), mask)
        if alone:
            out = out[:, :, :1]
        return out.reshape(1, count, heads, values.shape[-1])

    def longer(
        self, span: Span, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """Several queries of one row, (1, query heads, n, width), to the same shape."""
        window = self.window if self.window is not None and self.window < span.end else None
        if span.start == 0 and window is None and self.softcap is None:
            return scaled_dot_product_attention(
                queries,
                keys,
                values,
                is_causal=True,
                scale=self.scale,
                enable_gqa=queries.shape[1] != keys.shape[1],
            )
        own = torch.arange(span.start, span.end, device=queries.device)[:, None]
        slots = torch.arange(span.end, device=queries.device)
        seen = slots <= own
        if window is not None:
            seen &= slots > own - window
        mask = torch.zeros(seen.shape, dtype=queries.dtype, device=queries.device)
        mask.masked_fill_(~seen, float("-inf"))
        return self._attend(queries, keys, values, mask[None, None])

    def _attend(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        if self.softcap is None:
            return scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=mask,
                scale=self.scale,
                enable_gqa=queries.shape[1] != keys.shape[1],
            )
        groups = queries.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
        scores = torch.matmul(queries, keys.transpose(2, 3)) * self.scale
        scores = torch.tanh(scores / self.softcap) * self.softcap
        if mask is not None:
            scores = scores + mask
        weights = scores.softmax(-1, dtype=torch.float32).to(queries.dtype)
        return torch.matmul(weights, values)


def register() -> None:
    """Make `attend` known to transformers, which then builds no masks for its modules."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
