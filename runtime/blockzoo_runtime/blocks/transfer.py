"""Tensors to a CUDA device beside what it computes.

A tensor is read into small pinned buffers, two by turns, and copied from them on a stream of its
own, so that steps go on meanwhile and pinned memory stays small whatever the tensor's size.
"""

from __future__ import annotations

import threading

import torch

#: bytes of a pinned buffer; copies of this size reach a bus's bandwidth
_PIECE = 8 << 20


class _Buffers:
    """Two pinned buffers, and when what was copied from each last is through."""

    def __init__(self) -> None:
        self.buffers = [
            torch.empty(_PIECE, dtype=torch.uint8, device="cpu", pin_memory=True) for _ in range(2)
        ]
        self.copied = [
            torch.cuda.Event()  # type: ignore[no-untyped-call]
            for _ in range(2)
        ]


class Transfer:
    """Copies from host memory to one device, from any threads.

    Parameters
    ----------
    device : torch.device
        A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._free: list[_Buffers] = []
        self._lock = threading.Lock()

    def __call__(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The tensor on the device, floats cast to ``dtype`` there.

        It is there for every stream when this returns: the calling thread waits for the copy,
        the device's other work does not.
        """
        with self._lock:
            buffers = self._free.pop() if self._free else _Buffers()
        try:
            # its memory is given to others only when what is queued by then has been computed
            computing = torch.cuda.current_stream(self._device)
            with torch.cuda.stream(self._stream):
                there = self._copied(tensor, buffers)
                if there.is_floating_point():
                    there = there.to(dtype)
                there.record_stream(computing)
                done = self._stream.record_event()
            done.synchronize()
        finally:
            with self._lock:
                self._free.append(buffers)
        return there

    def _copied(self, tensor: torch.Tensor, pair: _Buffers) -> torch.Tensor:
        there = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)
        source = tensor.contiguous().view(-1).view(torch.uint8)
        target = there.view(-1).view(torch.uint8)
        for number, first in enumerate(range(0, len(source), _PIECE)):
            buffer, copied = pair.buffers[number % 2], pair.copied[number % 2]
            copied.synchronize()
            piece = source[first : first + _PIECE]
            buffer[: len(piece)].copy_(piece)
            target[first : first + len(piece)].copy_(buffer[: len(piece)], non_blocking=True)
            copied.record(self._stream)
        return there
