"""A near-copy: the difference from another tensor of the same shape, its *reference*.

Dtypes may differ among bf16, fp16 and fp32: the reference is rounded to the tensor's dtype first,
so an exact copy in another dtype takes next to nothing.
"""

from __future__ import annotations

from blockzoo.codecs import body
from blockzoo.codecs.grouping import Grouping
from blockzoo.codecs.kept import Packed, describe
from blockzoo.codecs.words import comparable, count_words
from blockzoo.errors import DamagedError
from blockzoo.tensors import TensorInfo

SUFFIX = ".delta"


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
        The tensor that it is near.
    level : {"fast", "small"}
        ``fast`` for what is loaded often.
    grouping : Grouping, optional
        Kept over several tensors with the same reference.

    Returns
    -------
    bytes or None
        None where it does not pay, or the reference cannot serve.
    """
    if reference is None or not _fits(info, reference[1]):
        return None
    return body.encode(SUFFIX, info, data, reference, count_words(info), level, grouping)


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
    fits = reference is not None and _fits(packed.info, reference[0])
    if packed.kind != SUFFIX or not fits or packed.shared != count_words(packed.info):
        raise DamagedError("it is no difference from this reference")
    return packed


def _fits(info: TensorInfo, reference: TensorInfo) -> bool:
    return info.shape == reference.shape and comparable(info.dtype, reference.dtype)
