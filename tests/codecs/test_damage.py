"""Files that were damaged, and files that were made to harm: refused, in bounded memory."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from blockzoo.codecs import PACKED, delta, kept, planes, rows, streams
from blockzoo.codecs.words import layout
from blockzoo.errors import BlockzooError, DamagedError
from blockzoo.tensors import TensorInfo, bytes_digest, tensor_digest
from tests.codecs.tensors import DIGEST, Tensor, near, weights

SHAPE = (96, 64)


def examples() -> Iterator[tuple[str, Tensor, Tensor | None, bytes]]:
    for dtype in ("BF16", "F16", "F32"):
        reference = weights(dtype, SHAPE)
        tensor = near(*reference, 1, 3)
        grown = weights(dtype, (60, 64), seed=5)
        for level in ("fast", "small"):
            for suffix, base in ((".delta", reference), (".rows", grown), (".planes", None)):
                against = near(*tensor, 2, 3) if suffix == ".delta" else base
                if suffix == ".rows":
                    against = (grown[0], near(*tensor, 2, 3)[1][: grown[0].nbytes])
                whole = None if against is None else (DIGEST, *against)
                file = PACKED[suffix].encode(*tensor, whole, level=level)
                assert file is not None
                yield suffix, tensor, against, file


EXAMPLES = list(examples())
cases = pytest.mark.parametrize(("suffix", "tensor", "reference", "file"), EXAMPLES)


def sealed(body: bytes | bytearray) -> bytes:
    """A file whose both seals fit, as one who wishes harm would make it."""
    body = bytearray(body)
    end = 8 + int.from_bytes(body[4:8], "little")
    body[end : end + 16] = bytes.fromhex(bytes_digest(bytes(body[:end])))[:16]
    return bytes(body[:-32]) + bytes.fromhex(bytes_digest(bytes(body[:-32])))


@cases
def test_every_changed_byte_is_found(
    suffix: str, tensor: Tensor, reference: Tensor | None, file: bytes
) -> None:
    step = max(1, len(file) // 2000)
    end = 8 + int.from_bytes(file[4:8], "little") + 16
    for place in [
        *range(end),
        *range(end, len(file) - 32, step),
        *range(len(file) - 32, len(file)),
    ]:
        for bit in (1, 0x80):
            changed = bytearray(file)
            changed[place] ^= bit
            with pytest.raises(DamagedError):
                kept.check_seal(memoryview(changed))
            if place < end:
                with pytest.raises(DamagedError):
                    kept.describe(memoryview(changed))


@cases
def test_a_file_cut_short_is_found(
    suffix: str, tensor: Tensor, reference: Tensor | None, file: bytes
) -> None:
    for size in (*range(200), len(file) // 2, len(file) - 1):
        with pytest.raises(DamagedError):
            kept.check_seal(memoryview(file[:size]))


@settings(max_examples=1500, deadline=None)
@given(st.sampled_from(EXAMPLES), st.data())
def test_a_mutated_file_with_good_seals_does_no_harm(
    example: tuple[str, Tensor, Tensor | None, bytes], draw: st.DataObject
) -> None:
    suffix, _, reference, file = example
    changed = bytearray(file)
    for _ in range(draw.draw(st.integers(1, 4))):
        place = draw.draw(
            st.integers(8, min(len(file) - 33, draw.draw(st.sampled_from((250, 1 << 20)))))
        )
        changed[place] = draw.draw(st.integers(0, 255))
    tracemalloc.start()
    try:
        info, data = PACKED[suffix].decode(memoryview(sealed(changed)), reference)
        assert info.nbytes == len(data)
    except DamagedError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 32 << 20


def lying(info: TensorInfo, kind: str = ".planes", reference: str = "", shared: int = 0) -> bytes:
    """A file whose header claims a tensor that its chunks do not hold."""
    count = len(kept.ranges(shared, info.nbytes // layout(info.dtype).size, 1 << 22))
    return kept.write(kind, info, reference, "small", 1 << 22, shared, [b""] * count)


class TestBombs:
    """Memory is not taken on a file's word."""

    @pytest.fixture(autouse=True)
    def watch(self) -> Iterator[None]:
        tracemalloc.start()
        yield
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 48 << 20

    def test_a_shape_far_beyond_the_file(self) -> None:
        file = bytearray(lying(TensorInfo("U8", (4, 1))))
        at = file.index(struct.pack("<QQ", 4, 1))
        for shape in ((1 << 44, 1), (1 << 63, 1 << 63), (1 << 30, 1 << 10), (1 << 20, 40)):
            file[at : at + 16] = struct.pack("<QQ", *shape)
            with pytest.raises(DamagedError):
                planes.decode(memoryview(sealed(file)), None)

    def test_a_difference_larger_than_its_reference(self) -> None:
        info, reference = TensorInfo("BF16", (1 << 34,)), weights("BF16", (64,))
        file = memoryview(lying(info, ".delta", DIGEST, 1 << 34))
        assert kept.describe(file).info == info  # says what it claims, takes nothing
        for module in (delta, rows):
            with pytest.raises(DamagedError):
                module.decode(file, reference)
        with pytest.raises(DamagedError):
            delta.decode(file, (info, reference[1]))

    def test_a_frame_that_holds_more_than_its_run(self) -> None:
        parameters = zstandard.ZstdCompressionParameters(
            compression_level=3, format=zstandard.FORMAT_ZSTD1_MAGICLESS
        )
        writer = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=1 << 28)
        frame = b"".join(writer.compress(bytes(1 << 20)) for _ in range(1 << 8)) + writer.flush()
        assert len(frame) < 1 << 16
        for mode in (2, 3):
            with pytest.raises(DamagedError):
                streams.unpack(mode << 29 | len(frame), memoryview(frame), 1000)
        bomb = len(frame).to_bytes(4, "little") + frame
        with pytest.raises(DamagedError):
            streams.unpack(3 << 29 | len(bomb), memoryview(bomb), 1000)


