"""Attention by torch's scaled dot product: rows with one new token together, others each alone.

For every device and dtype. Rows decoded together are padded to the longest of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch.nn.functional import scaled_dot_product_attention

from blockzoo_runtime.kv.layout import PAGE
from blockzoo_runtime.kv.spans import Span
from blockzoo_runtime.upload import upload

#: rows decoded together are padded to the longest, which may have this many pages more …
_SLACK = 4
#: … or be this many times as long as the shortest
_SPREAD = 1.5


class _Together:
    """Rows with one new token each, attended to in one call.

    Their pages are gathered side by side, padded with pages of their own.
    """

    def __init__(self, spans: Sequence[Span], everything: bool, device: torch.device) -> None:
        own = [span.pages for span in spans]
        most = max(map(len, own))
        padded = [[*pages, *([pages[0]] * (most - len(pages)))] for pages in own]
        self._rows = len(spans)
        self._length = most * PAGE
        self._pages, self._ends, index = upload(
            [
                list(chain.from_iterable(padded)),
                [span.end for span in spans],
                [] if everything else [span.first for span in spans],
            ],
            device,
        )
        #: their places among the packed tokens; None where they are all there is, in order
        self.index = None if everything else index
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


class Padded:
    """The rows of a group.

    Parameters
    ----------
    spans : sequence of Span
        In packed order.
    device : torch.device
    """

    def __init__(self, spans: Sequence[Span], device: torch.device) -> None:
        single = sorted(
            (span for span in spans if span.end - span.start == 1), key=lambda span: span.end
        )
        self._longer = [span for span in spans if span.end - span.start > 1]
        buckets: list[list[Span]] = []
        for span in single:
            fits = buckets and span.end <= buckets[-1][0].end * _SPREAD + _SLACK * PAGE
            if fits:
                buckets[-1].append(span)
            else:
                buckets.append([span])
        if len(buckets) == 1 and not self._longer:
            self._together = [_Together(spans, True, device)]
        else:
            self._together = [_Together(bucket, False, device) for bucket in buckets]
        self._pages: dict[int, torch.Tensor] = {}
        self._device = device

    def attend(
        self,
        query: torch.Tensor,
        new: tuple[torch.Tensor, torch.Tensor],
        stored: tuple[torch.Tensor, torch.Tensor],
        attention: Attention,
    ) -> torch.Tensor:
        """(1, N, query heads, width) from queries (1, query heads, N, width) in packed order.

        Parameters
        ----------
        query : torch.Tensor
        new : pair of torch.Tensor
            The new tokens' keys and values, (1, heads, N, width).
        stored : pair of torch.Tensor
            A layer's keys and values, (slots, heads, width); the new ones are there too.
        attention : Attention
        """
        if not self._longer and len(self._together) == 1 and self._together[0].index is None:
            return attention.together(self._together[0], query[0].transpose(0, 1), *stored)
        heads, count = query.shape[1:3]
        out = query.new_empty(1, count, heads, stored[1].shape[-1])
        for rows in self._together:
            assert rows.index is not None
            queries = query[0].index_select(1, rows.index).transpose(0, 1)
            out.index_copy_(1, rows.index, attention.together(rows, queries, *stored))
        for span in self._longer:
            last = span.first + span.end - span.start
            queries = query[:, :, span.first : last]
            if span.start == 0:
                keys, values = (each[:, :, span.first : last] for each in new)
            else:
                keys, values = (self._up_to_end(span, each) for each in stored)
            own = attention.longer(span, queries, keys, values)
            out[:, span.first : last] = own.transpose(1, 2)
        return out

    def _up_to_end(self, span: Span, stored: torch.Tensor) -> torch.Tensor:
        """A row's keys or values up to its end, (1, heads, end, width)."""
        if span.first not in self._pages:
            [self._pages[span.first]] = upload([span.pages], self._device)
        _, heads, width = stored.shape
        paged = stored.view(-1, PAGE * heads * width).index_select(0, self._pages[span.first])
        return paged.view(1, -1, heads, width)[:, : span.end].transpose(1, 2)


@dataclass(frozen=True)
class Attention:
    """What is computed of queries, keys and values.

    Parameters
    ----------
    scale : float
    window : int or None
        How many tokens back a token looks, itself included.
    softcap : float or None
        Scores pass through ``softcap · tanh(score / softcap)``.
    """

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
