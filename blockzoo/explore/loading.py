"""What loading a model costs, by how its tensors are kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from blockzoo.codecs import PACKED
from blockzoo.explore.values import format_bytes
from blockzoo.store.objects import Objects
from blockzoo.tensors import TensorRef


@dataclass(frozen=True)
class Loading:
    """Bytes; each distinct tensor and reference once.

    Parameters
    ----------
    read : int
        What is read from the disk, references included.
    mapped : int
        What needs no decoding: raw tensors are used where they lie.
    decoded : int
        What is decoded, references included.
    """

    read: int
    mapped: int
    decoded: int

    def __str__(self) -> str:
        decoded = f", decodes {format_bytes(self.decoded)}" if self.decoded else ""
        return f"loading reads {format_bytes(self.read)}{decoded}"


def loading(objects: Objects, refs: Iterable[TensorRef]) -> Loading:
    """What loading some tensors costs; missing ones are left out."""
    read = mapped = decoded = 0
    waiting, seen = {ref.digest for ref in refs}, set[str]()
    while waiting:
        digest = waiting.pop()
        path = objects.find("tensors", digest)
        seen.add(digest)
        if path is None:
            continue
        try:
            size = path.stat().st_size
            packed = objects.describe(path) if path.suffix in PACKED else None
        except FileNotFoundError:
            waiting.add(digest)  # kept in another way just now: look again
            continue
        read += size
        if packed is not None:
            decoded += packed.info.nbytes
            if packed.reference and packed.reference not in seen:
                waiting.add(packed.reference)
        else:
            mapped += size
    return Loading(read, mapped, decoded)
