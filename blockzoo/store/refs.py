"""Names: each an append-only log of small files, the newest of which holds its tags.

``refs/acme/support@000003.json`` is the third entry of ``acme/support``. An entry is created
whole and exclusively (`durable.create`), so of two writers one wins and the other looks again:
no lock is needed, and none that silently does nothing can do harm. Entries never change.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from blockzoo.errors import DamagedError, NotFoundError, UsageError
from blockzoo.records import Model
from blockzoo.store import durable, sealed

LATEST = "latest"
_COMPONENT = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(_COMPONENT)
_ENTRY = re.compile(rf"({_COMPONENT})@(\d{{6,}})\.json")
_LONGEST_NAME = 200
_COMES_IN = ("ingest", "assemble", "stitch")  # actions that bring a model in


@dataclass(frozen=True)
class Tagged:
    """What a tag points to: a model's digest, and what listings say of it without opening it.

    ``bytes`` are those of the original files; ``new_bytes`` those of the tensors that were not
    in the zoo before.
    """

    digest: str
    kind: str
    family: str
    bytes: int
    new_bytes: int
    time: float
    detached: bool = False


def tagged(model: Model, new_bytes: int = 0) -> Tagged:
    """What a tag set now says of a model."""
    return Tagged(
        model.digest,
        model.kind,
        model.family,
        model.nbytes,
        new_bytes,
        time.time(),
        model.detached,
    )


@dataclass(frozen=True)
class Event:
    """One entry of a name's history: what was done (``ingest``, ``tag``, ``remove``, …)."""

    action: str
    tag: str
    digest: str
    time: float
    source: str = ""


@dataclass(frozen=True)
class Ref:
    """A name as of its newest entry; ``number`` is 0 for a name never used."""

    name: str
    number: int = 0
    tags: Mapping[str, Tagged] = field(default_factory=dict)
    event: Event | None = None


def split_name(text: str) -> tuple[str, str | None]:
    """``"acme/support:v3"`` to ``("acme/support", "v3")``; no tag gives None.

    Raises
    ------
    UsageError
        For anything else than letters, digits, ``.``, ``_``, ``-`` and single slashes: a name
        is a path in the zoo, and must not leave it.
    """
    name, colon, tag = text.partition(":")
    if (
        not _NAME.fullmatch(name)
        or len(name) > _LONGEST_NAME
        or (colon and not _TAG.fullmatch(tag))
    ):
        raise UsageError(
            f"{text!r} is not a usable model name",
            hint="use letters, digits, '.', '_', '-' and '/', such as acme/support:v3",
        )
    return name, tag if colon else None


