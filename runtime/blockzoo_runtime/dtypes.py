"""What a model is computed in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from blockzoo.errors import UsageError
from blockzoo.execution.tensors import TORCH_DTYPES
from blockzoo.records import Block, Model


def own_dtype(config: Mapping[str, Any], model: Model, blocks: Mapping[str, Block]) -> torch.dtype:
    """The dtype a checkpoint is meant to be computed in: its config's, else its tensors'."""
    named = config.get("dtype", config.get("torch_dtype"))
    if isinstance(named, str):
        return parse_dtype(named)
    sizes: dict[torch.dtype, int] = {}
    for hop in model.chain:
        for ref in blocks[hop.block].tensors.values():
            dtype = TORCH_DTYPES.get(ref.dtype)
            if dtype is not None and dtype.is_floating_point and dtype.itemsize > 1:
                sizes[dtype] = sizes.get(dtype, 0) + ref.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)


def parse_dtype(name: str) -> torch.dtype:
    """``"bfloat16"`` or ``"torch.bfloat16"`` to torch's.

    Raises
    ------
    UsageError
        For anything else than a floating point dtype that can be computed in.
    """
    dtype = getattr(torch, name.removeprefix("torch."), None)
    if dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise UsageError(
            f"{name!r} is no dtype to compute in",
            hint="use auto, float32, bfloat16, float16 or float64",
        )
    return dtype  # type: ignore[no-any-return]
