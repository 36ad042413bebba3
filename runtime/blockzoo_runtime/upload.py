"""Small lists of numbers to a device, without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch


def upload(
    lists: Sequence[Sequence[float]], device: torch.device, dtype: torch.dtype = torch.long
) -> list[torch.Tensor]:
    """Each list as a tensor, (its length,), on the device.

    On CUDA they go in one copy from pinned memory: neither the host waits for the device's queue
    nor the device for the host. torch keeps the pinned memory until the copy is done.
    """
    if device.type == "cpu":
        return [torch.tensor(each, dtype=dtype) for each in lists]
    joined = torch.tensor(
        list(chain.from_iterable(lists)),
        dtype=dtype,
        device="cpu",
        pin_memory=device.type == "cuda",
    )
    lengths = [len(each) for each in lists]
    return list(torch.split(joined.to(device, non_blocking=True), lengths))
