"""Durability, in a few helpers and nowhere else.

A file is written under ``tmp/``, flushed, and only then moved to its place; the folder it moves
to is flushed before anything that relies on it is written. So a crash at any instant leaves
each file either absent or whole.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

_FEW = 16  # files or folders; more are flushed with their whole disk, in one journal entry
_AT_ONCE = 8  # flushes; a journal takes several in one go


def flush_file(path: Path) -> None:
    """Bring a file's bytes to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def flush_folder(path: Path) -> None:
    """Bring a folder's entries to the disk (where the system lets folders be flushed)."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except (PermissionError, IsADirectoryError):
        return  # Windows does not open folders
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def flush_files(paths: Collection[Path]) -> None:
    """Bring the bytes of several files, which lie on one disk, there."""
    if len(paths) <= _FEW or not flush_disk(next(iter(paths))):
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(flush_file, paths))


def flush_folders(paths: Collection[Path]) -> None:
    """Bring the entries of several folders, which lie on one disk, there."""
    if len(paths) <= _FEW or not flush_disk(next(iter(paths))):
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(flush_folder, paths))


def flush_disk(path: Path) -> bool:
    """Bring everything to the disk that was written to the file system that a path is on.

    Returns
    -------
    bool
        False, with nothing done, where the system offers no such thing.
    """
    call = _syncfs()
    if call is None:
        return False
    fd = os.open(path, os.O_RDONLY)
    try:
        if call(fd):
            os.fsync(fd)  # raises what is wrong with the disk, if it is this file's
            raise OSError(_errno(), os.strerror(_errno()), str(path))
    finally:
        os.close(fd)
    return True


@cache
def _syncfs() -> Any:
    """Linux's syncfs(2), which Python does not have; it tells of errors from 5.8 on."""
    if not sys.platform.startswith("linux"):
        return None
    major, minor = os.uname().release.split(".")[:2]
    if (int(major), int("".join(filter(str.isdigit, minor)) or 0)) < (5, 8):
        return None
    import ctypes

    return getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)


def _errno() -> int:
    import ctypes

    return ctypes.get_errno()


def create(path: Path, data: bytes, staging: Path) -> bool:
    """Write a whole file that must not exist yet, as one atomic step.

    Parameters
    ----------
    path : Path
        Where it shall stand; its folder is made.
    data : bytes
    staging : Path
        A path on the same disk for the unfinished file.

    Returns
    -------
    bool
        False, with nothing changed, where something stands at `path` already. Of several
        processes that create one path at once, exactly one gets True; no lock is needed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        staging.write_bytes(data)
        flush_file(staging)
        os.link(staging, path)
    except FileExistsError:
        return False
    finally:
        staging.unlink(missing_ok=True)  # also where the disk was full
    flush_folder(path.parent)
    return True


def replace(path: Path, data: bytes, staging: Path) -> None:
    """Write a whole file in the place of whatever stands there, as one atomic step."""
    try:
        staging.write_bytes(data)
        flush_file(staging)
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)
    flush_folder(path.parent)
