"""The shape of a model's KV: how its layers are grouped and how large a slot is in each."""

from __future__ import annotations

from dataclasses import dataclass

import torch

PAGE = 8
"""Slots a page holds."""


@dataclass(frozen=True)
class Layout:
    """What must be equal for two tenants to share pools.

    Parameters
    ----------
    groups : tuple of int
        Neighbouring layers whose pages are kept together: how many each group has.
    heads : int
        Key and value heads of a layer.
    key_width, value_width : int
        Elements of a head.
    hidden : int
        Elements of a hidden state.
    dtype : torch.dtype
    """

    groups: tuple[int, ...]
    heads: int
    key_width: int
    value_width: int
    hidden: int
    dtype: torch.dtype

    def group_of(self, layer: int) -> tuple[int, int]:
        """A layer's group and its place in it.

        Raises
        ------
        IndexError
        """
        within = layer
        for group, layers in enumerate(self.groups):
            if 0 <= within < layers:
                return group, within
            within -= layers
        raise IndexError(f"there is no layer {layer} in groups of {self.groups}")

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot's keys and values in all groups."""
        elements = sum(self.groups) * self.heads * (self.key_width + self.value_width)
        return elements * self.dtype.itemsize

    def page_bytes(self, group: int, with_hidden: bool = False) -> int:
        """Bytes of a page of a group: keys and values of its layers, and hidden states."""
        elements = self.groups[group] * self.heads * (self.key_width + self.value_width)
        return PAGE * (elements + self.hidden * with_hidden) * self.dtype.itemsize
