"""What the packed kinds of tensor do alike: all but which words they share with a reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from blockzoo.codecs import body
from blockzoo.codecs.grouping import Grouping
from blockzoo.codecs.kept import Packed, describe
from blockzoo.errors import DamagedError
from blockzoo.tensors import TensorInfo

Source = tuple[TensorInfo, memoryview]


@dataclass(frozen=True)
class Kind:
    """One kind of packed file.

    Parameters
    ----------
    suffix : str
    shared : callable
        ``(info, reference's info or None) -> int or None``: how many words, from the first, a
        tensor keeps as a difference from the reference's; None where that cannot serve.
    """

    suffix: str
    shared: Callable[[TensorInfo, TensorInfo | None], int | None]

    def encode(
        self,
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
            The tensor that it is near, for the kinds that need one.
        level : {"fast", "small"}
            ``fast`` for what is loaded often.
        grouping : Grouping, optional
            Kept over several tensors with the same reference.

        Returns
        -------
        bytes or None
            None where it does not pay, or the reference cannot serve.
        """
        shared = self.shared(info, reference[1] if reference else None)
        if shared is None:
            return None
        return body.encode(self.suffix, info, data, reference, shared, level, grouping)

    def decode(
        self,
        file: memoryview,
        reference: Source | None,
        threads: int = 1,
        grouping: Grouping | None = None,
    ) -> Source:
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
            Where the file or the reference cannot be right; sizes are checked before memory is
            taken.
        """
        packed = self._describe(file, reference)
        return body.decode(packed, file, reference, threads, grouping)

    def decode_range(
        self,
        file: memoryview,
        reference: Source | None,
        start: int,
        stop: int,
        grouping: Grouping | None = None,
    ) -> bytes:
        """Give the bytes of the elements from `start` up to `stop`, reading only their chunks."""
        packed = self._describe(file, reference)
        return body.decode_range(packed, file, reference, start, stop, grouping)

    def stream(
        self,
        file: memoryview,
        reference: Source | None,
        grouping: Grouping | None = None,
    ) -> Iterator[memoryview]:
        """Give the tensor's bytes chunk after chunk; each holds until the next is asked for.

        One thread must ask for them all: they lie in its scratch memory.
        """
        return body.stream(self._describe(file, reference), file, reference, grouping)

    def _describe(self, file: memoryview, reference: Source | None) -> Packed:
        packed = describe(file)
        shared = self.shared(packed.info, reference[0] if reference else None)
        if packed.kind != self.suffix or shared != packed.shared:
            raise DamagedError(f"it is no {self.suffix[1:]} of this reference")
        return packed
