"""Where things stand in a zoo's folder, and the file ``zoo.json`` that makes it one."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

from blockzoo.errors import BlockzooError, DamagedError, NoZooError, ZooVersionError
from blockzoo.store import durable, sealed

VERSION = 1

#: the folders of immutable objects, by what they hold
OBJECT_FOLDERS = ("tensors", "blocks", "models", "files", "equivalences")


@dataclass(frozen=True)
class Layout:
    """A zoo's folder."""

    root: Path

    @property
    def marker(self) -> Path:
        return self.root / "zoo.json"

    @property
    def refs(self) -> Path:
        return self.root / "refs"

    @property
    def tmp(self) -> Path:
        return self.root / "tmp"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def shard(self, folder: str, digest: str) -> Path:
        """The folder an object lies in: the first two hex digits of its digest."""
        return self.root / folder / digest[:2]


def open_zoo(root: Path, *, create: bool) -> tuple[Layout, str]:
    """The layout and the id of the zoo at a path, which is made where it is absent and asked for.

    Raises
    ------
    NoZooError
        Where there is none and none is to be made, or something else is in the way.
    ZooVersionError
        Where a newer blockzoo wrote it.
    DamagedError
        Where ``zoo.json`` is not what was written.
    """
    layout = Layout(root)
    if not layout.marker.exists():
        if not create:
            raise NoZooError(
                f"there is no zoo at {root}",
                hint="`blockzoo init` makes one; --zoo PATH or BLOCKZOO_ZOO names another place",
            )
        write_marker(layout)
    try:
        marker = sealed.unseal(layout.marker.read_bytes())
        version = int(marker["version"])
        if marker["format"] != "blockzoo":
            raise DamagedError("it is some other program's")
    except (DamagedError, KeyError, ValueError) as error:
        raise DamagedError(
            f"{layout.marker} is damaged: {error}", hint="`blockzoo repair` writes it anew"
        ) from error
    if version > VERSION:
        raise ZooVersionError(
            f"the zoo at {root} has format {version}; this blockzoo reads up to {VERSION}",
            hint="install a newer blockzoo",
        )
    return layout, str(marker["id"])


def write_marker(layout: Layout, *, replace: bool = False) -> None:
    """Make ``zoo.json`` in a folder that is empty or a zoo that lost its own.

    Parameters
    ----------
    layout : Layout
    replace : bool
        Put it in the place of a damaged one, in one step.

    Raises
    ------
    NoZooError
        Where the folder holds anything that no zoo has.
    """
    root = layout.root
    known = {*OBJECT_FOLDERS, "refs", "tmp", "cache", *([layout.marker.name] if replace else [])}
    if root.exists() and (not root.is_dir() or {p.name for p in root.iterdir()} - known):
        raise NoZooError(
            f"{root} is not empty and is no zoo", hint="name a new or empty folder with --zoo"
        )
    try:
        layout.tmp.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BlockzooError(
            f"cannot make a zoo at {root}: {error.strerror}",
            hint="name a folder that can be written to with --zoo",
        ) from error
    marker = {"format": "blockzoo", "version": VERSION, "hash": "blake3", "id": uuid.uuid4().hex}
    staging = layout.tmp / f"zoo-{uuid.uuid4().hex}.json"
    if replace:
        durable.replace(layout.marker, sealed.seal(marker), staging)
    else:
        durable.create(layout.marker, sealed.seal(marker), staging)
        durable.flush_folder(root.parent)
