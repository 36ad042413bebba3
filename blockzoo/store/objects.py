"""Reading the zoo's immutable objects, each checked against its digest the first time.

Reading never takes a lock. An object found missing is looked for once more where a collection
that was killed may have left it (`collect`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from blockzoo.codecs import PACKED, raw, zstd
from blockzoo.errors import DamagedError
from blockzoo.records import Block, Model
from blockzoo.store.layout import Layout
from blockzoo.store.mapping import map_file
from blockzoo.tensors import TensorInfo, bytes_digest, tensor_digest, tensor_hasher

if TYPE_CHECKING:
    from blockzoo.codecs.grouping import Grouping
    from blockzoo.codecs.kept import Packed

_T = TypeVar("_T")

#: file-name suffixes of each folder, the preferred kind first
SUFFIXES: dict[str, tuple[str, ...]] = {
    "tensors": (raw.SUFFIX, *PACKED),
    "files": ("", zstd.SUFFIX),
    "blocks": (".json",),
    "models": (".json",),
    "equivalences": (".json",),
}
_DIGEST = re.compile(r"[0-9a-f]{64}")
_KEPT_REFERENCES = 128 << 20  # bytes of references, packed themselves, that stay decoded
_KEPT_GROUPINGS = 4
_PIECE = 1 << 20  # bytes of a raw tensor
_PATIENCE = (0.0, 0.02, 0.1)  # seconds between looks at what others are just changing
_Stamp = tuple[int, int, int]
LARGEST_COMPRESSED = 64 << 20  # bytes; larger files are kept as they are


@dataclass(frozen=True)
class Object:
    """An object's file: which folder, whose digest, where."""

    folder: str
    digest: str
    path: Path