class Refs:
    """The names of one zoo.

    Parameters
    ----------
    root : Path
        The folder ``refs/``.
    staging : Path
        A folder on the same disk for files being written.
    """

    def __init__(self, root: Path, staging: Path) -> None:
        self.root = root
        self.staging = staging

    def entries(self) -> Iterator[tuple[str, int, Path]]:
        """Every entry file as (name, number, path), in no order."""
        for folder, _, files in os.walk(self.root):
            prefix = Path(folder).relative_to(self.root).as_posix()
            for file in files:
                if match := _ENTRY.fullmatch(file):
                    name = match[1] if prefix == "." else f"{prefix}/{match[1]}"
                    yield name, int(match[2]), Path(folder, file)

    def all(self, damaged: dict[str, DamagedError] | None = None) -> list[Ref]:
        """Every name that has a tag, sorted.

        Parameters
        ----------
        damaged : dict, optional
            Takes the names whose newest entry cannot be read. Without it the first is an error.

        Raises
        ------
        DamagedError
        """
        newest: dict[str, int] = {}
        for name, number, _ in self.entries():
            newest[name] = max(number, newest.get(name, 0))
        refs = []
        for name, number in sorted(newest.items()):
            try:
                refs.append(self._read(name, number))
            except DamagedError as error:
                if damaged is None:
                    raise
                damaged[name] = error
        return [ref for ref in refs if ref.tags]

    def get(self, name: str) -> Ref:
        """A name's newest entry (`Ref` with number 0 where there is none)."""
        number = max(self._numbers(name), default=0)
        return self._read(name, number) if number else Ref(name)

    def find(self, text: str) -> Tagged:
        """What ``name`` or ``name:tag`` points to.

        Raises
        ------
        NotFoundError
            With the names that come closest.
        """
        name, tag = split_name(text)
        tags = self.get(name).tags
        if (tag or LATEST) in tags:
            return tags[tag or LATEST]
        if tags:
            raise NotFoundError(
                f"{name!r} has no tag {tag or LATEST!r}",
                hint=f"its tags: {', '.join(sorted(tags))}",
            )
        import difflib

        close = difflib.get_close_matches(name, [ref.name for ref in self.all({})], n=3, cutoff=0.5)
        raise NotFoundError(
            f"no model is named {name!r}",
            hint=f"did you mean {', '.join(close)}?" if close else "`blockzoo ls` lists the names",
        )

    def history(self, name: str) -> list[Event]:
        """All events of a name, oldest first."""
        split_name(name)
        numbers = sorted(self._numbers(name))
        if not numbers:
            raise NotFoundError(f"no model was ever named {name!r}", hint="see `blockzoo ls`")
        events = (self._read(name, number).event for number in numbers)
        return [event for event in events if event]

    def set(
        self,
        name: str,
        tag: str | None,
        target: Tagged,
        action: str,
        source: str = "",
        *,
        instead_of: str = "",
    ) -> bool:
        """Point a tag at a model; ``latest`` moves along when a model comes in under a tag.

        Returns
        -------
        bool
            False, with nothing changed, where the tag does not point to `instead_of` (any more),
            a model's digest, if that is given.
        """

        def change(ref: Ref) -> tuple[dict[str, Tagged], Event] | None:
            now = ref.tags.get(tag or LATEST)
            if instead_of and (now is None or now.digest != instead_of):
                return None
            latest = target if action in _COMES_IN else ref.tags.get(LATEST, target)
            tags = {**ref.tags, LATEST: latest, (tag or LATEST): target}
            return tags, Event(action, tag or LATEST, target.digest, target.time, source)

        return self._append(name, change)

    def swap(self, name: str, old: str, target: Tagged, action: str, source: str = "") -> bool:
        """Let the tags that point to `old`, a model's digest, point to another model; no others.

        Returns
        -------
        bool
            False, with nothing changed, where no tag points to `old` (any more).
        """

        def change(ref: Ref) -> tuple[dict[str, Tagged], Event] | None:
            swapped = sorted(tag for tag, to in ref.tags.items() if to.digest == old)
            if not swapped:
                return None
            told = LATEST if LATEST in swapped else swapped[0]
            tags = {
                tag: replace(target, new_bytes=to.new_bytes) if tag in swapped else to
                for tag, to in ref.tags.items()
            }
            return tags, Event(action, told, target.digest, target.time, source)

        return self._append(name, change)

    def rewrite(self, name: str, number: int, target: Tagged, action: str, source: str) -> None:
        """Put a sound entry in the place of a damaged one; later entries stay what they are.

        Its tags are those of the last sound entry before it, and ``latest``.
        """
        tags: Mapping[str, Tagged] = {}
        for before in sorted((n for n in self._numbers(name) if n < number), reverse=True):
            try:
                tags = self._read(name, before).tags
                break
            except DamagedError:
                continue
        event = Event(action, LATEST, target.digest, target.time, source)
        data = _entry(name, number, {**tags, LATEST: target}, event)
        durable.replace(self._path(name, number), data, self._stage())

    def remove(self, name: str, tag: str | None) -> None:
        """Take a tag, or a whole name, off the list; its history and its objects stay."""
        gone = self.find(f"{name}:{tag}") if tag else self.find(name)

        def change(ref: Ref) -> tuple[dict[str, Tagged], Event]:
            tags = {t: to for t, to in ref.tags.items() if tag and t != tag}
            return tags, Event("remove", tag or "", gone.digest, time.time())

        self._append(name, change)

    def _append(
        self, name: str, change: Callable[[Ref], tuple[dict[str, Tagged], Event] | None]
    ) -> bool:
        """Add an entry, made from the newest; False where `change` wants none."""
        split_name(name)
        while True:
            ref = self.get(name)
            changed = change(ref)
            if changed is None:
                return False
            tags, event = changed
            data = _entry(name, ref.number + 1, tags, event)
            if durable.create(self._path(name, ref.number + 1), data, self._stage()):
                self._flush_parents(name)
                return True

    def _flush_parents(self, name: str) -> None:
        """The first name, or a nested one, made folders on the way; their entries must last too."""
        folder = self._path(name, 1).parent
        while folder != self.root.parent:
            folder = folder.parent
            durable.flush_folder(folder)

    def _stage(self) -> Path:
        self.staging.mkdir(parents=True, exist_ok=True)
        return self.staging / f"ref-{uuid.uuid4().hex}"

    def _path(self, name: str, number: int) -> Path:
        return self.root / f"{name}@{number:06d}.json"

    def _numbers(self, name: str) -> list[int]:
        folder, _, last = name.rpartition("/")
        try:
            files = os.listdir(self.root / folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        matches = filter(None, map(_ENTRY.fullmatch, files))
        return [int(match[2]) for match in matches if match[1] == last]

    def _read(self, name: str, number: int) -> Ref:
        path = self._path(name, number)
        try:
            return parse_entry(path.read_bytes(), name, number)
        except DamagedError as error:
            raise DamagedError(
                f"the ref {name!r} is damaged: {error.message} ({path})",
                hint="`blockzoo verify` tells what is damaged, `blockzoo repair` mends it",
            ) from error


def _entry(name: str, number: int, tags: Mapping[str, Tagged], event: Event) -> bytes:
    return sealed.seal(
        {
            "format": 1,
            "name": name,
            "number": number,
            "tags": {tag: asdict(to) for tag, to in tags.items()},
            "event": asdict(event),
        }
    )


def parse_entry(data: bytes, name: str, number: int) -> Ref:
    """An entry file's content, checked against the name and number it stands under."""
    value: dict[str, Any] = sealed.unseal(data)
    if value.get("name") != name or value.get("number") != number:
        raise DamagedError(f"it is an entry of {value.get('name')!r}")
    tags = {tag: Tagged(**to) for tag, to in value["tags"].items()}
    return Ref(name, number, tags, Event(**value["event"]))
