"""Which of a call's packed tokens are whose."""

from __future__ import annotations

from itertools import pairwise

import torch

Owner = tuple[int, int, int, float]
"""A tenant's place in the order, and its columns: first, last + 1, and what they count for."""


class Frame:
    """The tokens of one call of a block, by tenant; read by its operations.

    Parameters
    ----------
    tenants : int
        How many there are; they stand in a fixed order.

    Attributes
    ----------
    bounds : list of int
        Tenant i's tokens are ``bounds[i]:bounds[i + 1]``.
    tokens : int
        How many there are in all.
    """

    def __init__(self, tenants: int) -> None:
        self.bounds = [0] * (tenants + 1)
        self.tokens = 0
        self._masks: dict[int, torch.Tensor] = {}

    @property
    def counts(self) -> list[int]:
        """How many tokens each tenant has."""
        return [end - begin for begin, end in pairwise(self.bounds)]

    def set(self, counts: list[int]) -> None:
        """Each tenant has so many tokens now."""
        total = 0
        bounds = [0]
        for count in counts:
            total += count
            bounds.append(total)
        if bounds != self.bounds:
            self.bounds = bounds
            self.tokens = total
            self._masks.clear()

    def pieces(self, size: int) -> list[list[int]]:
        """Each tenant's tokens when they are taken so many at a time, in order."""
        return [
            [
                max(0, min(first + size, end) - max(first, begin))
                for begin, end in pairwise(self.bounds)
            ]
            for first in range(0, self.tokens, size)
        ]

    def mask(self, signature: int, owners: tuple[Owner, ...], like: torch.Tensor) -> torch.Tensor:
        """(tokens, columns of ``like``): each tenant's scaling in its own columns, else nought.

        Kept by ``signature``, since hashing the owners at each operation takes longer.
        """
        mask = self._masks.get(signature)
        if mask is None:
            mask = like.new_zeros(self.tokens, like.shape[1])
            for tenant, first, last, scaling in owners:
                mask[self.bounds[tenant] : self.bounds[tenant + 1], first:last] = scaling
            self._masks[signature] = mask
        return mask
