"""The sketches of a zoo's tensors, kept in ``cache/sketches``.

By bucket (`sketch.bucket`) a folder of segments, each a sealed file that is written once and
moved into place whole. Several processes may write at once: each writes segments of its own, and
a tensor that two of them sketched is read once. A segment that is lost, cut short or changed is
passed over, and what it held is sketched again; nothing here is needed for the zoo to be whole.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from blockzoo.progress import Progress, silent
from blockzoo.similarity.sketch import SIZE, VERSION, Sketch, Values, bucket, sketch
from blockzoo.store.objects import Objects
from blockzoo.tensors import TensorRef

_MAGIC = b"blockzoo sketches %07d" % VERSION  # 24 bytes: what follows stays aligned
_SEAL = 32  # bytes of BLAKE3 at the end
_BATCH = 4096  # sketches that are held back before they are written,
_BATCH_BYTES = 1 << 30  # or those of so many bytes of tensors
_MANY_SEGMENTS = 16  # in one bucket; then they are joined into one

_RECORD = np.dtype([("digest", "V32"), ("norm", "<f8"), ("values", "<f4", (SIZE,))])


@dataclass(frozen=True)
class Bucket:
    """The sketches of tensors that can be compared, in the order of `refs`.

    Parameters
    ----------
    name : str
    refs : sequence of TensorRef
        Distinct.
    values : numpy.ndarray
        float32, shape (n, 1024).
    norms : numpy.ndarray
        float64, shape (n,).
    """

    name: str
    refs: Sequence[TensorRef]
    values: Values
    norms: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.refs)

    def sketch(self, number: int) -> Sketch:
        """One tensor's."""
        return Sketch(self.values[number], float(self.norms[number]))


