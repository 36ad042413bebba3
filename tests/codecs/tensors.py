"""Tensors for the codecs' tests: any dtype, any bytes, and near-copies of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from blockzoo.codecs.words import layout
from blockzoo.tensors import DTYPE_BITS, TensorInfo

Tensor = tuple[TensorInfo, memoryview]
DIGEST = "ab" * 32


def near(info: TensorInfo, data: bytes | memoryview, seed: int, step: int) -> Tensor:
    """A copy whose words are moved by up to `step` units in the last place; a few by anything."""
    random, kind = np.random.default_rng(seed), layout(info.dtype)
    words = np.frombuffer(data, kind.dtype).copy()
    words += random.integers(0, step + 1, len(words)).astype(kind.dtype)
    wild = random.random(len(words)) < 0.01
    words[wild] = np.frombuffer(random.bytes(words.nbytes), kind.dtype)[wild]
    return info, memoryview(words.tobytes())


def weights(dtype: str, shape: tuple[int, ...], seed: int = 0, scale: float = 0.02) -> Tensor:
    """Normally distributed float32 or bfloat16 values, as weights are."""
    values = np.random.default_rng(seed).standard_normal(shape).astype("<f4") * np.float32(scale)
    return TensorInfo(dtype, shape), memoryview(cast(values, dtype))


def cast(values: np.ndarray, dtype: str) -> bytes:
    """Float32 values in another dtype, bf16 cut off."""
    if dtype == "BF16":
        return (np.ascontiguousarray(values).view("<u4") >> 16).astype("<u2").tobytes()
    return values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


@st.composite
def tensors(draw: st.DrawFn, dtypes: tuple[str, ...] = tuple(DTYPE_BITS)) -> Tensor:
    """Any dtype and shape (0-d and empty too); bytes that are random, few, or like weights."""
    dtype = draw(st.sampled_from(dtypes))
    shape = tuple(draw(st.lists(st.integers(0, 40), max_size=3)))
    if draw(st.booleans()):
        shape = (draw(st.integers(1, 9)) * 1000, *shape[:1])
    if DTYPE_BITS[dtype] < 8:
        shape = (*shape, 8)
    info = TensorInfo(dtype, shape)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    look = draw(st.sampled_from(("random", "few", "weights", "special")))
    if look == "weights" and layout(dtype).bits:
        values = random.standard_normal(info.nbytes // 4 + 1).astype("<f4") * np.float32(0.02)
        data = values.tobytes()[: info.nbytes]
    elif look == "few":
        data = random.choice([0, 0, 0, 1, 255], info.nbytes).astype(np.uint8).tobytes()
    elif look == "special":  # zeros of both signs, infinities and NaNs with payloads
        specials = [0, 0x80, 0x7F, 0xFF, 0xC0, 0x7C, 0xFC]
        data = random.choice(specials, info.nbytes).astype(np.uint8).tobytes()
    else:
        data = random.bytes(info.nbytes)
    return info, memoryview(data)


def checkpoint(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder's model.safetensors, by name."""
    file = memoryview((folder / "model.safetensors").read_bytes())
    begin = 8 + int.from_bytes(file[:8], "little")
    found = {}
    for name, entry in json.loads(bytes(file[8:begin])).items():
        if name != "__metadata__":
            start, stop = (begin + offset for offset in entry["data_offsets"])
            found[name] = TensorInfo(entry["dtype"], tuple(entry["shape"])), file[start:stop]
    return found
