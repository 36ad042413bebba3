"""Out comes what went in, for every kind, level, dtype and shape; in ranges and in threads too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from blockzoo.codecs import PACKED, body, delta, planes, rows
from blockzoo.codecs.grouping import Grouping
from blockzoo.codecs.kept import check_seal, describe
from blockzoo.tensors import DTYPE_BITS, TensorInfo, tensor_digest
from tests.codecs.tensors import DIGEST, Tensor, cast, checkpoint, near, tensors, weights

LEVELS = st.sampled_from(("fast", "small"))
calm = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.filter_too_much]
)


@pytest.fixture(autouse=True)
def keep_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what does not pay is coded, so that every path is taken; chunks are short."""
    monkeypatch.setattr(body, "_WORTHWHILE", 1e9)
    monkeypatch.setattr(body, "CHUNK", {"fast": 1 << 11, "small": 1 << 12})


def there_and_back(suffix: str, tensor: Tensor, reference: Tensor | None, level: str) -> bytes:
    info, data = tensor
    base = None if reference is None else (DIGEST, *reference)
    file = PACKED[suffix].encode(info, data, base, level=level)
    assert file is not None
    view = memoryview(file)
    check_seal(view)
    packed = describe(view)
    assert (packed.kind, packed.info, packed.level) == (suffix, info, level)
    assert packed.reference == ("" if reference is None else DIGEST)
    for threads, grouping in ((1, None), (2, Grouping())):
        got, found = PACKED[suffix].decode(view, reference, threads, grouping)
        assert got == info and found == data and found.readonly
        assert tensor_digest(got, found) == tensor_digest(info, data)
    return file


@calm
@given(tensors(), LEVELS)
def test_planes(tensor: Tensor, level: str) -> None:
    there_and_back(".planes", tensor, None, level)


@calm
@given(tensors(), LEVELS, st.integers(0, 2**32 - 1), st.sampled_from((0, 1, 5, 300)))
def test_delta(tensor: Tensor, level: str, seed: int, step: int) -> None:
    there_and_back(".delta", tensor, near(*tensor, seed, step), level)