class Objects:
    """The objects of one zoo, for reading.

    Parameters
    ----------
    layout : Layout
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._checked: dict[tuple[str, str], _Stamp] = {}
        self._references: OrderedDict[str, tuple[TensorInfo, memoryview]] = OrderedDict()
        self._kept = 0  # bytes of those
        self._groupings: OrderedDict[str, Grouping] = OrderedDict()
        self._guard = threading.Lock()

    def find(self, folder: str, digest: str) -> Path | None:
        """The file that holds an object, in whichever kind it is kept."""
        if not _DIGEST.fullmatch(digest):
            raise DamagedError(f"{digest!r} is not a digest")
        stem = f"{self.layout.shard(folder, digest)}{os.sep}{digest}"
        for suffix in 2 * SUFFIXES[folder]:  # twice: one kind may take another's place meanwhile
            if os.path.exists(stem + suffix):  # a string: many are looked for
                return Path(stem + suffix)
        return None

    def all(self, folder: str) -> Iterator[Object]:
        """Every object file of a folder, in no order; stray files are passed over."""
        root = self.layout.root / folder
        for shard in sorted(root.iterdir()) if root.is_dir() else []:
            for entry in os.scandir(shard) if shard.is_dir() else []:
                digest, suffix = entry.name[:64], entry.name[64:]
                sound = _DIGEST.fullmatch(digest) and digest[:2] == shard.name
                if sound and suffix in SUFFIXES[folder]:
                    yield Object(folder, digest, Path(entry.path))

    def tensor(self, digest: str) -> tuple[TensorInfo, memoryview]:
        """A tensor's dtype and shape, and its bytes as a read-only view of the mapped file.

        Raises
        ------
        DamagedError
            Where it is missing or not what its digest says; the exit code is 12.
        """
        return self._checked_read("tensors", digest, self._decode_tensor, _check_tensor)

    def stream(self, digest: str) -> tuple[TensorInfo, Iterator[memoryview]]:
        """A tensor's dtype and shape, and its bytes piece after piece, none of which is kept.

        A piece holds until the next is asked for, and one thread must ask for them all.

        Raises
        ------
        DamagedError
            As `tensor`; but where the bytes are not what the digest says, only after the last
            piece. Until then nothing that came may be relied on.
        """
        path = self.find("tensors", digest)
        if path is not None and path.suffix in PACKED:
            try:
                file = map_file(path)
            except FileNotFoundError:
                pass  # it has just been unpacked, and now stands in the other kind
            else:
                return self._stream_packed(digest, file)
        info, data = self.tensor(digest)
        return info, (data[i : i + _PIECE] for i in range(0, len(data), _PIECE))

    def reference(self, digest: str) -> tuple[TensorInfo, memoryview]:
        """A tensor that others are kept as differences from; one that is packed stays decoded.

        Raises
        ------
        DamagedError
            Also where it comes back to itself, from reference to reference.
        """
        path = self.find("tensors", digest)
        if path is None or path.suffix not in PACKED:
            return self.tensor(digest)
        self.lineage(digest)
        with self._guard:
            if (known := self._references.get(digest)) is not None:
                return known
        found = self.tensor(digest)
        with self._guard:
            if digest not in self._references:
                self._references[digest] = found
                self._kept += len(found[1])
            while self._kept > _KEPT_REFERENCES:
                _, (_, old) = self._references.popitem(last=False)
                self._kept -= len(old)
        return found

    def grouping(self, reference: str) -> Grouping:
        """What coding against a reference computes once for all that differ from it."""
        from blockzoo.codecs.grouping import Grouping

        with self._guard:
            found = self._groupings.setdefault(reference, Grouping())
            while len(self._groupings) > _KEPT_GROUPINGS:
                self._groupings.popitem(last=False)
        return found

    def describe(self, path: Path) -> Packed:
        """What a packed tensor's file says of itself, without decoding it."""
        from blockzoo.codecs.kept import describe  # brings NumPy, which listings do without

        return describe(map_file(path))

    def reference_of(self, digest: str) -> str:
        """The digest of the tensor that this one is kept as a difference from; "" if none."""
        while (path := self.find("tensors", digest)) and path.suffix in PACKED:
            with contextlib.suppress(FileNotFoundError):  # packed otherwise just now: look again
                return self.describe(path).reference
        return ""

    def lineage(self, digest: str, *, patient: bool = True) -> list[str]:
        """The tensors that one is kept as a difference from, the nearest first.

        It is one at most, or a few where several processes were packing at once.

        Parameters
        ----------
        patient : bool
            Look again where they seem to run in a circle: what is seen one after another while
            others repack may never have been so at once.

        Raises
        ------
        DamagedError
            Where they run in a circle.
        """
        for pause in _PATIENCE if patient else (0.0,):
            found = [digest]
            while (reference := self.reference_of(found[-1])) and reference not in found:
                found.append(reference)
            if not reference:
                return found[1:]
            time.sleep(pause)
        raise damaged(self.layout, "tensors", digest, "its references run in a circle")

    def file(self, digest: str) -> memoryview:
        """A stored file's bytes: a view of the mapped file, or of what was decompressed."""
        return self._checked_read("files", digest, _decode_file, _check_bytes)

    def block(self, digest: str) -> Block:
        return Block.from_json(self._json("blocks", digest))

    def model(self, digest: str) -> Model:
        return Model.from_json(self._json("models", digest))

    def equivalence(self, digest: str) -> dict[str, Any]:
        """An equivalence record's JSON; `blockzoo.equivalence.record` knows what it says."""
        return dict(self._json("equivalences", digest))

    def check(self, found: Object) -> None:
        """Read an object's file whole and hold it to its digest.

        Raises
        ------
        DamagedError
        """
        if found.folder == "tensors":
            if found.path.suffix in PACKED:
                self.check_packed(found.digest, map_file(found.path))
            else:
                self._read(found, self._decode_tensor, _check_tensor)
        else:
            self._read(
                found, _decode_file if found.folder == "files" else _decode_json, _check_bytes
            )

    def check_packed(self, digest: str, file: memoryview) -> None:
        """Hold a packed tensor's file to its seal, and what it decodes to, to its digest.

        Raises
        ------
        DamagedError
        """
        from blockzoo.codecs.kept import check_seal, describe

        try:
            check_seal(file)
            packed = describe(file)
            reference = self.reference(packed.reference) if packed.reference else None
            grouping = self.grouping(packed.reference) if packed.reference else None
            check_decoded(digest, file, reference, grouping)
        except DamagedError as error:
            raise damaged(self.layout, "tensors", digest, error.message) from error

    def _stream_packed(
        self, digest: str, file: memoryview
    ) -> tuple[TensorInfo, Iterator[memoryview]]:
        from blockzoo.codecs.kept import describe

        try:
            packed = describe(file)
            reference = self.reference(packed.reference) if packed.reference else None
            pieces = PACKED[packed.kind].stream(file, reference)
        except DamagedError as error:
            raise damaged(self.layout, "tensors", digest, error.message) from error

        def checked() -> Iterator[memoryview]:
            hasher = tensor_hasher(packed.info, threads=1)
            try:
                for piece in pieces:
                    hasher.update(piece)
                    yield piece
            except DamagedError as error:
                raise damaged(self.layout, "tensors", digest, error.message) from error
            if hasher.hexdigest() != digest:
                raise damaged(self.layout, "tensors", digest, "its bytes were changed")

        return packed.info, checked()

    def _decode_tensor(self, path: Path, file: memoryview) -> tuple[TensorInfo, memoryview]:
        return self._unpack(file) if path.suffix in PACKED else raw.read(file)

    def _unpack(self, file: memoryview) -> tuple[TensorInfo, memoryview]:
        from blockzoo.codecs.kept import describe

        packed = describe(file)
        codec = PACKED[packed.kind]
        decoded: tuple[TensorInfo, memoryview]
        if packed.reference:
            grouping = self.grouping(packed.reference)
            decoded = codec.decode(file, self.reference(packed.reference), grouping=grouping)
        else:
            decoded = codec.decode(file, None)
        return decoded

    def _json(self, folder: str, digest: str) -> Any:
        return json.loads(bytes(self._checked_read(folder, digest, _decode_json, _check_bytes)))

    def _checked_read(
        self,
        folder: str,
        digest: str,
        decode: Callable[[Path, memoryview], _T],
        check: Callable[[str, _T], bool],
    ) -> _T:
        path = self.find(folder, digest) or self._wait_for(folder, digest)
        if path is None:
            raise damaged(self.layout, folder, digest, "it is missing")
        found = Object(folder, digest, path)
        try:
            value = self._read(found, decode, check, self._checked.get((folder, digest)))
        except DamagedError:
            if path.exists() or (path := self.find(folder, digest)) is None:
                raise
            # it was being packed or unpacked, and now stands in the other kind
            value = self._read(Object(folder, digest, path), decode, check)
        return value

    def _read(
        self,
        found: Object,
        decode: Callable[[Path, memoryview], _T],
        check: Callable[[str, _T], bool],
        checked: _Stamp | None = None,
    ) -> _T:
        try:
            value = decode(found.path, map_file(found.path))
            # after mapping: a file that took its place before has another stamp
            stamp = _stamp(found.path)
            sound = stamp == checked or check(found.digest, value)
            if sound:
                self._checked[found.folder, found.digest] = stamp
        except DamagedError as error:
            raise damaged(self.layout, found.folder, found.digest, error.message) from error
        except FileNotFoundError as error:
            raise damaged(self.layout, found.folder, found.digest, "it is missing") from error
        if not sound:
            raise damaged(self.layout, found.folder, found.digest, "its bytes were changed")
        return value

    def _wait_for(self, folder: str, digest: str) -> Path | None:
        """As `find`, but patient: whoever moved aside what should stay puts it back at once."""
        for pause in _PATIENCE:
            restore_trash(self.layout)
            if path := self.find(folder, digest):
                return path
            time.sleep(pause)
        return None


