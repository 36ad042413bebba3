"""Variable-length attention for all rows at once gives what rows padded together get.

torch's kernel is for CUDA; here a plain function with its meaning stands in for it, and a test
for a card runs the kernel itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from blockzoo_runtime.kv import packed
from blockzoo_runtime.kv.attention import PagedAttention, attend
from blockzoo_runtime.kv.layout import PAGE, Layout
from blockzoo_runtime.kv.pool import Pool
from blockzoo_runtime.kv.spans import Span

CPU = torch.device("cpu")
WINDOWS = (None, 1, 3, PAGE, 21, 1000)
Heads = tuple[int, int]
#: (slots that stand already, slots after the step) of each row
STEPS: dict[str, tuple[tuple[int, int], ...]] = {
    "decode": ((7, 8), (8, 9), (0, 1), (62, 63)),
    "prefill": ((0, 5), (0, PAGE), (0, 33)),
    "chunks beside decode": ((7, 8), (16, 20), (0, 11), (40, 41), (3, 60)),
    "one row": ((30, 31),),
}


def varlen_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: torch.Tensor,
) -> torch.Tensor:
    """What `torch.nn.attention.varlen.varlen_attn` documents, masks aligned to the end."""
    for index in (cu_seq_q, cu_seq_k, seqused_k):
        assert index.dtype == torch.int32 and index.is_contiguous()
    assert query.shape[1] == key.shape[1] or enable_gqa
    assert max_q == int(cu_seq_q.diff().max()) and max_k == int(seqused_k.max())
    key, value = (each.repeat_interleave(query.shape[1] // key.shape[1], 1)
                  for each in (key, value))  # fmt: skip
    left, right = window_size
    out = torch.full_like(query, float("nan"))
    for row, used in enumerate(seqused_k.tolist()):
        first, last = cu_seq_q[row : row + 2].tolist()
        begin = int(cu_seq_k[row])
        assert begin + used <= int(cu_seq_k[row + 1])
        own, seen = key[begin : begin + used], value[begin : begin + used]
        at = torch.arange(last - first)[:, None] + used - (last - first)
        column = torch.arange(used)
        hidden = torch.zeros(last - first, used, dtype=torch.bool)
        if left >= 0:
            hidden |= column < at - left
        if right >= 0:
            hidden |= column > at + right
        scores = torch.einsum("qhd,khd->hqk", query[first:last], own) * scale
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        out[first:last] = torch.einsum("hqk,khd->qhd", weights, seen)
    return out


class Step:
    """Two groups of one layer; in the second, rows begin a page earlier. Prefixes are shared."""

    def __init__(
        self, rows: tuple[tuple[int, int], ...], heads: Heads, device: torch.device, dtype: Any
    ) -> None:
        draw = random.Random(repr(rows))
        torch.manual_seed(0)
        self.layout = Layout.of((1, 1), heads[1], 16, 16, 8, dtype)
        self.device = device
        self.pools = [Pool(self.layout, group, device) for group in (0, 1)]
        self.spans: list[list[Span]] = []
        for group, pool in enumerate(self.pools):
            taken = [pool.take() for _ in range(64)]
            shared = taken[:3]
            draw.shuffle(taken)
            spans, first = [], 0
            for start, end in rows:
                start = max(0, start - PAGE) if group else start
                kept = shared[: start // PAGE]
                own = [page for page in taken if page not in shared][: 8 - len(kept)]
                taken = [page for page in taken if page not in own]
                spans.append(Span(first, start, end, [*kept, *own]))
                first += end - start
            self.spans.append(spans)
            for stored in (pool.keys, pool.values):  # what this step does not write stands
                stored.copy_(torch.randn(stored.shape))
        self.inputs = []
        for spans in self.spans:
            count = sum(span.end - span.start for span in spans)
            self.inputs.append([torch.randn(1, number, count, 16).to(device, dtype)
                                for number in (heads[0], heads[1], heads[1])])  # fmt: skip

    def run(self, window: int | None) -> list[torch.Tensor]:
        """The two layers' outputs."""
        attention = PagedAttention(self.layout, self.pools, self.spans, self.device)
        outputs = []
        for layer, (query, key, value) in enumerate(self.inputs):
            given = attention.update(key, value, layer)
            outputs.append(attend(None, query, *given, sliding_window=window)[0])
        return outputs


@pytest.mark.parametrize("heads", [(4, 2), (3, 3)])
@pytest.mark.parametrize("rows", STEPS.values(), ids=STEPS)
def test_one_call_for_all_rows_is_what_they_get_padded(
    rows: tuple[tuple[int, int], ...], heads: Heads, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch.nn.attention.varlen as varlen

    step = Step(rows, heads, CPU, torch.float64)
    expected = {window: step.run(window) for window in WINDOWS}
    calls: list[tuple[int, int]] = []

    def called(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(kwargs["window_size"])
        return varlen_attn(*args, **kwargs)

    monkeypatch.setattr(packed, "is_usable", lambda *_: True)
    monkeypatch.setattr(varlen, "varlen_attn", called)
    for window, outputs in expected.items():
        for mine, right in zip(step.run(window), outputs, strict=True):
            torch.testing.assert_close(mine, right)
    assert len(calls) == 2 * len(WINDOWS)


def test_only_what_the_kernel_takes_is_given_to_it() -> None:
    usable: Callable[..., bool] = packed.is_usable
    assert not usable(CPU, torch.bfloat16, 64, 64)
    cuda = torch.device("cuda")
    assert not usable(cuda, torch.float32, 64, 64)
    assert not usable(cuda, torch.bfloat16, 64, 128)
    assert not usable(cuda, torch.bfloat16, 20, 20)
    assert not usable(cuda, torch.bfloat16, 512, 512)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", [(4, 2), (3, 3)])
@pytest.mark.parametrize("rows", STEPS.values(), ids=STEPS)
def test_the_kernel_gives_what_rows_get_padded_in_float64(
    rows: tuple[tuple[int, int], ...], heads: Heads, dtype: torch.dtype
) -> None:
    cuda = torch.device("cuda", torch.cuda.current_device())
    assert packed.is_usable(cuda, dtype, 16, 16)
    step, exact = Step(rows, heads, cuda, dtype), Step(rows, heads, CPU, torch.float64)
    for pool, same in zip(step.pools, exact.pools, strict=True):
        same.keys.copy_(pool.keys)
        same.values.copy_(pool.values)
    exact.inputs = [[each.to(CPU, torch.float64) for each in own] for own in step.inputs]
    for window in WINDOWS:
        for mine, right in zip(step.run(window), exact.run(window), strict=True):
            torch.testing.assert_close(mine.to(CPU, torch.float64), right, atol=0.02, rtol=0.02)