@calm
@given(tensors(("BF16", "F16", "F32")), LEVELS, st.integers(0, 2**32 - 1))
def test_delta_from_another_dtype(tensor: Tensor, level: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    for dtype in ("BF16", "F16", "F32"):
        info = TensorInfo(dtype, tensor[0].shape)
        there_and_back(".delta", tensor, (info, memoryview(random.bytes(info.nbytes))), level)


@calm
@given(tensors(), LEVELS, st.integers(0, 2**32 - 1), st.integers(0, 60))
@example((TensorInfo("BF16", (3, 0)), memoryview(b"")), "small", 0, 0)
def test_rows(tensor: Tensor, level: str, seed: int, count: int) -> None:
    info, data = tensor
    assume(info.shape)
    count *= 8 if DTYPE_BITS[info.dtype] < 8 else 1
    other = TensorInfo(info.dtype, (count, *info.shape[1:]))
    assume(other.nbytes <= 1 << 22)
    repeats = -(-other.nbytes // max(1, len(data)))
    reference = near(other, (bytes(data) * repeats)[: other.nbytes].ljust(other.nbytes), seed, 3)
    there_and_back(".rows", tensor, reference, level)


@calm
@given(tensors(), LEVELS, st.data())
def test_a_range_of_elements(tensor: Tensor, level: str, draw: st.DataObject) -> None:
    info, data = tensor
    reference = near(info, data, 1, 3)
    step = max(1, 8 // DTYPE_BITS[info.dtype]) if DTYPE_BITS[info.dtype] != 6 else 4
    start = draw.draw(st.integers(0, info.elements // step)) * step
    stop = draw.draw(st.integers(start // step, info.elements // step)) * step
    wanted = data[start * DTYPE_BITS[info.dtype] // 8 : stop * DTYPE_BITS[info.dtype] // 8]
    for module, base in ((delta, reference), (planes, None)):
        file = module.encode(info, data, base and (DIGEST, *base), level=level)
        assert module.decode_range(memoryview(file), base, start, stop) == wanted


@pytest.mark.parametrize("level", ["fast", "small"])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_every_bit_pattern_from_every_neighbour(dtype: str, level: str) -> None:
    info = TensorInfo(dtype, (1 << 16,))
    patterns = np.arange(1 << 16, dtype="<u2")
    words = patterns if dtype != "F32" else patterns.astype("<u4") << 16 | patterns
    for shift in (0, 1, 255, 256, 0x7FFF, 0x8000, 0xFFFF):
        moved = (words + np.array(shift).astype(words.dtype)).tobytes()
        there_and_back(
            ".delta", (info, memoryview(words.tobytes())), (info, memoryview(moved)), level
        )


class TestSizes:
    """What is kept takes what it should."""

    @pytest.fixture(autouse=True)
    def keep_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()

    @pytest.mark.parametrize(
        ("source", "target"), [("F32", "BF16"), ("F32", "F16"), ("BF16", "F32"), ("BF16", "F16")]
    )
    def test_an_exact_copy_in_another_dtype_takes_next_to_nothing(
        self, source: str, target: str
    ) -> None:
        reference = weights(source, (300, 200))
        wide = np.frombuffer(reference[1], "<u4" if source == "F32" else "<u2").astype("<u4")
        values = (wide << (0 if source == "F32" else 16)).view("<f4")
        if target == "BF16":  # to the nearest, ties to even, as torch does
            wide = wide + 0x7FFF + ((wide >> 16) & 1)
            values = (wide & 0xFFFF0000).view("<f4")
        tensor = TensorInfo(target, (300, 200)), memoryview(cast(values, target))
        file = there_and_back(".delta", tensor, reference, "small")
        assert len(file) < 600

    @pytest.mark.parametrize("level", ["fast", "small"])
    def test_a_grown_embedding_takes_its_new_rows(self, level: str) -> None:
        reference = weights("BF16", (4096, 64))
        new = weights("BF16", (8, 64), seed=1)[1]
        tensor = TensorInfo("BF16", (4104, 64)), memoryview(bytes(reference[1]) + bytes(new))
        assert len(there_and_back(".rows", tensor, reference, level)) < len(new) + 700
        shrunk = TensorInfo("BF16", (4000, 64)), reference[1][: 4000 * 64 * 2]
        assert len(there_and_back(".rows", shrunk, reference, level)) < 700

    def test_zeros_take_little_and_are_not_a_bomb(self) -> None:
        info = TensorInfo("F32", (1 << 20,))
        file = there_and_back(".planes", (info, memoryview(bytes(info.nbytes))), None, "small")
        assert info.nbytes / 1025 < len(file) < info.nbytes / 900

    def test_what_does_not_pay_is_refused(self) -> None:
        info = TensorInfo("U8", (100_000,))
        noise = np.random.default_rng(0).bytes(info.nbytes)
        other = np.random.default_rng(1).bytes(info.nbytes)
        assert planes.encode(info, noise, None) is None
        assert delta.encode(info, noise, (DIGEST, info, memoryview(other))) is None

    def test_a_reference_that_cannot_serve_is_refused(self) -> None:
        info, data = weights("BF16", (8, 8))
        for shape in ((8, 9), (64,), (9, 8)):
            other = (DIGEST, TensorInfo("BF16", shape), memoryview(bytes(2 * np.prod(shape))))
            assert delta.encode(info, data, other) is None
            assert (rows.encode(info, bytes(128), other, level="fast") is None) or shape == (9, 8)
        ints = (DIGEST, TensorInfo("I16", (8, 8)), memoryview(bytes(128)))
        assert delta.encode(info, data, ints) is None
        assert delta.encode(info, data, None) is None

    @pytest.mark.parametrize("model", ["math-full", "novel-lora-merged"])
    def test_real_fine_tunes_take_less_than_half(self, shared: Path, model: str) -> None:
        base, tuned = (checkpoint(shared / "family" / name) for name in ("base", model))
        total = kept = 0
        for name, tensor in tuned.items():
            if tensor[0].nbytes > 100_000:
                kept += len(there_and_back(".delta", tensor, base[name], "small"))
                total += tensor[0].nbytes
        assert kept / total < 0.372