class TestReferences:
    """A reference that is not the right one is refused, or what comes out is not the tensor."""

    def test_another_shape_or_dtype(self) -> None:
        reference = weights("BF16", SHAPE)
        tensor = near(*reference, 1, 3)
        file = memoryview(delta.encode(*tensor, (DIGEST, *reference)) or b"")
        for dtype, shape in (("BF16", (64, 96)), ("F32", (96, 63)), ("I16", SHAPE), ("F64", SHAPE)):
            info = TensorInfo(dtype, shape)
            with pytest.raises(DamagedError):
                delta.decode(file, (info, memoryview(bytes(info.nbytes))))
        with pytest.raises(DamagedError):
            delta.decode(file, None)
        with pytest.raises(DamagedError):
            delta.decode(file, (reference[0], reference[1][:-2]))

    @pytest.mark.parametrize("level", ["fast", "small"])
    def test_another_tensor_of_that_shape(self, level: str) -> None:
        reference = weights("BF16", SHAPE)
        tensor = near(*reference, 1, 3)
        file = memoryview(delta.encode(*tensor, (DIGEST, *reference), level=level) or b"")
        for seed in range(20):
            try:
                info, data = delta.decode(file, weights("BF16", SHAPE, seed + 1))
            except DamagedError:
                continue
            assert tensor_digest(info, data) != tensor_digest(*tensor)

    def test_a_kind_is_not_read_as_another(self) -> None:
        for suffix, _, reference, file in EXAMPLES:
            for other, module in PACKED.items():
                if other != suffix:
                    with pytest.raises(DamagedError):
                        module.decode(memoryview(file), reference)

    def test_a_range_outside_the_tensor_is_refused(self) -> None:
        info, data = weights("BF16", SHAPE)
        file = memoryview(planes.encode(info, data, None) or b"")
        for start, stop in ((-1, 4), (5, 4), (0, info.elements + 1)):
            with pytest.raises(BlockzooError):
                planes.decode_range(file, None, start, stop)
        assert planes.decode_range(file, None, 7, 7) == b""


def test_noise_is_no_packed_tensor() -> None:
    random = np.random.default_rng(0)
    for size in (0, 1, 8, 51, 52, 400):
        with pytest.raises(DamagedError):
            kept.describe(memoryview(random.bytes(size)))
        with pytest.raises(DamagedError):
            kept.describe(memoryview(b"bzp1" + random.bytes(size)))
