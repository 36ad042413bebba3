"""The pages of one group of a layout: tensors that all its sequences share."""

from __future__ import annotations

import torch

from blockzoo_runtime.kv.content import Content
from blockzoo_runtime.kv.layout import PAGE, Layout

#: pages at first: a CPU commits memory only as it is written
_FIRST = 512


class Pool:
    """Pages, counted by reference.

    A page is *free*, *in use* (it has references) or *cached* (it has none, but can be found by
    its content). `KVCache` accounts for their bytes.

    Parameters
    ----------
    layout : Layout
    group : int
    device : torch.device
    most : int or None
        Pages that the memory budget has room for.

    Attributes
    ----------
    keys : torch.Tensor
        (layers, capacity · PAGE, heads, key width). Replaced when the pool grows; what has not
        been written is undefined.
    values : torch.Tensor
        (layers, capacity · PAGE, heads, value width).
    hidden : torch.Tensor or None
        (capacity · PAGE, hidden): the hidden states after the group, where they are kept.
    content : Content
    """

    def __init__(
        self, layout: Layout, group: int, device: torch.device, most: int | None = None
    ) -> None:
        self.layout = layout
        self.group = group
        self.device = device
        self.capacity = 0
        self.content = Content()
        self._shape = layout.groups[group]
        self._page_bytes = (layout.page_bytes(group), layout.page_bytes(group, True))
        self.hidden: torch.Tensor | None = None
        self._most = most
        self._references: list[int] = []
        self._hidden: list[bool] = []
        self._free: list[int] = []
        self.keys = self._empty(0, self._shape.key_width)
        self.values = self._empty(0, self._shape.value_width)

    def _empty(self, pages: int, width: int) -> torch.Tensor:
        shape = (self._shape.layers, pages * PAGE, self._shape.heads, width)
        return torch.empty(shape, dtype=self.layout.dtype, device=self.device)

    def _empty_hidden(self, pages: int) -> torch.Tensor:
        shape = (pages * PAGE, self._shape.hidden)
        return torch.empty(shape, dtype=self.layout.dtype, device=self.device)

    @property
    def occupied(self) -> int:
        """Pages in use or cached."""
        return len(self._references) - len(self._free)

    def keep_hidden(self) -> None:
        """Have room for hidden states, in pages taken from now on."""
        if self.hidden is None:
            self.hidden = self._empty_hidden(self.capacity)

    def page_bytes(self, with_hidden: bool) -> int:
        """Bytes of a page, with room for hidden states or without."""
        return self._page_bytes[with_hidden]

    def has_hidden(self, page: int) -> bool:
        """Whether the hidden states of a page's tokens are kept in it."""
        return self._hidden[page]

    def bytes_of(self, page: int) -> int:
        """Bytes that are accounted for a page."""
        return self._page_bytes[self._hidden[page]]

    def references(self, page: int) -> int:
        """How many hold a page."""
        return self._references[page]

    def grow(self, pages: int) -> None:
        """Have room to take so many pages; by doubling, what is there is copied.

        Raises
        ------
        torch.OutOfMemoryError
            From the device; nothing has changed then.
        """
        used = len(self._references)
        needed = used + max(0, pages - len(self._free))
        if needed <= self.capacity:
            return
        capacity = max(2 * self.capacity, _FIRST)
        if self._most is not None:
            capacity = min(capacity, self._most)
        capacity = max(capacity, needed)
        slots = used * PAGE
        keys = self._empty(capacity, self._shape.key_width)
        values = self._empty(capacity, self._shape.value_width)
        hidden = None if self.hidden is None else self._empty_hidden(capacity)
        keys[:, :slots] = self.keys[:, :slots]
        values[:, :slots] = self.values[:, :slots]
        if hidden is not None and self.hidden is not None:
            hidden[:slots] = self.hidden[:slots]
        self.keys, self.values, self.hidden, self.capacity = keys, values, hidden, capacity

    def take(self, with_hidden: bool = False) -> int:
        """A free page, with one reference."""
        self.grow(1)
        if self._free:
            page = self._free.pop()
            self._references[page], self._hidden[page] = 1, with_hidden
            return page
        self._references.append(1)
        self._hidden.append(with_hidden)
        return len(self._references) - 1

    def retain(self, page: int) -> int:
        """One reference more; returns how many there are."""
        self._references[page] += 1
        return self._references[page]

    def release(self, page: int) -> int:
        """One reference less; returns how many are left. The page is not free by this alone."""
        self._references[page] -= 1
        return self._references[page]

    def free(self, page: int) -> None:
        """Give back a page that has no references and cannot be found."""
        self._free.append(page)

    def shrink(self) -> None:
        """Give the tensors back where no page is in use or cached."""
        if self.occupied or not self.capacity:
            return
        self._references.clear()
        self._hidden.clear()
        self._free.clear()
        self.capacity = 0
        self.keys = self._empty(0, self._shape.key_width)
        self.values = self._empty(0, self._shape.value_width)
        if self.hidden is not None:
            self.hidden = self._empty_hidden(0)
