"""Memory that a thread uses again and again, for the arrays between a chunk and its coded form.

Fresh memory is cleared by the kernel, a page at a time, when it is first touched; for a chunk's
worth that takes longer than most of what a codec does with it.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_LARGEST = 8 << 20  # bytes that one name keeps; a larger array is a new one each time
_local = threading.local()


def scratch(name: str, count: int, dtype: DTypeLike) -> NDArray[Any]:
    """An array, (count,), of any content.

    Within a thread the same name gives the same memory again: what is in it holds until then.
    """
    kind = np.dtype(dtype)
    size = count * kind.itemsize
    if size > _LARGEST:
        return np.empty(count, kind)
    held: dict[str, NDArray[np.uint8]] | None = getattr(_local, "held", None)
    if held is None:
        held = _local.held = {}
    memory = held.get(name)
    if memory is None or len(memory) < size:
        memory = held[name] = np.empty(size, np.uint8)
    return memory[:size].view(kind)
