"""Changing how one tensor is kept, safely: the new file stands and was read back before the old
one goes.

A tensor's digest does not depend on how it is kept, so no block and no model changes. Killed in
between, both files stand: either can be read, and the next run drops the one that is not wanted.
"""

from __future__ import annotations

from pathlib import Path

from blockzoo.codecs import PACKED, raw
from blockzoo.errors import DamagedError
from blockzoo.store import durable
from blockzoo.store.objects import Objects, map_file
from blockzoo.store.session import Session


def pack(
    session: Session, digest: str, *, codec: str, level: str, reference: str | None
) -> tuple[int, int]:
    """Keep a raw tensor in another kind, where that is smaller.

    Parameters
    ----------
    digest : str
    codec : str
        A suffix in `codecs.PACKED`.
    level : {"fast", "small"}
    reference : str or None
        The digest of the raw tensor it is kept as a difference from.

    Returns
    -------
    before, after : int
        Bytes of its file; equal where it stays as it was.

    Raises
    ------
    DamagedError
        Where the tensor or its reference is missing or damaged.
    """
    objects = session.objects
    path = objects.find("tensors", digest)
    if path is None:
        raise DamagedError(f"tensor {digest[:12]} is missing")
    before = path.stat().st_size
    if path.suffix in PACKED:
        return before, before
    info, data = objects.tensor(digest)
    base = grouping = None
    if reference is not None:
        grouping = objects.grouping(reference)
        session.rely("tensors", reference)  # touched: no collection takes it from here on
        base = (reference, *objects.reference(reference))
    packed = PACKED[codec].encode(info, data, base, level=level, grouping=grouping)
    if packed is None:
        return before, before
    objects.check_packed(digest, memoryview(packed))
    place = path.with_name(digest + codec)
    session.put(place, packed)
    if reference is not None and objects.find("tensors", reference) is None:
        place.unlink()  # the collection was faster; the raw file has not been touched
        return before, before
    path.unlink()
    return before, len(packed)


def unpack(session: Session, digest: str) -> tuple[int, int]:
    """Keep a tensor raw again; returns bytes of its file before and after."""
    objects = session.objects
    packed = packed_file(objects, digest)
    if packed is None:
        path = objects.find("tensors", digest)
        size = path.stat().st_size if path else 0
        return size, size
    before = packed.stat().st_size
    place = packed.with_name(digest + raw.SUFFIX)
    if not place.exists():
        info, data = objects.tensor(digest)
        session.put(place, raw.header(info) + bytes(data))
    packed.unlink()
    return before, place.stat().st_size


def packed_file(objects: Objects, digest: str) -> Path | None:
    """The packed file of a tensor, whether or not a raw one stands beside it."""
    shard = objects.layout.shard("tensors", digest)
    for suffix in PACKED:
        if (path := shard / (digest + suffix)).exists():
            return path
    return None


def finish(objects: Objects, digest: str) -> int:
    """Drop the raw file of a tensor that also stands packed: a run was killed in between.

    Returns
    -------
    int
        Bytes freed.
    """
    packed = packed_file(objects, digest)
    if packed is None:
        return 0
    plain = packed.with_name(digest + raw.SUFFIX)
    if not plain.exists():
        return 0
    try:
        objects.check_packed(digest, map_file(packed))
    except DamagedError:
        return 0
    size = plain.stat().st_size
    plain.unlink()
    durable.flush_folder(plain.parent)
    return size
