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
