"""All rows of a group in one call of torch's variable-length attention, on CUDA.

The kernel reads pages of 256 slots or none at all (``mha_varlen_fwd`` in torch 2.13), so a
layer's pages are gathered first, row after row. A row's queries are its last tokens: masks are
aligned to the end of its keys (Flash Attention 2.1 and later).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import torch

from blockzoo_runtime.kv.layout import PAGE
from blockzoo_runtime.kv.spans import Span

#: torch's ``varlen_attn`` takes ``seqused_k`` and fewer heads of keys from here on
_SINCE = "2.13"


@cache
def is_usable(device: torch.device, dtype: torch.dtype, key_width: int, value_width: int) -> bool:
    """Whether the kernel takes heads of these widths on a device; it has no softcap."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.__version__ >= _SINCE
        and dtype in (torch.float16, torch.bfloat16)
        and key_width == value_width
        and key_width % 8 == 0
        and key_width <= 256
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def numbers(spans: Sequence[Span]) -> list[list[int]]:
    """What is to be uploaded, as int32, for `Packed.tensors`."""
    pages = [span.pages for span in spans]
    return [
        [page for own in pages for page in own],
        [0, *accumulate(span.end - span.start for span in spans)],
        [0, *accumulate(PAGE * len(own) for own in pages)],
        [span.end for span in spans],
    ]


@dataclass(frozen=True)
class Packed:
    """The rows of a group.

    Parameters
    ----------
    tensors : sequence of torch.Tensor
        `numbers`, uploaded: all rows' pages (P,), where each row's queries begin (rows + 1,),
        where its gathered keys begin (rows + 1,), how many of them count (rows,); int32.
    most_queries, most_keys : int
        Of any row.
    """

    tensors: Sequence[torch.Tensor]
    most_queries: int
    most_keys: int

    @classmethod
    def of(cls, spans: Sequence[Span], tensors: Sequence[torch.Tensor]) -> Packed:
        """The plan for a step's rows in a group."""
        most_queries = max((span.end - span.start for span in spans), default=0)
        return cls(tensors, most_queries, max((span.end for span in spans), default=0))

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        """(1, N, query heads, width) from queries (1, query heads, N, width) in packed order.

        Parameters
        ----------
        query : torch.Tensor
            float16 or bfloat16.
        keys, values : torch.Tensor
            A layer's, (slots, heads, width).
        scale : float
        window : int or None
            How many tokens back a token looks, itself included.
        """
        from torch.nn.attention.varlen import varlen_attn

        pages, queries, begins, ends = self.tensors
        size = (-1, 0)
        if window is not None and window < self.most_keys:
            size = (window - 1, 0)
        elif self.most_queries == 1:
            # nothing is hidden from a row's last token; told so, the kernel reads the keys once
            # for all the query heads that share them and splits long rows
            size = (-1, -1)
        out = varlen_attn(
            query[0].transpose(0, 1),
            _gathered(keys, pages),
            _gathered(values, pages),
            queries,
            begins,
            self.most_queries,
            self.most_keys,
            scale=scale,
            window_size=size,
            enable_gqa=query.shape[1] != keys.shape[1],
            seqused_k=ends,
        )
        assert isinstance(out, torch.Tensor)
        return out[None]


def _gathered(stored: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
    """(P · PAGE, heads, width) from a layer's (slots, heads, width)."""
    _, heads, width = stored.shape
    paged = stored.view(-1, PAGE * heads * width).index_select(0, pages)
    return paged.view(-1, heads, width)
