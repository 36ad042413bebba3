"""Collecting what nothing refers to: the only place where the zoo deletes.

A collection takes an object only if no name reaches it and nobody has touched it for a while.
It may run beside ingests. The danger is an ingest that finds an old, unreferenced object in
place and relies on it at the moment it goes. So an ingest *touches* what it relies on, and a
collection first moves an object aside, then looks at its time again, and puts it back if it was
touched: a touch comes either before the move, and is seen, or after it, and fails, and the
ingest writes the object anew. A collection that is killed leaves what it moved where it is put
back from (`objects.restore_trash`). No lock is needed for any of this.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from blockzoo.codecs import PACKED
from blockzoo.errors import DamagedError, LockedError
from blockzoo.store.objects import Object, Objects, restore_trash
from blockzoo.store.reach import reach, roots
from blockzoo.store.refs import Refs
from blockzoo.store.session import Session, alive

YOUNG = 3600.0  # seconds; longer than any ingest goes without touching what it relies on
_ORDER = (
    "models",
    "equivalences",
    "blocks",
    "files",
    "tensors",
)  # what refers before what is referred to
_LEFTOVERS_FROM = 60.0  # seconds; a session's folder stands a moment before its lock does


@dataclass(frozen=True)
class GcPlan:
    """What a collection will free; nothing is deleted before `execute`.

    Parameters
    ----------
    objects : tuple of Object
        In the order in which they go.
    bytes : int
        On disk.
    kept_young : int
        Unreachable objects left because they were written or used less than `older_than`
        seconds ago.
    made : float
        When, in seconds since 1970. What was touched after that stays: whoever has begun to
        rely on it since then may not have given it a name yet.
    """

    store: Objects
    refs: Refs
    objects: tuple[Object, ...]
    bytes: int
    kept_young: int
    older_than: float
    made: float

    def counts(self) -> dict[str, int]:
        """Objects by folder."""
        folders = [found.folder for found in self.objects]
        return {folder: folders.count(folder) for folder in _ORDER if folder in folders}

    def __repr__(self) -> str:
        what = ", ".join(f"{n} {folder}" for folder, n in self.counts().items()) or "nothing"
        young = f"; {self.kept_young} young objects stay" if self.kept_young else ""
        return f"GcPlan: frees {what}, {self.bytes:,} bytes{young}"

    def execute(self) -> int:
        """Delete; returns the bytes freed. May be interrupted, and run again."""
        cutoff = self.made - self.older_than
        kept = reach(self.store, roots(self.refs)).names
        freed = 0
        with Session(self.store) as session:
            trash = session.folder / "trash"
            trash.mkdir()
            for found in self.objects:
                if (found.folder, found.digest) not in kept:
                    freed += _take(found, trash, cutoff)
        _clear_leftovers(self.store)
        return freed


def plan(store: Objects, refs: Refs, *, older_than: float = YOUNG) -> GcPlan:
    """Find what nothing refers to and nobody touched for `older_than` seconds.

    Raises
    ------
    DamagedError
        Where a name or a record cannot be read: what it refers to is unknown, so nothing goes.
    LockedError
        Where `older_than` is shorter than `YOUNG` and somebody is writing to the zoo: what
        they wrote is not referred to yet.
    """
    restore_trash(store.layout)
    made = _now(store)  # before looking who writes: those who come later touch later
    if older_than < YOUNG and any(alive(folder) for folder in store.layout.tmp.glob("*/")):
        raise LockedError(
            "somebody is writing to the zoo, and what they wrote is not referred to yet",
            hint=f"wait for them, or collect what is older than {YOUNG:.0f} seconds",
        )
    cutoff = made - older_than
    found = reach(store, roots(refs))
    for error in found.unread.values():
        raise error
    garbage, size, young = [], 0, 0
    for candidate in _unreached(store, set(found.names)):
        try:
            status = candidate.path.stat()
        except FileNotFoundError:
            continue  # another collection was faster, or it has just been packed
        if status.st_mtime >= cutoff:
            young += 1
        else:
            garbage.append(candidate)
            size += status.st_size
    return GcPlan(store, refs, tuple(garbage), size, young, older_than, made)


def _now(store: Objects) -> float:
    """The time by the disk's clock, which a touch goes by: it lags, or is another machine's."""
    probe = store.layout.tmp / f"now-{uuid.uuid4().hex}"
    try:
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
    except OSError:  # a zoo that can only be read: nothing will be deleted
        return time.time()
    return now


def _unreached(store: Objects, reached: set[tuple[str, str]]) -> Iterator[Object]:
    for folder in _ORDER:
        there = list(store.all(folder))
        kept = reached | {(folder, digest) for digest in _beside(store, there, reached)}
        for candidate in there:
            if (folder, candidate.digest) not in kept:
                yield candidate


def _beside(store: Objects, there: list[Object], reached: set[tuple[str, str]]) -> Iterator[str]:
    """What packed files differ from that stand beside a raw one, as an interrupted run leaves them:
    they are read no more, but must not become damaged either.
    """
    kinds = Counter(found.digest for found in there)
    for found in there:
        twice = kinds[found.digest] > 1 and (found.folder, found.digest) in reached
        if twice and found.path.suffix in PACKED:
            with contextlib.suppress(DamagedError, FileNotFoundError):
                if reference := store.describe(found.path).reference:
                    yield reference
                    yield from store.lineage(reference)


def _take(found: Object, trash: Path, cutoff: float) -> int:
    moved = trash / f"{found.folder}~{found.path.name}"
    try:
        os.replace(found.path, moved)
    except FileNotFoundError:
        return 0  # another collection was faster
    try:
        status = moved.stat()
        if status.st_mtime >= cutoff:
            if not found.path.exists():
                os.replace(moved, found.path)
            return 0
        moved.unlink()
    except FileNotFoundError:
        return 0  # where locks do nothing, a reader took this run for dead and put it back
    return status.st_size


def _clear_leftovers(store: Objects) -> None:
    """Delete what killed sessions left under ``tmp/``; none of it is referred to."""
    restore_trash(store.layout)
    for entry in store.layout.tmp.iterdir():
        try:
            changed = entry.stat().st_mtime
        except FileNotFoundError:
            continue  # a session that has just ended
        if entry.name == "locks" or time.time() - changed <= _LEFTOVERS_FROM:
            continue
        if entry.is_dir() and not alive(entry):
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.is_file():
            entry.unlink(missing_ok=True)
