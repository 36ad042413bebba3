"""Changing how one tensor is kept, safely: the new file stands and was read back before the old
one goes.

A tensor's digest does not depend on how it is kept, so no block and no model changes. Killed in
between, both files stand: either can be read, and the next run drops the one that is not wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blockzoo.codecs import PACKED, raw
from blockzoo.errors import DamagedError
from blockzoo.store import durable
from blockzoo.store.mapping import map_file
from blockzoo.store.objects import Objects, size_on_disk
from blockzoo.store.session import Session


@dataclass(frozen=True)
class Change:
    """A tensor whose new file is written but not in its place yet.

    Parameters
    ----------
    digest : str
    staged, place : Path
        The new file, and where it will stand.
    old : Path
        The file that it replaces.
    before, after : int
        Bytes of the old file and the new.
    """

    digest: str
    staged: Path
    place: Path
    old: Path
    before: int
    after: int


def pack(session: Session, digest: str, *, codec: str, level: str, reference: str) -> Change | None:
    """Code a raw tensor in another kind, and read it back.

    Parameters
    ----------
    digest : str
    codec : str
        A suffix in `codecs.PACKED`.
    level : {"fast", "small"}
    reference : str
        The digest of the tensor it becomes a difference from; "" for none.

    Returns
    -------
    Change or None
        For `settle`; None where it is packed already, or would not be smaller.

    Raises
    ------
    DamagedError
        Where the tensor or its reference is missing or damaged.
    """
    objects = session.objects
    path = objects.find("tensors", digest)
    if path is None:
        raise DamagedError(f"tensor {digest[:12]} is missing")
    if path.suffix in PACKED:
        return None
    info, data = objects.tensor(digest)
    base = grouping = None
    if reference:
        session.rely("tensors", reference)  # touched: no collection takes it from here on
        base = (reference, *objects.reference(reference))
        grouping = objects.grouping(reference)
    packed = PACKED[codec].encode(info, data, base, level=level, grouping=grouping)
    if packed is None:
        return None
    objects.check_packed(digest, memoryview(packed))
    staged, place = session.stage(packed), path.with_name(digest + codec)
    before = size_on_disk(path)
    return Change(digest, staged, place, path, before, len(packed))


def unpack(session: Session, digest: str) -> Change | None:
    """Write a packed tensor raw again; None where it is not packed."""
    objects = session.objects
    packed = packed_file(objects, digest)
    if packed is None:
        return None
    before = size_on_disk(packed)
    place = packed.with_name(digest + raw.SUFFIX)
    info, data = objects.tensor(digest)
    staged = session.stage(raw.header(info), data)
    return Change(digest, staged, place, packed, before, raw.size(info))


def settle(session: Session, changes: Sequence[Change]) -> None:
    """Bring new files to the disk and their places, and only then delete the old ones.

    Where a reference has been collected meanwhile, the new file goes and the old one stays.
    """
    session.settle([(change.staged, change.place) for change in changes])
    for change in changes:
        if not session.drop(change.digest, change.old):
            session.drop(change.digest, change.place)


def packed_file(objects: Objects, digest: str) -> Path | None:
    """The packed file of a tensor, whether or not a raw one stands beside it."""
    shard = objects.layout.shard("tensors", digest)
    for suffix in PACKED:
        if (path := shard / (digest + suffix)).exists():
            return path
    return None


def finish(session: Session, digest: str) -> int:
    """Drop the raw file of a tensor that also stands packed: a run was killed in between.

    Returns
    -------
    int
        Bytes freed.
    """
    packed = packed_file(session.objects, digest)
    if packed is None:
        return 0
    plain = packed.with_name(digest + raw.SUFFIX)
    if not plain.exists():
        return 0
    try:
        session.objects.check_packed(digest, map_file(packed))
    except (DamagedError, FileNotFoundError):
        return 0
    durable.flush_folder(plain.parent)  # the packed file's name, before the other goes
    size = size_on_disk(plain)
    return size if session.drop(digest, plain) else 0
