"""The shape of a model's KV: how its layers are grouped and how large a slot is in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

PAGE = 8
"""Slots a page holds."""


@dataclass(frozen=True)
class Group:
    """Neighbouring layers of one shape whose pages are kept together.

    Parameters
    ----------
    layers : int
    heads : int
        Key and value heads of a layer.
    key_width, value_width : int
        Elements of a head.
    hidden : int
        Elements of a hidden state.
    """

    layers: int
    heads: int
    key_width: int
    value_width: int
    hidden: int

    @property
    def slot(self) -> int:
        """Elements of a slot's keys and values."""
        return self.layers * self.heads * (self.key_width + self.value_width)


@dataclass(frozen=True)
class Layout:
    """What must be equal for two tenants to share pools.

    Parameters
    ----------
    groups : tuple of Group
        In order; they differ only where a stitch joins models of other shapes.
    dtype : torch.dtype
    """

    groups: tuple[Group, ...]
    dtype: torch.dtype

    @classmethod
    def of(
        cls,
        layers: Sequence[int],
        heads: int,
        key_width: int,
        value_width: int,
        hidden: int,
        dtype: torch.dtype,
    ) -> Layout:
        """Groups of so many layers each, all layers of one shape."""
        return cls(tuple(Group(n, heads, key_width, value_width, hidden) for n in layers), dtype)

    def group_of(self, layer: int) -> tuple[int, int]:
        """A layer's group and its place in it.

        Raises
        ------
        IndexError
        """
        within = layer
        for number, group in enumerate(self.groups):
            if 0 <= within < group.layers:
                return number, within
            within -= group.layers
        sizes = tuple(group.layers for group in self.groups)
        raise IndexError(f"there is no layer {layer} in groups of {sizes}")

    def first_layer(self, group: int) -> int:
        """The number of a group's first layer."""
        return sum(one.layers for one in self.groups[:group])

    @property
    def layers(self) -> int:
        """How many layers all groups have."""
        return self.first_layer(len(self.groups))

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot's keys and values in all groups."""
        return sum(group.slot for group in self.groups) * self.dtype.itemsize

    def page_bytes(self, group: int, with_hidden: bool = False) -> int:
        """Bytes of a page of a group: keys and values of its layers, and hidden states."""
        one = self.groups[group]
        return PAGE * (one.slot + one.hidden * with_hidden) * self.dtype.itemsize
