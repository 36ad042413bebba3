"""Checking a zoo: every object against its digest, every name against what it needs."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from blockzoo.errors import BlockzooError, DamagedError
from blockzoo.store.layout import OBJECT_FOLDERS
from blockzoo.store.objects import Object, Objects, restore_trash, size_on_disk
from blockzoo.store.reach import reach
from blockzoo.store.refs import Refs, parse_entry

_MOMENT = 0.1  # seconds in which whoever moved aside what should stay has put it back


@dataclass(frozen=True)
class Problem:
    """Something damaged or missing.

    Parameters
    ----------
    folder : str
        ``"tensors"``, ``"blocks"``, ``"models"``, ``"files"``, ``"refs"`` or ``"zoo"``.
    digest : str
        The object's; for a ref its name, with the entry's number after ``@``.
    what : str
        In words.
    hurts : tuple of str
        The ``name:tag`` of every model that needs it; empty where nothing does.
    path : Path or None
        The damaged file; None where it is missing.
    """

    folder: str
    digest: str
    what: str
    hurts: tuple[str, ...]
    path: Path | None


@dataclass(frozen=True)
class Report:
    """What `verify` or `repair` found."""

    objects: int
    bytes: int
    problems: tuple[Problem, ...]
    repaired: tuple[Problem, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems

    def __repr__(self) -> str:
        lines = [f"{self.objects} objects, {self.bytes:,} bytes read"]
        lines += [f"repaired: {p.folder} {p.digest[:12]}" for p in self.repaired]
        for p in self.problems:
            needed = f"; needed by {', '.join(p.hurts)}" if p.hurts else "; nothing needs it"
            lines.append(f"{p.folder} {p.digest[:12]}: {p.what}{needed}")
        return "\n".join(lines if self.problems or self.repaired else [*lines, "all sound"])


def verify(
    store: Objects, refs: Refs, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Read every object and every name; changes nothing but to put back what a killed
    collection moved aside.

    Parameters
    ----------
    progress : callable, optional
        Called with (bytes done, bytes in all).
    """
    restore_trash(store.layout)
    objects = [found for folder in OBJECT_FOLDERS for found in store.all(folder)]
    sizes = {found: size_on_disk(found.path) for found in objects}
    total, done = sum(sizes.values()), 0
    damage: dict[tuple[str, str], tuple[str, Path | None]] = {}

    def check(found: Object) -> str | None:
        try:
            store.check(found)
        except DamagedError as error:
            return error.message.split("is damaged: ", 1)[-1] if found.path.exists() else None
        except FileNotFoundError:
            return None  # collected, or packed in another way, since it was listed
        except BlockzooError as error:
            return error.message
        return None

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for found, what in zip(sizes, pool.map(check, sizes), strict=True):
            done += sizes[found]
            if what:
                damage[found.folder, found.digest] = what, found.path
            if progress:
                progress(done, total)

    problems = _damaged_refs(refs)
    starts: dict[str, set[str]] = {}
    for name in {name for name, _, _ in refs.entries()}:
        with contextlib.suppress(DamagedError):  # told already, as a damaged ref
            for tag, target in refs.get(name).tags.items():
                starts.setdefault(target.digest, set()).add(f"{name}:{tag}")
    reached = reach(store, starts)
    missing = [key for key in reached.names if key not in damage and store.find(*key) is None]
    if missing:
        time.sleep(_MOMENT)
    for key in missing:
        if store.find(*key) is None:
            damage[key] = "it is missing", None
    for key, error in reached.unread.items():
        damage.setdefault(key, (error.message.split("is damaged: ", 1)[-1], store.find(*key)))
    for (folder, digest), (what, path) in sorted(damage.items()):
        hurts = tuple(sorted(reached.names.get((folder, digest), ())))
        problems.append(Problem(folder, digest, what, hurts, path))
    return Report(len(sizes), total, tuple(problems))


def _damaged_refs(refs: Refs) -> list[Problem]:
    problems = []
    for name, number, path in sorted(refs.entries()):
        try:
            parse_entry(path.read_bytes(), name, number)
        except DamagedError as error:
            problems.append(
                Problem("refs", f"{name}@{number:06d}", error.message, (f"{name}:latest",), path)
            )
    return problems
