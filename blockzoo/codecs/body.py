"""A whole tensor as chunks: the first words against a reference's, the others by themselves.

What the packed kinds have in common; they differ in which words are shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from blockzoo.codecs import kept, plane_chunks, residuals
from blockzoo.codecs.grouping import Grouping
from blockzoo.codecs.scratch import scratch
from blockzoo.codecs.words import Words, comparable, convert, count_words, layout, words
from blockzoo.errors import DamagedError, UsageError
from blockzoo.tensors import DTYPE_BITS, TensorInfo

Reference = tuple[str, TensorInfo, memoryview]

#: words of a chunk: a small one stays in the cache, a large one shares code tables
CHUNK = {"fast": 1 << 17, "small": 1 << 18}
_WORTHWHILE = 0.98  # of raw


def encode(
    suffix: str,
    info: TensorInfo,
    data: memoryview | bytes,
    reference: Reference | None,
    shared: int,
    level: str,
    grouping: Grouping | None,
) -> bytes | None:
    """Make the packed file of a tensor; None where it takes 0.98 of the tensor's bytes or more."""
    if level not in CHUNK:
        raise UsageError(f"unknown level {level!r}", hint="levels are `fast` and `small`")
    kind, chunk, values = layout(info.dtype), CHUNK[level], words(info, data)
    chunks, size, limit = [], 0, _WORTHWHILE * max(1, info.nbytes)
    for start, stop in kept.ranges(shared, len(values), chunk):
        if reference is not None and start < shared:
            predicted = _predict(info, (reference[1], reference[2]), start, stop)
            coded = residuals.encode_chunk(
                kind, values[start:stop], predicted, level, start, grouping
            )
        else:
            coded = plane_chunks.encode_chunk(kind, values[start:stop], level)
        chunks.append(coded)
        size += len(coded)
        if size >= limit:
            return None
    digest = "" if reference is None else reference[0]
    file = kept.write(suffix, info, digest, level, chunk, shared, chunks)
    return file if len(file) < limit else None


def decode(
    packed: kept.Packed,
    file: memoryview,
    reference: tuple[TensorInfo, memoryview] | None,
    threads: int,
    grouping: Grouping | None,
) -> tuple[TensorInfo, memoryview]:
    """Decode a whole tensor into memory of its own; the view is read-only.

    Raises
    ------
    DamagedError
    """
    check(packed, reference)
    out = np.empty(count_words(packed.info), layout(packed.info.dtype).dtype)

    def fill(number: int) -> None:
        start, stop = places[number]
        _decode_chunk(packed, file, reference, number, out[start:stop], start, grouping)

    places = packed.ranges()
    _each(fill, range(len(places)), threads)
    return packed.info, memoryview(out.view(np.uint8)).toreadonly()  # type: ignore[arg-type]


def stream(
    packed: kept.Packed,
    file: memoryview,
    reference: tuple[TensorInfo, memoryview] | None,
    grouping: Grouping | None,
) -> Iterator[memoryview]:
    """Decode chunk after chunk into the thread's scratch memory; each holds until the next.

    Raises
    ------
    DamagedError
    """
    check(packed, reference)
    kind = layout(packed.info.dtype)
    for number, (start, stop) in enumerate(packed.ranges()):
        out = scratch("chunk", stop - start, kind.dtype)
        _decode_chunk(packed, file, reference, number, out, start, grouping)
        yield memoryview(out.view(np.uint8))  # type: ignore[arg-type]


def decode_range(
    packed: kept.Packed,
    file: memoryview,
    reference: tuple[TensorInfo, memoryview] | None,
    start: int,
    stop: int,
    grouping: Grouping | None,
) -> bytes:
    """Decode the elements from `start` up to `stop`; only the chunks that hold them are read."""
    check(packed, reference)
    bits = DTYPE_BITS[packed.info.dtype]
    if not 0 <= start <= stop <= packed.info.elements or start * bits % 8 or stop * bits % 8:
        raise UsageError(f"no elements {start} to {stop} in {list(packed.info.shape)}")
    kind = layout(packed.info.dtype)
    begin, end = start * bits // 8, stop * bits // 8
    parts = []
    for number, (first, last) in enumerate(packed.ranges()):
        low, high = max(begin, first * kind.size), min(end, last * kind.size)
        if low < high:
            out = np.empty(last - first, kind.dtype)
            _decode_chunk(packed, file, reference, number, out, first, grouping)
            parts.append(out.tobytes()[low - first * kind.size : high - first * kind.size])
    return b"".join(parts)


def check(packed: kept.Packed, reference: tuple[TensorInfo, memoryview] | None) -> None:
    """Hold a reference to what a packed file needs.

    Raises
    ------
    DamagedError
        Where it is missing, or of a dtype or shape that cannot be the right one.
    """
    if not packed.shared:
        return
    if reference is None:
        raise DamagedError("it needs a reference")
    info, data = reference
    if not comparable(packed.info.dtype, info.dtype) or count_words(info) < packed.shared:
        raise DamagedError(f"its reference is {info.dtype} {list(info.shape)}")
    if len(data) != info.nbytes:
        raise DamagedError("its reference's length is not what its shape says")


def _decode_chunk(
    packed: kept.Packed,
    file: memoryview,
    reference: tuple[TensorInfo, memoryview] | None,
    number: int,
    out: Words,
    start: int,
    grouping: Grouping | None,
) -> None:
    begin, end = packed.spans[number]
    coded, kind = file[begin:end], layout(packed.info.dtype)
    if reference is not None and start < packed.shared:
        predicted = _predict(packed.info, reference, start, start + len(out))
        residuals.decode_chunk(kind, coded, predicted, out, start, grouping)
    else:
        plane_chunks.decode_chunk(kind, coded, out)


def _predict(
    info: TensorInfo, reference: tuple[TensorInfo, memoryview], start: int, stop: int
) -> Words:
    return convert(words(*reference)[start:stop], reference[0].dtype, info.dtype)


def _each(work: Callable[[int], None], items: Iterable[int], threads: int) -> None:
    numbers = list(items)
    if threads <= 1 or len(numbers) <= 1:
        for number in numbers:
            work(number)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, numbers):
            pass