@lru_cache(maxsize=4)
def open_objects(root: Path) -> Objects:
    """The objects of a zoo's folder, once for a process that is told of it again and again."""
    return Objects(Layout(root))


def check_decoded(
    digest: str,
    file: memoryview,
    reference: tuple[TensorInfo, memoryview] | None,
    grouping: Grouping | None,
) -> None:
    """Hold what a packed tensor's file decodes to, to the tensor's digest; nothing is kept.

    Raises
    ------
    DamagedError
    """
    from blockzoo.codecs.kept import describe

    packed = describe(file)
    hasher = tensor_hasher(packed.info, threads=1)
    for piece in PACKED[packed.kind].stream(file, reference, grouping):
        hasher.update(piece)
    if hasher.hexdigest() != digest:
        raise DamagedError("it decodes to other bytes")


def damaged(layout: Layout, folder: str, digest: str, why: str) -> DamagedError:
    """The error for an object that cannot be read."""
    return DamagedError(
        f"{folder.rstrip('s')} {digest[:12]} in {layout.root} is damaged: {why}",
        hint="`blockzoo verify` tells what depends on it; "
        "`blockzoo repair SOURCE` restores it from another zoo or the original folder",
    )


def _decode_file(path: Path, file: memoryview) -> memoryview:
    if path.name.endswith(zstd.SUFFIX):
        return memoryview(zstd.decode(file, largest=LARGEST_COMPRESSED))
    return file


def _decode_json(_: Path, file: memoryview) -> memoryview:
    return file


def _check_tensor(digest: str, value: tuple[TensorInfo, memoryview]) -> bool:
    return tensor_digest(*value) == digest


def _check_bytes(digest: str, value: memoryview) -> bool:
    return bytes_digest(value) == digest


def restore_trash(layout: Layout) -> None:
    """Put back whatever a collection or a repacking moved aside and did not live to delete.

    Objects of one that is still running are left alone.
    """
    from blockzoo.store.session import alive

    for trash in layout.tmp.glob("*/trash"):
        if not alive(trash.parent):
            put_back(layout, trash)


def put_back(layout: Layout, trash: Path) -> None:
    """Put what was moved aside into a folder back to its places, where nothing stands."""
    # another process may be doing the same, or clearing the folder away
    with contextlib.suppress(FileNotFoundError):
        for moved in list(trash.iterdir()):
            folder, _, name = moved.name.partition("~")
            place = layout.shard(folder, name) / name
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    os.replace(moved, place)


def size_on_disk(path: Path) -> int:
    """An object file's bytes; 0 where a collection or a repacking has just taken it."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _stamp(path: Path) -> _Stamp:
    """What tells a file from another that took its place, or that it was written to."""
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns
