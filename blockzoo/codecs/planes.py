"""A tensor by itself, in byte planes: exponents compress, mantissas hardly."""

from __future__ import annotations

from blockzoo.codecs import body
from blockzoo.codecs.grouping import Grouping
from blockzoo.codecs.kept import Packed, describe
from blockzoo.errors import DamagedError
from blockzoo.tensors import TensorInfo

SUFFIX = ".planes"


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
    reference : None
        Not used; here as for every kind.
    level : {"fast", "small"}
    grouping : None
        Not used.

    Returns
    -------
    bytes or None
        None where it does not pay.
    """
    return body.encode(SUFFIX, info, data, None, 0, level, grouping)


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
    if packed.kind != SUFFIX or packed.reference or packed.shared:
        raise DamagedError("it is no tensor in byte planes")
    return packed
