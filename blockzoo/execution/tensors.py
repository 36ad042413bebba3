"""Where a chain's tensors come from, and how stored bytes become torch tensors.

A chain asks a `TensorSource` for every tensor at every call, so that the source alone decides
what stays in memory: the runtime keeps tensors resident, `StreamedTensors` keeps nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch

from blockzoo.errors import UnservableError
from blockzoo.store.mapping import let_go
from blockzoo.tensors import TensorInfo, TensorRef

#: torch's dtype by safetensors' name; the sub-byte ones have no torch tensor of that shape
TORCH_DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
    "C64": torch.complex64,
}

_PIECE = 1 << 22  # elements that are cast at a time

Build = Callable[[Sequence[torch.Tensor]], torch.Tensor]


class TensorSource(Protocol):
    """Gives the tensors of a chain, in the compute dtype and on the compute device."""

    def tensor(self, ref: TensorRef) -> torch.Tensor:
        """The tensor, floats cast to the compute dtype, others as they are. Not to be changed."""
        ...

    def derived(self, key: str, parts: Sequence[TensorRef], build: Build) -> torch.Tensor:
        """A tensor made from others, such as fused experts.

        Parameters
        ----------
        key : str
            Names the result: the operation and the digests of the parts.
        parts : sequence of TensorRef
        build : callable
            Takes the parts' tensors (as `tensor` gives them), in order. A source that keeps
            results calls it once for a key.
        """
        ...


def to_torch(info: TensorInfo, data: memoryview) -> torch.Tensor:
    """See bytes as a CPU tensor, without copying.

    Parameters
    ----------
    info : TensorInfo
    data : memoryview
        ``info.nbytes`` bytes in C order, read-only or not. The tensor keeps them alive and must
        not be written to.

    Returns
    -------
    torch.Tensor
        Of ``info.shape``. Where ``data`` is not aligned for the dtype, a copy.

    Raises
    ------
    UnservableError
        For sub-byte dtypes.
    """
    dtype = TORCH_DTYPES.get(info.dtype)
    if dtype is None:
        raise UnservableError(
            f"tensors of dtype {info.dtype} cannot be computed with; they are kept exactly"
        )
    if info.elements == 0:
        return torch.empty(info.shape, dtype=dtype)
    raw = _bytes_tensor(data)
    if raw.data_ptr() % dtype.itemsize:
        raw = raw.clone()
    return raw.view(dtype).reshape(info.shape)


def _bytes_tensor(data: memoryview) -> torch.Tensor:
    """A uint8 tensor over a buffer."""
    array = np.frombuffer(data, dtype=np.uint8)
    if array.flags.writeable:
        return torch.from_numpy(array)
    # torch warns, for every read-only array, that it must not be written to. Nothing here writes.
    interface = dict(array.__array_interface__)
    interface["data"] = (interface["data"][0], False)
    return torch.from_numpy(np.asarray(_Exposed(array, interface)))


class _Exposed:
    """Keeps an array alive and shows its memory under another array interface."""

    def __init__(self, array: object, interface: dict[str, object]) -> None:
        self.array = array
        self.__array_interface__ = interface


def cast(tensor: torch.Tensor, dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """Floats to ``dtype`` and everything to ``device``; the same tensor where nothing changes."""
    return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else tensor.dtype)


class StreamedTensors:
    """A `TensorSource` that keeps nothing: a block is in memory only while it runs.

    Parameters
    ----------
    read : callable
        ``digest -> (TensorInfo, memoryview)``, such as ``Zoo.tensor``.
    dtype : torch.dtype
        What floats are computed in.
    device : str or torch.device
    """

    def __init__(
        self,
        read: Callable[[str], tuple[TensorInfo, memoryview]],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self._read = read
        self._dtype = dtype
        self._device = torch.device(device)

    def tensor(self, ref: TensorRef) -> torch.Tensor:
        info, data = self._read(ref.digest)
        tensor = to_torch(info, data)
        if not tensor.is_floating_point() or tensor.dtype == self._dtype:
            return cast(tensor, self._dtype, self._device)
        made = torch.empty(tensor.shape, dtype=self._dtype, device=self._device)
        whole, flat = tensor.reshape(-1), made.view(-1)
        for first in range(0, len(whole), _PIECE):
            last = min(first + _PIECE, len(whole))
            flat[first:last] = whole[first:last]
            # a large tensor is not to be in memory twice
            let_go(data, first * tensor.element_size(), last * tensor.element_size())
        return made

    def derived(self, key: str, parts: Sequence[TensorRef], build: Build) -> torch.Tensor:
        return build([self.tensor(part) for part in parts])
