"""What every reader of weights gives: tensors by name, and the file as a run of spans.

The spans are what a recipe is made of: put one after another they are the file, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from blockzoo.tensors import TensorInfo


@dataclass(frozen=True)
class Span:
    """A run of a file's bytes, ``start`` to ``end`` (exclusive), never empty.

    ``info`` says that these bytes are that tensor in C order; None says they are just bytes.
    """

    start: int
    end: int
    info: TensorInfo | None

    @property
    def size(self) -> int:
        return self.end - self.start


class StoredTensor:
    """A tensor in a file.

    Parameters
    ----------
    name : str
        Its name in the file.
    info : TensorInfo
    data : memoryview, bytes or callable
        The ``info.nbytes`` bytes in C order, or a function that gives them.
    span : Span, optional
        The span of the file that is this tensor; None where it has no bytes, or where its bytes
        do not lie in the file in C order (a transposed or expanded view in a torch pickle).
    """

    __slots__ = ("_data", "info", "name", "span")

    def __init__(
        self,
        name: str,
        info: TensorInfo,
        data: memoryview | bytes | Callable[[], memoryview],
        span: Span | None = None,
    ) -> None:
        self.name = name
        self.info = info
        self.span = span
        self._data = data

    @property
    def data(self) -> memoryview:
        """Its bytes, read-only: over the mapped file, or for a view not in C order a new copy.

        Raises
        ------
        SourceError
            Where the file has changed since it was opened.
        """
        if callable(self._data):
            return self._data()
        return memoryview(self._data).cast("B").toreadonly()

    def __repr__(self) -> str:
        return f"StoredTensor({self.name!r}, {self.info.dtype}, {list(self.info.shape)})"


class WeightsFile(Protocol):
    """An open file of weights.

    Attributes
    ----------
    path : Path
    size : int
        Bytes.
    tensors : sequence of StoredTensor
        By name.
    spans : sequence of Span
        Covers ``0`` to ``size`` exactly, in order.
    """

    path: Path
    size: int
    tensors: Sequence[StoredTensor]
    spans: Sequence[Span]

    def bytes(self, span: Span) -> memoryview:
        """The bytes of a span, read-only and not copied; SourceError if the file changed."""

    def check(self) -> None:
        """Raise SourceError where the file has changed since it was opened."""

    def close(self) -> None:
        """Let go of the file; bytes already handed out stay valid."""


def join_spans(tensor_spans: Sequence[Span], size: int) -> tuple[Span, ...]:
    """Tensor spans in file order, not overlapping, with literal spans for the bytes between."""
    spans: list[Span] = []
    position = 0
    for span in tensor_spans:
        if span.start > position:
            spans.append(Span(position, span.start, None))
        spans.append(span)
        position = span.end
    if position < size:
        spans.append(Span(position, size, None))
    return tuple(spans)
