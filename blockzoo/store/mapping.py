"""Files mapped for reading: a view of a whole file, however many are open."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

from blockzoo.errors import BlockzooError


def map_file(path: Path) -> memoryview:
    """A read-only view of a whole file, mapped; it stays valid when the file is replaced."""
    try:
        return _map(path)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        if not raise_open_file_limit():
            raise BlockzooError(
                "too many files are open", hint="raise the limit with `ulimit -n`"
            ) from error
        return _map(path)


def _map(path: Path) -> memoryview:
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def let_go(view: memoryview, first: int, last: int) -> None:
    """Pages of a mapped view's bytes first … last − 1 need not stay in memory.

    They are read again where they are asked for again. Nothing is done with other views.
    """
    mapped = view.obj
    if not isinstance(mapped, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = _address(view) - _address(memoryview(mapped))
    begin = -(-(start + first) // mmap.PAGESIZE) * mmap.PAGESIZE
    size = (start + last) // mmap.PAGESIZE * mmap.PAGESIZE - begin
    if size > 0:
        mapped.madvise(mmap.MADV_DONTNEED, begin, size)


def _address(view: memoryview) -> int:
    import numpy as np  # not for those who only list: they answer in a blink

    return int(np.frombuffer(view, dtype=np.uint8).ctypes.data)


def raise_open_file_limit() -> bool:
    """Allow as many open files as may be; False where that is no more than now.

    A mapped file keeps a descriptor, and a large model has more tensors than the usual 1,024.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return False
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft < hard
