"""Pages by what is in them: everything upstream of their group, and the tokens up to their end."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from blake3 import blake3

from blockzoo_runtime.kv.layout import PAGE

_IDS = struct.Struct(f"<{PAGE}q")


def extend_chain(chain: list[bytes], slots: Sequence[int], pages: int) -> None:
    """Lengthen a chain of digests to so many full pages.

    A digest is BLAKE3 over the digest before it (nothing at first) and the page's token ids as
    little-endian int64: equal digests mean equal tokens from the first slot on.
    """
    for page in range(len(chain), pages):
        ids = _IDS.pack(*slots[page * PAGE : (page + 1) * PAGE])
        chain.append(blake3((chain[-1] if chain else b"") + ids).digest())


class Content:
    """The findable pages of one pool."""

    def __init__(self) -> None:
        self._pages: dict[tuple[str, bytes], int] = {}
        self._keys: dict[int, tuple[str, bytes]] = {}

    def __contains__(self, page: int) -> bool:
        return page in self._keys

    def __len__(self) -> int:
        return len(self._pages)

    def find(self, upstream: str, digest: bytes) -> int | None:
        """The page with this content, if there is one."""
        return self._pages.get((upstream, digest))

    def publish(self, upstream: str, digest: bytes, page: int) -> None:
        """Make a page findable, unless another with this content is already."""
        key = (upstream, digest)
        if self._pages.setdefault(key, page) == page:
            self._keys[page] = key

    def forget(self, page: int) -> None:
        """Make a page findable no more."""
        del self._pages[self._keys.pop(page)]
