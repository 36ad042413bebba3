"""Sketches tell distances as well as they say, for every dtype, grown rows and tiny changes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from blockzoo.similarity.sketch import SIZE, bucket, distance, sketch, sketch_rows
from blockzoo.similarity.weights import relative_distance
from blockzoo.tensors import TensorInfo

random = np.random.default_rng(7)


def tensor(values: np.ndarray) -> tuple[TensorInfo, bytes]:
    return TensorInfo("F32", values.shape), values.astype("<f4").tobytes()


def bf16(values: np.ndarray) -> tuple[TensorInfo, bytes]:
    bits = np.ascontiguousarray(values, "<f4").view("<u4")
    return TensorInfo("BF16", values.shape), (bits >> 16).astype("<u2").tobytes()


def ratio(a: tuple[TensorInfo, bytes], b: tuple[TensorInfo, bytes]) -> float:
    """The estimate over the truth."""
    return distance(sketch(*a), sketch(*b)) / relative_distance(a, b)


SHAPES = [(1024,), (5000,), (64, 48), (300, 700), (1, 70000), (65536,), (3, 65536), (5, 4, 900)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1.0, 0.03, 1e-4])
def test_the_difference_of_sketches_is_the_distance(shape: tuple[int, ...], size: float) -> None:
    a = random.standard_normal(shape).astype(np.float32)
    b = a + size * random.standard_normal(shape).astype(np.float32)
    assert abs(ratio(tensor(a), tensor(b)) - 1) < 0.12  # five standard errors


def test_the_error_is_what_the_docstring_says() -> None:
    a = random.standard_normal((200, 1000)).astype(np.float32)
    errors = []
    for _ in range(60):
        b = a + 0.01 * random.standard_normal(a.shape).astype(np.float32)
        errors.append(ratio(tensor(a), tensor(b)) - 1)
    assert abs(np.mean(errors)) < 0.01
    assert 0.015 < np.std(errors) < 0.032


@pytest.mark.parametrize(
    "change",
    [
        np.full((512, 512), 0.01),
        np.outer(np.ones(512), random.standard_normal(512)),
        np.outer(random.standard_normal(512), np.ones(512)),
        np.outer(random.standard_normal(512), random.standard_normal(512)),
        np.tile(random.standard_normal((8, 64)), (64, 8)),
        np.eye(512),
        np.arange(512 * 512).reshape(512, 512) == 77777,
    ],
    ids=["constant", "equal rows", "equal columns", "rank one", "tiles", "diagonal", "one element"],
)
def test_changes_with_structure_are_seen_as_well(change: np.ndarray) -> None:
    a = random.standard_normal(change.shape)
    b = a + 0.01 * change
    assert abs(ratio(tensor(a), tensor(b)) - 1) < 0.15


def test_structured_changes_of_many_pieces_keep_their_norm() -> None:
    """A constant over a hundred pieces would vanish, or swell, if all pieces met alike."""
    change = np.ones((100, 65536), np.float32)
    assert abs(np.linalg.norm(sketch(*tensor(change)).values) / np.sqrt(change.size) - 1) < 0.12


def test_one_changed_weight_in_a_million_is_found() -> None:
    a = random.standard_normal(1 << 20).astype(np.float32)
    b = a.copy()
    b[12345] += 1.0
    assert abs(ratio(tensor(a), tensor(b)) - 1) < 0.01


def test_equal_values_are_at_no_distance_across_dtypes() -> None:
    a = random.standard_normal((100, 100))
    low = bf16(a)
    wide = np.frombuffer(low[1], "<u2").astype("<u4") << 16
    same = TensorInfo("F32", (100, 100)), wide.tobytes()
    assert distance(sketch(*low), sketch(*same)) == 0.0
    assert bucket(low[0]) == bucket(same[0])


def test_vectors_that_fit_are_their_own_sketch() -> None:
    a = random.standard_normal(SIZE).astype(np.float32)
    np.testing.assert_array_equal(sketch(*tensor(a)).values, a)
    assert sketch(*tensor(a)).norm == pytest.approx(np.linalg.norm(a))


@pytest.mark.parametrize("width", [256, 300, 70000])
def test_rows_that_were_added_can_be_taken_away(width: int) -> None:
    a = random.standard_normal((40, width)).astype(np.float32)
    b = np.concatenate([a + 0.001, random.standard_normal((3, width)).astype(np.float32)])
    whole, added = sketch(*tensor(b)), sketch_rows(*tensor(b), 40)
    shared = whole.values - added.values
    np.testing.assert_allclose(shared, sketch(*tensor(b[:40])).values, atol=1e-4)
    assert added.norm == pytest.approx(np.linalg.norm(b[40:]), rel=1e-5)
    assert bucket(tensor(a)[0]) == bucket(tensor(b)[0])


def test_values_that_are_no_numbers_count_as_zero() -> None:
    a = random.standard_normal((50, 2000)).astype(np.float32)
    b = a.copy()
    b[3, 5], b[7, 9], b[11, 13] = np.nan, np.inf, -np.inf
    clean = np.where(np.isfinite(b), b, 0)
    found, expected = sketch(*tensor(b)), sketch(*tensor(clean))
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-5, atol=1e-5)
    assert found.norm == pytest.approx(expected.norm)


@pytest.mark.parametrize("scale", [1e-38, 1e-25, 1e25, 1e37])
def test_extreme_values_neither_overflow_nor_vanish(scale: float) -> None:
    a = random.standard_normal((20, 2000)).astype(np.float32) * np.float32(scale)
    found = sketch(*tensor(a))
    assert found.norm == pytest.approx(np.linalg.norm(a.astype(np.float64)), rel=1e-4)
    assert np.linalg.norm(found.values.astype(np.float64)) == pytest.approx(found.norm, rel=0.12)


@pytest.mark.parametrize("dtype", ["F64", "F16", "I8", "U8", "I64", "BOOL", "F8_E4M3", "C64"])
def test_every_dtype_has_a_sketch(dtype: str) -> None:
    info = TensorInfo(dtype, (64, 64))
    raw = random.integers(0, 2 if dtype == "BOOL" else 60, info.nbytes, np.uint8).tobytes()
    assert math.isfinite(sketch(info, raw).norm)
    assert bucket(info)


def test_what_cannot_be_compared_is_in_no_bucket_or_another() -> None:
    assert bucket(TensorInfo("F4", (4, 4))) is None
    assert bucket(TensorInfo("F32", (0, 4))) is None
    names = {
        bucket(TensorInfo(dtype, shape))
        for dtype, shape in [
            ("F32", (4, 8)),
            ("F32", (8, 4)),
            ("F32", (32,)),
            ("F32", (2, 4, 4)),
            ("I8", (4, 8)),
        ]
    }
    assert len(names) == 5


def test_the_hash_never_changes() -> None:
    """Kept sketches and new ones must agree; another hash needs another `VERSION`."""
    values = np.arange(1 << 17, dtype=np.float32).reshape(2, -1) % 251
    found = sketch(*tensor(values)).values
    assert found[:4].tolist() == [-1511.0, 2717.0, 1707.0, 1866.0]
