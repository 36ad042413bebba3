"""From where storages and tensors lie in a torch file to stored tensors and spans.

The spans follow the tensors, so that a weight in a ``.bin`` and the same weight in a
``.safetensors`` are one tensor in the zoo.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from blockzoo.formats.mapped import MappedFile
from blockzoo.formats.stored import Span, StoredTensor, join_spans
from blockzoo.formats.torch_globals import PickledTensor, TorchPickle
from blockzoo.tensors import DTYPE_BITS, TensorInfo

#: bytes of a storage that no tensor covers become a 1-D tensor from this size on
_LONG_GAP = 4096


class TorchFile:
    """An open torch file, zip or legacy.

    Parameters
    ----------
    file : MappedFile
    content : TorchPickle
    named : mapping of str to PickledTensor
        The state dict.
    starts : mapping of str to int
        Where each storage begins in the file, in bytes.
    """

    def __init__(
        self,
        file: MappedFile,
        content: TorchPickle,
        named: Mapping[str, PickledTensor],
        starts: Mapping[str, int],
    ) -> None:
        self.path: Path = file.path
        self.size = file.size
        self._file = file
        self._starts = starts
        tensor_spans = _choose_spans(content, named, starts)
        by_place = {(span.start, span.info): span for span in tensor_spans}
        self.spans: Sequence[Span] = join_spans(tensor_spans, file.size)
        self.tensors: Sequence[StoredTensor] = tuple(
            self._tensor(name, tensor, by_place, content.storages[tensor.storage])
            for name, tensor in sorted(named.items())
        )

    def _tensor(
        self,
        name: str,
        tensor: PickledTensor,
        by_place: Mapping[tuple[int, TensorInfo | None], Span],
        storage_bytes: int,
    ) -> StoredTensor:
        storage_start = self._starts[tensor.storage]
        start = storage_start + tensor.offset
        if tensor.contiguous:
            end = start + tensor.info.nbytes
            span = by_place.get((start, tensor.info)) if tensor.info.nbytes else None
            return StoredTensor(name, tensor.info, lambda: self._file.bytes(start, end), span)
        end = storage_start + storage_bytes
        return StoredTensor(
            name, tensor.info, lambda: _in_c_order(self._file.bytes(start, end), tensor)
        )

    def bytes(self, span: Span) -> memoryview:
        return self._file.bytes(span.start, span.end)

    def check(self) -> None:
        self._file.check()

    def close(self) -> None:
        self._file.close()


def _in_c_order(data: memoryview, tensor: PickledTensor) -> memoryview:
    """A copy of a strided view's elements in C order; `data` begins at its first element."""
    import numpy as np

    width = DTYPE_BITS[tensor.info.dtype] // 8
    elements = np.frombuffer(data[: len(data) // width * width], dtype=f"u{width}")
    view = np.lib.stride_tricks.as_strided(
        elements,
        shape=tensor.info.shape,
        strides=tuple(stride * width for stride in tensor.strides),
        writeable=False,
    )
    return memoryview(np.ascontiguousarray(view).tobytes())


def _choose_spans(
    content: TorchPickle, named: Mapping[str, PickledTensor], starts: Mapping[str, int]
) -> list[Span]:
    """Spans for tensors in C order that do not overlap, the state dict's before others.

    Long runs of a storage that are left become 1-D tensors of the storage's dtype.
    """
    by_storage: dict[str, list[PickledTensor]] = {key: [] for key in content.storages}
    for tensor in [*named.values(), *content.tensors]:
        if tensor.contiguous and tensor.info.nbytes:
            by_storage[tensor.storage].append(tensor)
    spans: list[Span] = []
    for key, size in content.storages.items():
        chosen = _not_overlapping(by_storage[key])
        for span in join_spans(chosen, size):
            info = span.info
            if info is None and span.size >= _LONG_GAP:
                info = _flat(content.dtypes[key], span)
            if info is not None:
                spans.append(Span(starts[key] + span.start, starts[key] + span.end, info))
    return sorted(spans, key=lambda span: span.start)


def _flat(dtype: str, gap: Span) -> TensorInfo:
    """A 1-D tensor for a run of a storage; of bytes where the dtype's elements do not fit."""
    width = DTYPE_BITS[dtype] // 8
    if gap.start % width or gap.size % width:
        return TensorInfo("U8", (gap.size,))
    return TensorInfo(dtype, (gap.size // width,))


def _not_overlapping(tensors: Sequence[PickledTensor]) -> list[Span]:
    """Spans in the storage: from the front, the largest first; the same one twice counts once."""
    spans = [Span(t.offset, t.offset + t.info.nbytes, t.info) for t in tensors]
    chosen: list[Span] = []
    position = 0
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        if span.start >= position:
            chosen.append(span)
            position = span.end
    return chosen
