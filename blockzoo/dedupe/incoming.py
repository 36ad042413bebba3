"""New tensors that become differences on their way in: coded from their source, never kept raw
first.

While the checkpoints of a call are read, tensors that the zoo does not have are only hashed and
sketched. Then references are chosen for all of them at once, those in the zoo included. A
reference is written and checked before anything is coded against it, and is in its place before
any difference from it (`coding`). What is not near anything becomes planes, or a raw file.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from blockzoo.codecs import raw
from blockzoo.dedupe import coding
from blockzoo.dedupe.coding import Family, Place, Seen, Staged
from blockzoo.dedupe.planner import SMALLEST, Kept, kept_for
from blockzoo.progress import Progress
from blockzoo.similarity.sketch import Sketch, bucket, sketch
from blockzoo.similarity.sketches import Sketches
from blockzoo.store import durable
from blockzoo.team import Team
from blockzoo.tensors import TensorInfo, TensorRef

if TYPE_CHECKING:
    from blockzoo.dedupe.plan import Level
    from blockzoo.store.session import Session
    from blockzoo.zoo import Zoo

_FLUSH_FROM = 64 << 20  # bytes
_TOGETHER = 1 << 30  # bytes of tensors that are brought to their places together


class Incoming:
    """The new tensors of a call; its methods may be called from several threads.

    Parameters
    ----------
    session : Session
    team : Team
        Shares the work.
    """

    def __init__(self, session: Session, team: Team) -> None:
        self.session = session
        self.team = team
        self.sketches: list[tuple[TensorRef, Sketch]] = []
        self.kept_raw = False  # whether a tensor is raw that might be packed
        self._root = session.layout.root
        self._seen: dict[str, Seen] = {}
        self._guard = threading.Lock()

    def take(self, info: TensorInfo, data: memoryview, place: Place | None) -> tuple[str, int]:
        """Look at a tensor.

        Parameters
        ----------
        info : TensorInfo
        data : memoryview
            Its bytes.
        place : Place or None
            Where they lie, to be read again in `store`; one that lies nowhere so is kept raw.

        Returns
        -------
        digest : str
        new_bytes : int
            As for `Session.tensor`.
        """
        if info.nbytes < SMALLEST or not bucket(info):
            return self.session.tensor(info, data)
        if place is None:
            self.kept_raw = True
            return self.session.tensor(info, data)
        digest, made = self.team.call(coding.look, (self._root, info, place))
        with self._guard:
            if digest in self._seen:
                return digest, 0
        if self.session.has_tensor(info, digest):
            path = self.session.objects.find("tensors", digest)
            self.kept_raw |= path is not None and path.suffix == raw.SUFFIX
            return digest, 0
        ref = TensorRef(info.dtype, info.shape, digest)
        made = made or sketch(info, data)
        with self._guard:
            if digest in self._seen:
                return digest, 0
            self._seen[digest] = Seen(ref, place)
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
        families = self._families(kept_for(zoo, sketches, refs, level), level)
        total, done = sum(family.nbytes for family in families), 0
        with _Flushing(self.session.folder) as flushing:
            for batch in _batched(families):
                first: list[Staged] = []
                others: list[Staged] = []
                for family, written in self.team.map(coding.write, batch):
                    first += written[0]
                    others += written[1]
                    done += family.nbytes
                    flushing.wrote(family.nbytes)
                    progress("dedupe", done, total, 0)
                flushing.wait()
                self.session.settle_tensors(first)
                self.session.settle_tensors(others)

    def _families(self, kept: dict[str, Kept], level: Level) -> list[Family]:
        """The largest first, so that none is left over when all else is done."""
        seen = {
            digest: replace(one, codec=kept[digest].codec) if digest in kept else one
            for digest, one in self._seen.items()
        }
        families: dict[str, list[Seen]] = {}
        for digest, one in seen.items():
            reference = kept[digest].reference if digest in kept else ""
            if reference:
                families.setdefault(reference, []).append(one)
            else:
                families.setdefault(digest, [])
        for reference in families.keys() - seen.keys():
            self.session.rely("tensors", reference)  # from here on no collection takes it
        found = [
            Family(
                self._root,
                self.session.folder,
                level,
                reference,
                seen.get(reference),
                tuple(others),
            )
            for reference, others in families.items()
        ]
        return sorted(found, key=lambda family: (-family.nbytes, family.reference))


class _Flushing:
    """Starts what is written on its way to the disk while more is made."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting = 0
        self._running: Future[bool] | None = None
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> _Flushing:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def wrote(self, size: int) -> None:
        """Count bytes, and see to them where they are many."""
        self._waiting += size
        if self._waiting >= _FLUSH_FROM and (self._running is None or self._running.done()):
            self.wait()
            self._waiting = 0
            self._running = self._pool.submit(durable.flush_disk, self._folder)

    def wait(self) -> None:
        """Wait for what is on its way; the disk tells of an error once, and it may be here."""
        if self._running is not None:
            self._running.result()


def _batched(families: list[Family]) -> Iterator[list[Family]]:
    batch: list[Family] = []
    size = 0
    for family in families:
        batch.append(family)
        size += family.nbytes
        if size >= _TOGETHER:
            yield batch
            batch, size = [], 0
    yield batch
