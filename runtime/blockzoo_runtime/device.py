"""Which device a name means."""

from __future__ import annotations

import torch

from blockzoo.errors import UsageError


def find_device(device: str | torch.device) -> torch.device:
    """A torch device; ``"auto"``: CUDA where there is one, else the CPU.

    Raises
    ------
    UsageError
        Where there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(f"there is no device {str(device)!r}: {first}") from error
    return found
