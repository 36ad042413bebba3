"""Writing to the zoo: objects first, each whole or absent; the ref last.

A `Session` owns a folder under ``tmp/`` and a lock in it that tells the living from the dead.
Objects that are already there are not written again, but *touched*, which keeps a collection
that runs at the same time from taking them (`collect`). `commit` makes sure once more that all
is there, flushes the folders, and only then may a ref be moved. Whatever the caller does, a
session that does not commit leaves at most objects that nothing refers to.
"""

from __future__ import annotations

import os
import shutil
import threading
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from blockzoo.codecs import PACKED, raw, zstd
from blockzoo.errors import DamagedError, LockedError, SourceError
from blockzoo.records import Block, Model, Part
from blockzoo.store import durable
from blockzoo.store.layout import Layout
from blockzoo.store.mapping import map_file
from blockzoo.store.objects import LARGEST_COMPRESSED, SUFFIXES, Objects, put_back
from blockzoo.tensors import TensorInfo, bytes_digest, tensor_digest, tensor_hasher

_CHUNK = 1 << 20  # bytes copied at a time: they stay in the cache while hashed and written
_FLUSH_AT_ONCE = 4 << 20  # bytes; smaller files are flushed together at the end
_COMPRESS_FROM = 1 << 10  # bytes
_PROBED = 10.0  # seconds that somebody who asks whether a session is alive may hold its lock
_INLINE = 192  # bytes; below this a literal costs less in the recipe than as an object


