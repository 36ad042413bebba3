"""Durability, in four helpers and nowhere else.

A file is written under ``tmp/``, flushed, and only then moved to its place; the folder it moves
to is flushed before anything that relies on it is written. So a crash at any instant leaves
each file either absent or whole.
"""

from __future__ import annotations

import os
from pathlib import Path


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