class Sketches:
    """The sketches of one zoo; makes what is missing and keeps it.

    Parameters
    ----------
    objects : Objects
        The zoo's. Reading goes through it, so every tensor sketched has been checked.
    """

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.folder = objects.layout.cache / "sketches"
        self._unwritten: dict[str, Sketch] = {}

    def get(self, ref: TensorRef) -> Sketch | None:
        """A tensor's sketch; None where it has none (see `sketch.bucket`)."""
        for found in self.buckets([ref]):
            return found.sketch(0)
        return None

    def missing(self, refs: Iterable[TensorRef]) -> list[TensorRef]:
        """Which of some tensors are not sketched yet."""
        wanted = _by_bucket(refs)
        return [
            ref
            for name, group in wanted.items()
            for ref in _missing(group, self._read(name, group))
        ]

    def build(self, refs: Iterable[TensorRef], progress: Progress = silent) -> int:
        """Sketch what is missing; returns how many tensors that were. May be interrupted.

        Raises
        ------
        DamagedError
            Where a tensor cannot be read.
        """
        missing = self.missing(refs)
        total, done = sum(ref.nbytes for ref in missing), 0
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for batch in _batches(missing):
                made = []
                for ref, found in zip(batch, pool.map(self._sketch, batch), strict=True):
                    made.append((ref, found))
                    done += ref.nbytes
                    progress("sketches", done, total, 0)
                self.put(made)
        return len(missing)

    def buckets(self, refs: Iterable[TensorRef], progress: Progress = silent) -> Iterator[Bucket]:
        """The sketches of some tensors, bucket after bucket; those missing are made first.

        Tensors without a sketch are left out; equal ones come once. One bucket is in memory at
        a time.
        """
        wanted = _by_bucket(refs)
        self.build((ref for group in wanted.values() for ref in group.values()), progress)
        for name, group in sorted(wanted.items()):
            found = self._read(name, group)
            # a file that was lost since: what is left out here would be taken for absent
            made = {ref.digest: self._sketch(ref) for ref in _missing(group, found)}
            values = np.empty((len(group), SIZE), np.float32)
            norms = np.empty(len(group))
            for i, digest in enumerate(group):
                one = made.get(digest) or found[digest]
                values[i], norms[i] = one.values, one.norm
            yield Bucket(name, list(group.values()), values, norms)

    def put(self, made: Iterable[tuple[TensorRef, Sketch]]) -> None:
        """Keep sketches that were made elsewhere, such as while a tensor was written."""
        groups: dict[str, list[tuple[bytes, float, Values]]] = {}
        for ref, one in made:
            name = bucket(ref)
            if name:
                row = (bytes.fromhex(ref.digest), one.norm, one.values)
                groups.setdefault(name, []).append(row)
        for name, rows in groups.items():
            if self._write(name, np.array(rows, _RECORD)):
                self._join(name)
            else:
                kept = ((digest.hex(), Sketch(values, norm)) for digest, norm, values in rows)
                self._unwritten.update(kept)

    def offer(self, made: Iterable[tuple[TensorRef, Sketch]]) -> None:
        """Know sketches of tensors that are not in the zoo yet; nothing is written."""
        self._unwritten.update((ref.digest, one) for ref, one in made)

    def _sketch(self, ref: TensorRef) -> Sketch:
        return sketch(*self.objects.tensor(ref.digest))

    def _read(self, name: str, group: dict[str, TensorRef]) -> dict[str, Sketch]:
        found = {d: self._unwritten[d] for d in group.keys() & self._unwritten.keys()}
        for segment in self._segments(name):
            records = _load(segment)
            digests = records["digest"].tobytes().hex()
            for i in range(len(records)):
                digest = digests[64 * i : 64 * i + 64]
                if digest in group and digest not in found:
                    found[digest] = Sketch(records["values"][i], float(records["norm"][i]))
        return found

    def _segments(self, name: str) -> list[Path]:
        folder = self.folder / name
        return sorted(folder.glob("*.sketches")) if folder.is_dir() else []

    def _write(self, name: str, records: NDArray[np.void]) -> bool:
        folder = self.folder / name
        staged = folder / f".{uuid.uuid4().hex}"
        body = _MAGIC + records.tobytes()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            staged.write_bytes(body + blake3(body).digest())
            os.replace(staged, folder / f"{uuid.uuid4().hex}.sketches")
        except OSError:  # a full or read-only disk: this process must do without
            with suppress(OSError):
                staged.unlink(missing_ok=True)
            return False
        return True

    def _join(self, name: str) -> None:
        """Make one segment of many; who is reading them meanwhile sketches again at worst."""
        segments = self._segments(name)
        if len(segments) < _MANY_SEGMENTS:
            return
        records = np.concatenate([_load(segment) for segment in segments])
        _, first = np.unique(records["digest"], return_index=True)
        if self._write(name, records[first]):
            for segment in segments:
                segment.unlink(missing_ok=True)


def _by_bucket(refs: Iterable[TensorRef]) -> dict[str, dict[str, TensorRef]]:
    groups: dict[str, dict[str, TensorRef]] = {}
    for ref in refs:
        name = bucket(ref)
        if name:
            groups.setdefault(name, {}).setdefault(ref.digest, ref)
    return groups


def _batches(refs: Iterable[TensorRef]) -> Iterator[list[TensorRef]]:
    batch: list[TensorRef] = []
    size = 0
    for ref in refs:
        batch.append(ref)
        size += ref.nbytes
        if len(batch) == _BATCH or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _missing(group: dict[str, TensorRef], found: dict[str, Sketch]) -> list[TensorRef]:
    return [ref for digest, ref in group.items() if digest not in found]


def _load(segment: Path) -> NDArray[np.void]:
    """A segment's records; none where it is damaged."""
    try:
        data = memoryview(segment.read_bytes())
    except OSError:
        data = memoryview(b"")
    body, seal = data[: -_SEAL or None], data[-_SEAL:]
    sound = len(data) >= _SEAL + len(_MAGIC) and blake3(body).digest() == seal
    records = body[len(_MAGIC) :]
    if not sound or body[: len(_MAGIC)] != _MAGIC or len(records) % _RECORD.itemsize:
        return np.empty(0, _RECORD)
    return np.frombuffer(records, _RECORD)