class Session:
    """One writer. Its methods may be called from several threads.

    Parameters
    ----------
    objects : Objects
    distrust : set of (folder, digest), optional
        Objects to write anew even though a file stands in their place (`repair`).
    """

    def __init__(self, objects: Objects, distrust: Iterable[tuple[str, str]] = ()) -> None:
        self.objects = objects
        self.layout: Layout = objects.layout
        self.distrust = set(distrust)
        self.folder = self.layout.tmp / uuid.uuid4().hex
        self._used: set[tuple[str, str]] = set()
        self._written: set[tuple[str, str]] = set()
        self._pending: dict[tuple[str, str], tuple[Path, Path]] = {}
        # new tensors come in runs: after one, the next is written while it is hashed
        self._expect_new = False
        self._replaced: dict[tuple[str, str], Path] = {}
        self._guard = threading.Lock()

    def __enter__(self) -> Session:
        self.folder.mkdir(parents=True)
        self._lock = FileLock(self.folder / "lock")
        self._lock.acquire(timeout=_PROBED)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        put_back(self.layout, self.folder / "trash")  # what an interrupt left in the air
        self._lock.release()
        shutil.rmtree(self.folder, ignore_errors=True)

    def tensor(self, info: TensorInfo, data: memoryview) -> tuple[str, int]:
        """Keep a tensor.

        Parameters
        ----------
        info : TensorInfo
        data : memoryview
            Its bytes; may be a view of a mapped file, and is never held in memory whole.

        Returns
        -------
        digest : str
        new_bytes : int
            The tensor's bytes where it was not in the zoo before, else 0.
        """
        expected = None
        if not self._expect_new:
            expected = tensor_digest(info, data)
            if self.has_tensor(info, expected):
                return expected, 0
        staged = self._stage()
        digest = stage_tensor(staged, info, data)
        if expected is None:
            self._expect_new = not self.has_tensor(info, digest)
            if not self._expect_new:
                staged.unlink()
                return digest, 0
        elif digest != expected:
            raise SourceError("the file was changed while it was being read", hint="run it again")
        self._expect_new = True
        first = self._place("tensors", digest, raw.SUFFIX, staged, info.nbytes)
        return digest, info.nbytes if first else 0

    def has_tensor(self, info: TensorInfo, digest: str) -> bool:
        """Whether a tensor is there; then `commit` makes sure that it still is."""
        return self._has("tensors", digest, raw.size(info))

    def file(self, data: memoryview) -> str:
        """Keep some bytes as a file object, compressed where that helps; returns the digest."""
        small = len(data) <= LARGEST_COMPRESSED
        if small:
            data = memoryview(bytes(data))  # what is hashed is what is written
        digest = bytes_digest(data)
        if self._has("files", digest):
            return digest
        suffix = ""
        if small and len(data) >= _COMPRESS_FROM:
            packed = zstd.encode(data)
            if len(packed) < len(data) * 0.9:
                data, suffix = memoryview(packed), zstd.SUFFIX
        staged = self.stage(*(data[i : i + _CHUNK] for i in range(0, len(data), _CHUNK)))
        if not small and bytes_digest(map_file(staged)) != digest:
            raise SourceError("the file was changed while it was being read", hint="run it again")
        self._place("files", digest, suffix, staged, len(data))
        return digest

    def block(self, block: Block) -> str:
        """Keep a block's record; its tensors must have been kept before."""
        return self._record("blocks", block.digest, block.encoded)

    def model(self, model: Model) -> str:
        """Keep a model's record; its blocks, files and tensors must have been kept before."""
        return self._record("models", model.digest, model.encoded)

    def equivalence(self, digest: str, encoded: bytes) -> str:
        """Keep an equivalence record, given as canonical JSON."""
        return self._record("equivalences", digest, encoded)

    def stage(self, *parts: bytes | memoryview) -> Path:
        """Write a file that is to be moved to its place by `settle`."""
        staged = self._stage()
        stage(staged, *parts)
        return staged

    def settle(self, moves: Sequence[tuple[Path, Path]]) -> None:
        """Bring staged files to the disk, then to their places, then the folders to the disk."""
        durable.flush_files([staged for staged, _ in moves])
        for staged, place in moves:
            self._move(staged, place)
        durable.flush_folders({place.parent for _, place in moves})

    def settle_tensors(self, staged: Sequence[tuple[str, str, Path]]) -> None:
        """Settle tensors' files, as (digest, suffix, path); `commit` makes sure of them."""
        with self._guard:
            self._used |= {("tensors", digest) for digest, _, _ in staged}
        self.settle(
            [
                (path, self.layout.shard("tensors", digest) / (digest + suffix))
                for digest, suffix, path in staged
            ]
        )

    def rely(self, folder: str, digest: str) -> None:
        """Count on an object that is in the zoo already: `commit` makes sure that it still is."""
        with self._guard:
            self._used.add((folder, digest))
        self._has(folder, digest)

    def drop(self, digest: str, path: Path) -> bool:
        """Delete a tensor's file of one kind, if one of another kind stands and can be read.

        Another process may be dropping that one, or what it differs from, at this moment. Each
        moves its own aside before it looks, so the last to look sees all that has gone, and
        puts its own back.

        Returns
        -------
        bool
            False where it stays.
        """
        trash = self.folder / "trash"  # what a killed session leaves there is put back
        aside = trash / f"tensors~{path.name}"
        trash.mkdir(exist_ok=True)
        try:
            os.replace(path, aside)
            if not self._stands(digest):
                if not path.exists():  # else it has just been packed anew, and that one is held
                    os.replace(aside, path)
                return False
            aside.unlink()
        except FileNotFoundError:
            pass  # another was faster; or, where locks do nothing, took us for dead
        return True

    def _stands(self, digest: str) -> bool:
        """Whether a tensor and all that it differs from are there; they are made young."""
        try:
            told = self.objects.lineage(digest, patient=False)  # others wait for what is aside
            return all(self._touch("tensors", each) for each in (digest, *told))
        except DamagedError:
            return False

    def inline(self, data: memoryview) -> bool:
        """Whether a literal is short enough to stand in the recipe itself."""
        return len(data) <= _INLINE

    def literal(self, data: bytes | memoryview) -> Part:
        """Some bytes as a part of a recipe: in it where they are few, else as a file."""
        view = memoryview(data)
        if self.inline(view):
            return Part("bytes", len(view), literal=bytes(view))
        return Part("file", len(view), self.file(view))

    def commit(self) -> bool:
        """Bring everything to the disk.

        Returns
        -------
        bool
            False where an object that this session relied on has been collected meanwhile:
            then nothing may refer to it, and the caller begins again.
        """
        pending, self._pending = self._pending, {}
        self.settle(list(pending.values()))
        for (folder, digest), place in self._replaced.items():
            for suffix in SUFFIXES[folder]:
                if (other := place.with_name(digest + suffix)) != place:
                    other.unlink(missing_ok=True)  # the damaged one, kept in another kind
        if not all(self._touch(*key) for key in self._used):
            return False
        # also of objects found in place: whoever wrote them may not have come this far
        folders = {self.layout.shard(*key) for key in self._used}
        folders |= {self.layout.root / folder for folder, _ in self._used}
        durable.flush_folders([*folders, self.layout.root])
        return True

    def _record(self, folder: str, digest: str, encoded: bytes) -> str:
        if not self._has(folder, digest, len(encoded)):
            staged = self._stage()
            staged.write_bytes(encoded)
            self._place(folder, digest, ".json", staged, len(encoded))
        return digest

    def _has(self, folder: str, digest: str, size: int | None = None) -> bool:
        """Whether an object is there (then it is touched), or on its way in this session."""
        key = (folder, digest)
        with self._guard:
            if key in self._pending:
                return True
        if key in self.distrust:
            return False
        path = self.objects.find(folder, digest)
        if path is None:
            return False
        try:
            os.utime(path)
            if path.suffix in PACKED:
                sound = all(self._has(folder, told) for told in self.objects.lineage(digest))
            else:
                sound = size is None or path.stat().st_size == size
        except DamagedError:
            return False
        except (FileNotFoundError, PermissionError):
            return False  # collected just now, or another user's to touch: write our own
        if sound:
            with self._guard:
                self._used.add(key)
        return sound

    def _touch(self, folder: str, digest: str) -> bool:
        """Make an object young again: a long ingest may have used it long ago."""
        path = self.objects.find(folder, digest)
        try:
            if path is not None:
                os.utime(path)
        except PermissionError:
            return True  # another user's; it stood a moment ago
        except FileNotFoundError:
            return False
        return path is not None

    def _stage(self) -> Path:
        return self.folder / uuid.uuid4().hex

    def _place(self, folder: str, digest: str, suffix: str, staged: Path, size: int) -> bool:
        """Move a written file to its place, now or at `commit`; False if this was done before."""
        key, place = (folder, digest), self.layout.shard(folder, digest) / (digest + suffix)
        with self._guard:
            first = key not in self._written
            self._written.add(key)
            self._used.add(key)
            if key in self.distrust:
                self.distrust.discard(key)
                self._replaced[key] = place
            if size < _FLUSH_AT_ONCE:
                self._pending[key] = staged, place
                return first
        durable.flush_file(staged)
        self._move(staged, place)
        return first

    def _move(self, staged: Path, place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        os.chmod(staged, 0o444)
        os.replace(staged, place)


def stage(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file under ``tmp/``."""
    with open(path, "wb", buffering=0) as file:
        for part in parts:
            _write(file.fileno(), part)


def stage_tensor(path: Path, info: TensorInfo, data: memoryview) -> str:
    """Write a raw file under ``tmp/``; returns the digest of the very bytes written."""
    hasher = tensor_hasher(info, threads=1)
    buffer = memoryview(bytearray(min(_CHUNK, len(data))))
    with open(path, "wb", buffering=0) as file:
        _write(file.fileno(), raw.header(info))
        for start in range(0, len(data), _CHUNK):
            chunk = buffer[: min(_CHUNK, len(data) - start)]
            chunk[:] = data[start : start + len(chunk)]
            hasher.update(chunk)
            _write(file.fileno(), chunk)
    return str(hasher.hexdigest())


def _write(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def alive(folder: Path) -> bool:
    """Whether the session that owns a folder under ``tmp/`` is still running."""
    lock = folder / "lock"
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except PermissionError:
        return True  # another user's: nobody can tell
    except (FileNotFoundError, FileExistsError):
        return False  # it has just ended, with its folder


class NameLock:
    """Keeps two ingests of one name apart; refs are safe without it.

    Raises
    ------
    LockedError
        On entry, where somebody else holds it.
    """

    def __init__(self, layout: Layout, name: str) -> None:
        self.name = name
        locks = layout.tmp / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(locks / f"{bytes_digest(name.encode())[:16]}.lock")

    def __enter__(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise LockedError(
                f"another process is ingesting {self.name!r} right now",
                hint="wait for it, or take another --name",
            ) from None

    def __exit__(self, *_: object) -> None:
        self._lock.release()
