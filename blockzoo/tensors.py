"""What a tensor is here: dtype, shape and bytes, and the digest over all three.

Dtypes go by their safetensors names (``"BF16"``, ``"F8_E4M3"``). Every package builds on this
module; it imports neither NumPy nor torch.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from blockzoo.errors import SourceError

#: bits of one element, by safetensors' name of the dtype
DTYPE_BITS: dict[str, int] = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}

_MULTITHREADED_FROM = 1 << 20  # bytes; below this BLAKE3's threads cost more than they give


@dataclass(frozen=True)
class TensorInfo:
    """Dtype and shape.

    Parameters
    ----------
    dtype : str
        A key of :data:`DTYPE_BITS`.
    shape : tuple of int
        Empty for a scalar.

    Raises
    ------
    SourceError
        Where the dtype is unknown, a dimension is negative, or sub-byte elements do not fill
        whole bytes.
    """

    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_BITS:
            raise SourceError(f"unknown dtype {self.dtype!r}")
        if any(d < 0 for d in self.shape):
            raise SourceError(f"negative dimension in shape {list(self.shape)}")
        if self.elements * DTYPE_BITS[self.dtype] % 8:
            raise SourceError(f"{self.dtype} {list(self.shape)} does not fill whole bytes")

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * DTYPE_BITS[self.dtype] // 8


@dataclass(frozen=True)
class TensorRef(TensorInfo):
    """A tensor in the zoo, by digest (64 hex digits), with dtype and shape at hand."""

    digest: str

    def to_json(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "shape": list(self.shape), "digest": self.digest}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TensorRef:
        return cls(data["dtype"], tuple(data["shape"]), data["digest"])


def canonical_json(value: Any) -> bytes:
    """The one byte string that stands for a JSON value: sorted keys, no spaces, UTF-8."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def bytes_digest(data: bytes | memoryview) -> str:
    """BLAKE3 of some bytes, as 64 hex digits."""
    hasher = blake3(max_threads=blake3.AUTO if len(data) >= _MULTITHREADED_FROM else 1)
    hasher.update(data)
    return hasher.hexdigest()


def tensor_hasher(info: TensorInfo, threads: int | None = None) -> Any:
    """A BLAKE3 hasher that has taken in dtype and shape and awaits the tensor's bytes.

    It takes several threads for large tensors, or as many as told.
    """
    if threads is None:
        threads = blake3.AUTO if info.nbytes >= _MULTITHREADED_FROM else 1
    hasher = blake3(max_threads=threads, derive_key_context="blockzoo tensor v1")
    hasher.update(canonical_json([info.dtype, list(info.shape)]) + b"\0")
    return hasher


def tensor_digest(info: TensorInfo, data: bytes | memoryview) -> str:
    """The identity of a tensor: BLAKE3 over dtype, shape and bytes, as 64 hex digits."""
    hasher = tensor_hasher(info)
    hasher.update(data)
    return str(hasher.hexdigest())
