"""Looking at tensors in their source, and coding them straight from there.

Functions of plain data, so that any process of a `Team` can do the work: what is read is named
by file and place, what is written is a file under the session's folder, and every packed file
has been decoded and held to its tensor's digest before its name is given back.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from blockzoo.codecs import PACKED, raw
from blockzoo.codecs.grouping import Grouping
from blockzoo.errors import DamagedError, SourceError
from blockzoo.formats.mapped import MappedFile
from blockzoo.similarity.sketch import Sketch, sketch
from blockzoo.store.mapping import map_file
from blockzoo.store.objects import check_decoded, open_objects
from blockzoo.store.session import stage, stage_tensor
from blockzoo.tensors import TensorInfo, TensorRef, tensor_digest

Reference = tuple[str, TensorInfo, memoryview]
Staged = tuple[str, str, Path]  # a tensor's digest, the suffix of its kind, a file

_OPEN = 4  # sources that stay mapped


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes lie: a file, from `start` up to `end`."""

    file: Path
    start: int
    end: int

    def read(self) -> memoryview:
        return _mapped(self.file).bytes(self.start, self.end)


@dataclass(frozen=True)
class Seen:
    """A tensor that has been hashed, where it lies, and the kind that it shall be kept in."""

    ref: TensorRef
    place: Place
    codec: str = raw.SUFFIX


@dataclass(frozen=True)
class Family:
    """What is coded against one reference, which is new itself (`first`) or in the zoo.

    Parameters
    ----------
    zoo, folder : Path
        The zoo's, and that for staged files.
    level : {"fast", "small"}
    reference : str
        Digest.
    first : Seen or None
    others : tuple of Seen
    """

    zoo: Path
    folder: Path
    level: str
    reference: str
    first: Seen | None
    others: tuple[Seen, ...]

    @property
    def nbytes(self) -> int:
        first = self.first.ref.nbytes if self.first else 0
        return first + sum(seen.ref.nbytes for seen in self.others)


def look(item: tuple[Path, TensorInfo, Place]) -> tuple[str, Sketch | None]:
    """A tensor's digest, and its sketch where the zoo does not have it."""
    zoo, info, place = item
    data = place.read()
    digest = tensor_digest(info, data)
    if open_objects(zoo).find("tensors", digest) is not None:
        return digest, None
    return digest, sketch(info, data)


def write(family: Family) -> tuple[list[Staged], list[Staged]]:
    """Write a family's files: that of the reference, if it is new, and those of the others.

    Raises
    ------
    SourceError
        Where a source was changed since it was hashed.
    """
    first: list[Staged] = []
    base: Reference | None
    if family.first is None:
        base = (family.reference, *open_objects(family.zoo).reference(family.reference))
    else:
        staged, kept = _write_first(family, family.first)
        first.append(staged)
        base = (family.reference, *kept) if kept else None
    grouping = Grouping()
    return first, [_write_other(family, seen, base, grouping) for seen in family.others]


def _write_first(family: Family, seen: Seen) -> tuple[Staged, tuple[TensorInfo, memoryview] | None]:
    """Write a tensor that stands by itself; its bytes as stored come along where needed."""
    if seen.codec in PACKED:
        coder = PACKED[seen.codec]
        packed = coder.encode(seen.ref, seen.place.read(), None, level=family.level)
        if packed is not None:
            kept = None
            if family.others:
                kept = coder.decode(memoryview(packed), None)
                if tensor_digest(*kept) != seen.ref.digest:
                    raise _changed(seen)
            else:
                _check(seen, packed, None, None)
            return _stage(family, seen, packed), kept
    staged = _write_raw(family, seen)
    return staged, raw.read(map_file(staged[2])) if family.others else None


def _write_other(family: Family, seen: Seen, base: Reference | None, grouping: Grouping) -> Staged:
    packed = PACKED[seen.codec].encode(
        seen.ref, seen.place.read(), base, level=family.level, grouping=grouping
    )
    if packed is None:
        return _write_raw(family, seen)
    _check(seen, packed, base, grouping)
    return _stage(family, seen, packed)


def _stage(family: Family, seen: Seen, packed: bytes) -> Staged:
    path = family.folder / uuid.uuid4().hex
    stage(path, packed)
    return seen.ref.digest, seen.codec, path


def _write_raw(family: Family, seen: Seen) -> Staged:
    path = family.folder / uuid.uuid4().hex
    if stage_tensor(path, seen.ref, seen.place.read()) != seen.ref.digest:
        raise _changed(seen)
    return seen.ref.digest, raw.SUFFIX, path


def _check(seen: Seen, packed: bytes, base: Reference | None, grouping: Grouping | None) -> None:
    try:
        check_decoded(seen.ref.digest, memoryview(packed), base[1:] if base else None, grouping)
    except DamagedError as error:
        raise _changed(seen) from error


def _changed(seen: Seen) -> SourceError:
    return SourceError(
        f"{seen.place.file} was changed while it was being read", hint="run it again"
    )


@lru_cache(maxsize=_OPEN)
def _mapped(path: Path) -> MappedFile:
    return MappedFile(path)


def forget() -> None:
    """Let go of the sources: by the next call other files may stand in their places."""
    _mapped.cache_clear()
