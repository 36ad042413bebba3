"""A file mapped for reading, that notices when somebody changes it underneath.

Reading a mapped page beyond the end of a file that has shrunk kills the process, so the size is
looked at again each time bytes are asked for.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from pathlib import Path

from blockzoo.errors import SourceError


class MappedFile:
    """A regular file, mapped read-only.

    Parameters
    ----------
    path : Path
        Symlinks are followed.

    Raises
    ------
    SourceError
        Where it cannot be opened or is not a regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                raise SourceError(f"{path} is not a regular file")
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                self._map = (
                    mmap.mmap(file.fileno(), status.st_size, access=mmap.ACCESS_READ)
                    if status.st_size
                    else None
                )
        except (OSError, ValueError) as error:
            raise SourceError(
                f"cannot read {path}: {getattr(error, 'strerror', None) or error}",
                hint="check that the file is there and that you may read it",
            ) from error
        self.size = status.st_size
        self._identity = (status.st_dev, status.st_ino)
        self._modified = status.st_mtime_ns
        self._view = memoryview(self._map) if self._map is not None else memoryview(b"")

    def bytes(self, start: int, end: int) -> memoryview:
        """The bytes ``start:end``, read-only and not copied.

        Raises
        ------
        SourceError
            Where the file has changed since it was opened.
        """
        self.check()
        return self._view[start:end]

    def check(self) -> None:
        """Raise SourceError where the file has shrunk, grown or been written to since opened."""
        if self._map is not None and self._map.size() != self.size:
            self._changed(f"it had {self.size} bytes when opened and now has {self._map.size()}")
        try:
            status = os.stat(self.path)
        except OSError:
            return  # deleted or moved away: the mapping keeps the old bytes
        if (status.st_dev, status.st_ino) != self._identity:
            return  # replaced by a rename: likewise
        if status.st_mtime_ns != self._modified or status.st_size != self.size:
            self._changed("it was written to")

    def _changed(self, how: str) -> None:
        raise SourceError(
            f"{self.path} changed while it was being read: {how}",
            hint="wait until the download or training run that writes it is done, then try again",
        )

    def close(self) -> None:
        """Let go of the mapping; bytes already handed out stay valid until they are dropped."""
        self._view.release()
        if self._map is not None:
            # where somebody still holds a slice, the mapping goes with the last one
            with contextlib.suppress(BufferError):
                self._map.close()
