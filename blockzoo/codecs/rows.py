"""A tensor that has grown or shrunk, such as an embedding with added tokens.

The leading rows that it shares with its *reference* are kept as a difference (of nothing, where
they are the same), the new rows as byte planes.
"""

from __future__ import annotations

from blockzoo.codecs import body
from blockzoo.codecs.grouping import Grouping
from blockzoo.codecs.kept import Packed, describe
from blockzoo.codecs.words import comparable, count_words
from blockzoo.errors import DamagedError
from blockzoo.tensors import TensorInfo

SUFFIX = ".rows"


def encode(
    info: TensorInfo,
    data: memoryview | bytes,
    reference: body.Reference | None,
    *,
    level: str = "small",
    grouping: Grouping | None = None,
) -> bytes | None:
    """Make the packed file of a tensor.

    Parameters
    ----------
    info : TensorInfo
    data : memoryview or bytes
        Its bytes, in C order.
    reference : (digest, info, data) or None
        A tensor that agrees with it in all dimensions but the first.
    level : {"fast", "small"}
    grouping : Grouping, optional
        Kept over several tensors with the same reference.

    Returns
    -------
    bytes or None
        None where it does not pay, or the reference cannot serve.
    """
    if reference is None or not _fits(info, reference[1]):
        return None
    shared = min(count_words(info), count_words(reference[1]))
    return body.encode(SUFFIX, info, data, reference, shared, level, grouping)


def decode(
    file: memoryview,
    reference: tuple[TensorInfo, memoryview] | None,
    threads: int = 1,
    grouping: Grouping | None = None,
) -> tuple[TensorInfo, memoryview]:
    """Give the tensor back; the caller holds it to its digest.

    Parameters
    ----------
    file : memoryview
        A whole file of this kind.
    reference : (info, data) or None
        The tensor whose digest `kept.describe` names.
    threads : int
        How many chunks are decoded at once.
    grouping : Grouping, optional
        Kept over several tensors with the same reference.

    Raises
    ------
    DamagedError
        Where the file or the reference cannot be right; sizes are checked before memory is taken.
    """
    return body.decode(_describe(file, reference), file, reference, threads, grouping)


def decode_range(
    file: memoryview,
    reference: tuple[TensorInfo, memoryview] | None,
    start: int,
    stop: int,
    grouping: Grouping | None = None,
) -> bytes:
    """Give the bytes of the elements from `start` up to `stop`, reading only their chunks."""
    return body.decode_range(_describe(file, reference), file, reference, start, stop, grouping)


def _describe(file: memoryview, reference: tuple[TensorInfo, memoryview] | None) -> Packed:
    packed = describe(file)
    if packed.kind != SUFFIX or reference is None or not _fits(packed.info, reference[0]):
        raise DamagedError("it does not share rows with this reference")
    if packed.shared != min(count_words(packed.info), count_words(reference[0])):
        raise DamagedError("it shares more or fewer rows with its reference than there are")
    return packed


def _fits(info: TensorInfo, reference: TensorInfo) -> bool:
    ours, theirs = info.shape, reference.shape
    return (
        bool(ours and theirs) and ours[1:] == theirs[1:] and comparable(info.dtype, reference.dtype)
    )
