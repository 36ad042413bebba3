"""Low-rank adapters side by side: each keeps its place while others come and go."""

from __future__ import annotations

import random

import pytest
import torch
from blockzoo_runtime.blocks.stack import Stack

from blockzoo.errors import UnservableError


def test_adapters_keep_their_ranks_while_others_come_and_go() -> None:
    dice = random.Random(1)
    stack = Stack()
    here: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for step in range(300):
        if here and dice.random() < 0.45:
            key = dice.choice(sorted(here))
            stack.remove(key)
            del here[key]
        else:
            rank = dice.choice((1, 8, 16, 72, 200))
            here[step] = torch.randn(rank, 5), torch.randn(7, rank)
            stack.add(step, *here[step])
        for key, (a, b) in here.items():
            chunk, first, last = stack.find(key)
            assert torch.equal(chunk.a[first:last], a)
            assert torch.equal(chunk.b[first:last].T, b)
    for key in here:
        stack.remove(key)
    assert stack.chunks == []


def test_values_that_are_not_finite_are_kept_out() -> None:
    a = torch.ones(2, 5)
    a[1, 2] = float("nan")
    with pytest.raises(UnservableError, match="not finite"):
        Stack().add("one", a, torch.ones(7, 2))
