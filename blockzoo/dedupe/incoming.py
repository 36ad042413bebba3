"""New tensors that become differences on their way in: coded from their source, never kept raw
first.

While the checkpoints of a call are read, tensors that the zoo does not have are only hashed and
sketched. Then references are chosen for all of them at once, those in the zoo included. A
reference is written and checked before anything is coded against it, and is in its place before
any difference from it; every packed file is decoded again and held to its tensor's digest before
it is placed. What is not near anything becomes planes, or a raw file.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from blockzoo.codecs import PACKED, raw
from blockzoo.codecs.grouping import Grouping
from blockzoo.dedupe.planner import SMALLEST, Kept, kept_for
from blockzoo.errors import DamagedError, SourceError
from blockzoo.progress import Progress
from blockzoo.similarity.sketch import Sketch, bucket, sketch
from blockzoo.similarity.sketches import Sketches
from blockzoo.store import durable
from blockzoo.store.mapping import map_file
from blockzoo.store.objects import check_decoded
from blockzoo.tensors import TensorInfo, TensorRef, tensor_digest

if TYPE_CHECKING:
    from blockzoo.dedupe.plan import Level
    from blockzoo.store.session import Session
    from blockzoo.zoo import Zoo

_THREADS = min(8, os.cpu_count() or 1)
_FLUSH_FROM = 64 << 20  # bytes
_TOGETHER = 1 << 30  # bytes of tensors that are brought to their places together

Read = Callable[[], memoryview]
_Staged = tuple[str, str, Path]  # digest, suffix, file
Reference = tuple[str, TensorInfo, memoryview]


@dataclass(frozen=True)
class _Seen:
    """A tensor that has been hashed, and how to get at its bytes once more."""

    ref: TensorRef
    read: Read


@dataclass(frozen=True)
class _Family:
    """What is coded against one reference, which is new itself, or in the zoo, or none."""

    reference: str
    first: _Seen | None
    others: tuple[_Seen, ...]

    @property
    def nbytes(self) -> int:
        first = self.first.ref.nbytes if self.first else 0
        return first + sum(seen.ref.nbytes for seen in self.others)


class Incoming:
    """The new tensors of a call; its methods may be called from several threads.

    Parameters
    ----------
    session : Session
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.sketches: list[tuple[TensorRef, Sketch]] = []
        self.known_raw = False
        self._seen: dict[str, _Seen] = {}
        self._guard = threading.Lock()

    def take(self, info: TensorInfo, read: Read) -> tuple[str, int]:
        """Look at a tensor.

        Parameters
        ----------
        info : TensorInfo
        read : callable
            Gives its bytes, now and again in `store`.

        Returns
        -------
        digest : str
        new_bytes : int
            As for `Session.tensor`.
        """
        data = read()
        if info.nbytes < SMALLEST or not bucket(info):
            return self.session.tensor(info, data)
        digest = tensor_digest(info, data)
        with self._guard:
            if digest in self._seen:
                return digest, 0
        if self.session.has_tensor(info, digest):
            path = self.session.objects.find("tensors", digest)
            self.known_raw |= path is not None and path.suffix == raw.SUFFIX
            return digest, 0
        ref = TensorRef(info.dtype, info.shape, digest)
        made = sketch(ref, data)
        with self._guard:
            if digest in self._seen:
                return digest, 0
            self._seen[digest] = _Seen(ref, read)
            self.sketches.append((ref, made))
        return digest, info.nbytes

    def seen(self) -> set[str]:
        """The tensors that wait to be stored."""
        return set(self._seen)

    def forget(self, digests: Iterable[str]) -> None:
        """Store these not: the checkpoint they came from cannot be taken in."""
        for digest in digests:
            del self._seen[digest]

    def store(self, zoo: Zoo, level: Level, progress: Progress) -> None:
        """Choose references, and write everything that was taken.

        Raises
        ------
        SourceError
            Where a file was changed since `take`; what is in its place by then is whole.
        """
        sketches = Sketches(zoo.objects)
        sketches.offer(self.sketches)
        refs = {digest: seen.ref for digest, seen in self._seen.items()}
        families = self._families(kept_for(zoo, sketches, refs, level))
        total, done = sum(family.nbytes for family in families), 0
        with (
            ThreadPoolExecutor(_THREADS) as pool,
            _Flushing(self.session.folder) as flushing,
        ):
            try:
                for batch in _batched(families):
                    work = [pool.submit(self._write, family, level, flushing) for family in batch]
                    placed = []
                    for family, written in zip(batch, work, strict=True):
                        placed.append(written.result())
                        done += family.nbytes
                        progress("dedupe", done, total, 0)
                    self.session.settle_tensors([one for first, _ in placed for one in first])
                    self.session.settle_tensors([one for _, others in placed for one in others])
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _families(self, kept: dict[str, Kept]) -> list[_Family]:
        """The largest first, so that none is left over when all else is done."""
        others: dict[str, list[_Seen]] = {}
        for digest, how in kept.items():
            if how.reference:
                others.setdefault(how.reference, []).append(self._seen[digest])
        self._codecs = {digest: how.codec for digest, how in kept.items()}
        found = [
            _Family(reference, self._seen.get(reference), tuple(group))
            for reference, group in others.items()
        ]
        alone = self._seen.keys() - others.keys() - {d for d, how in kept.items() if how.reference}
        found += [_Family(digest, self._seen[digest], ()) for digest in sorted(alone)]
        return sorted(found, key=lambda family: (-family.nbytes, family.reference))

    def _write(
        self, family: _Family, level: Level, flushing: _Flushing
    ) -> tuple[list[_Staged], list[_Staged]]:
        first: list[_Staged] = []
        base: Reference | None = None
        if family.first is not None:
            staged, codec, kept = self._write_first(family.first, level, bool(family.others))
            first.append((family.first.ref.digest, codec, staged))
            flushing.wrote(staged.stat().st_size)
            base = kept and (family.reference, *kept)
        else:
            self.session.rely("tensors", family.reference)
            base = (family.reference, *self.session.objects.reference(family.reference))
        grouping, others = Grouping(), []
        for seen in family.others:
            staged, codec = self._write_other(seen, base, level, grouping)
            others.append((seen.ref.digest, codec, staged))
            flushing.wrote(staged.stat().st_size)
        return first, others

    def _write_first(
        self, seen: _Seen, level: Level, needed: bool
    ) -> tuple[Path, str, tuple[TensorInfo, memoryview] | None]:
        """Write a tensor that stands by itself; its bytes as stored are kept where needed."""
        codec = self._codecs.get(seen.ref.digest, raw.SUFFIX)
        if codec in PACKED:
            packed = PACKED[codec].encode(seen.ref, seen.read(), None, level=level)
            if packed is not None:
                kept = None
                if needed:
                    kept = PACKED[codec].decode(memoryview(packed), None)
                    if tensor_digest(*kept) != seen.ref.digest:
                        raise _changed()
                else:
                    _check(seen, packed, None, None)
                return self.session.stage(packed), codec, kept
        staged = self._write_raw(seen)
        return staged, raw.SUFFIX, raw.read(map_file(staged)) if needed else None

    def _write_other(
        self, seen: _Seen, base: Reference | None, level: Level, grouping: Grouping
    ) -> tuple[Path, str]:
        codec = self._codecs[seen.ref.digest]
        coder = PACKED[codec]
        packed = coder.encode(seen.ref, seen.read(), base, level=level, grouping=grouping)
        if packed is None:
            return self._write_raw(seen), raw.SUFFIX
        _check(seen, packed, base, grouping)
        return self.session.stage(packed), codec

    def _write_raw(self, seen: _Seen) -> Path:
        staged, digest = self.session.stage_tensor(seen.ref, seen.read())
        if digest != seen.ref.digest:
            raise _changed()
        return staged


class _Flushing:
    """Starts what is written on its way to the disk while more is made."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting = 0
        self._running: Future[bool] | None = None
        self._guard = threading.Lock()
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> _Flushing:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def wrote(self, size: int) -> None:
        """Count bytes, and see to them where they are many."""
        with self._guard:
            self._waiting += size
            idle = self._running is None or self._running.done()
            if self._waiting >= _FLUSH_FROM and idle:
                self._waiting = 0
                self._running = self._pool.submit(durable.flush_disk, self._folder)


def _check(seen: _Seen, packed: bytes, base: Reference | None, grouping: Grouping | None) -> None:
    try:
        check_decoded(seen.ref.digest, memoryview(packed), base and base[1:], grouping)
    except DamagedError as error:
        raise _changed() from error


def _changed() -> SourceError:
    return SourceError("the file was changed while it was being read", hint="run it again")


def _batched(families: list[_Family]) -> Iterator[list[_Family]]:
    batch: list[_Family] = []
    size = 0
    for family in families:
        batch.append(family)
        size += family.nbytes
        if size >= _TOGETHER:
            yield batch
            batch, size = [], 0
    yield batch
