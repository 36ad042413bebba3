"""Attention over pages: the cache and the attention function of transformers' modules here.

A step's new tokens are packed, ``(1, heads, N, width)``, and need no mask of transformers':
`PagedAttention` knows which belong to which row and where each row's keys and values lie. A
module first hands its keys and values to `PagedAttention.update`, as to any cache, and then
calls `attend`, which is registered as the attention function `NAME`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from blockzoo_runtime.kv import packed
from blockzoo_runtime.kv.layout import Layout
from blockzoo_runtime.kv.packed import Packed
from blockzoo_runtime.kv.padded import Attention, Padded
from blockzoo_runtime.kv.pool import Pool
from blockzoo_runtime.kv.spans import Span, blank_slots, new_slots
from blockzoo_runtime.upload import upload

#: the name under which transformers knows `attend`
NAME = "blockzoo"


class _Plan:
    """One group's part of a step: the same for each of its layers."""

    def __init__(self, spans: Sequence[Span], slots: torch.Tensor, together: Packed | None) -> None:
        self.slots = slots
        self.packed = together
        self._spans = spans

    @cached_property
    def padded(self) -> Padded:
        return Padded(self._spans, self.slots.device)


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
        blank = [blank_slots(of_group) for of_group in spans]
        places = upload([*(new_slots(of_group) for of_group in spans), *blank], device)
        plans: list[Packed | None] = [None] * len(spans)
        if all(
            packed.is_usable(device, layout.dtype, group.key_width, group.value_width)
            for group in layout.groups
        ):
            numbers = [packed.numbers(of_group) for of_group in spans]
            tensors = iter(upload([each for own in numbers for each in own], device, torch.int32))
            plans = [Packed.of(of_group, [next(tensors) for _ in own])
                     for of_group, own in zip(spans, numbers, strict=True)]  # fmt: skip
        self._plans = [
            _Plan(of_group, slots, together)
            for of_group, slots, together in zip(spans, places[: len(spans)], plans, strict=True)
        ]
        for pool, own, index in zip(pools, blank, places[len(spans) :], strict=True):
            if own:
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
    if plan.packed is not None and softcap is None:
        return plan.packed.attend(query, keys, values, scale, sliding_window), None
    attention = Attention(scale, sliding_window, softcap)
    return plan.padded.attend(query, (key, value), (keys, values), attention), None


def register() -> None:
    """Make `attend` known to transformers, which then builds no masks for its modules."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
