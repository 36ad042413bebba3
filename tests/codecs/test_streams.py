"""Runs of bytes come back, each form is used where it is shortest, and all stay near entropy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockzoo.codecs import quads, streams
from blockzoo.errors import DamagedError

ZERO, STORED, ZSTD, QUADS = range(4)


def back(entry: int, coded: bytes, count: int) -> np.ndarray:
    found = streams.unpack(entry, memoryview(coded), count)
    return np.zeros(count, np.uint8) if found is None else found


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 3000),
    st.floats(0, 1),
    st.integers(1, 256),
    st.sampled_from((0, 3)),
    st.integers(0, 2**32 - 1),
)
def test_any_run_comes_back(count: int, rare: float, kinds: int, repeats: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    data = random.integers(0, kinds, count).astype(np.uint8)
    data[random.random(count) > rare] = random.integers(0, 256)
    entry, coded = streams.pack(data, repeats=repeats)
    assert streams.length(entry) == len(coded)
    assert np.array_equal(back(entry, coded, count), data)


@pytest.mark.parametrize(
    ("form", "weights"),
    [
        (ZERO, [1, 0]),
        (STORED, [1] * 256),
        (ZSTD, [4, 4, 3, 3, 2, 2, 1, 1, 1]),
        (QUADS, [90, 5, 5, 1]),
    ],
)
def test_each_form_has_its_use(form: int, weights: list[int]) -> None:
    shares = np.array(weights) / sum(weights)
    data = np.random.default_rng(0).choice(len(weights), 50_000, p=shares).astype(np.uint8)
    entry, coded = streams.pack(data)
    assert entry >> 29 == form
    assert np.array_equal(back(entry, coded, len(data)), data)


@pytest.mark.parametrize("zeros", [0.5, 0.8, 0.9, 0.97, 0.995])
def test_rare_symbols_take_less_than_a_bit_each(zeros: float) -> None:
    random = np.random.default_rng(0)
    data = np.where(random.random(200_000) < zeros, 0, random.choice([1, 255], 200_000))
    shares = np.bincount(data) / len(data)
    entropy = -sum(p * np.log2(p) for p in shares if p) * len(data) / 8
    assert len(streams.pack(data.astype(np.uint8))[1]) < 1.3 * entropy + 100


def test_repeated_rows_of_integers_take_little() -> None:
    row = np.random.default_rng(0).integers(0, 256, 500).astype(np.uint8)
    assert len(streams.pack(np.tile(row, 50), repeats=3)[1]) < 700


def test_fours_are_not_nested_without_end() -> None:
    data = np.random.default_rng(0).choice([0, 0, 0, 0, 0, 0, 0, 0, 9], 4000).astype(np.uint8)
    symbols = quads.few(data)
    assert symbols is not None
    inner = b"\1\2\3" + bytes(8)
    for _ in range(2000):
        entry = (QUADS << 29 | len(inner)).to_bytes(4, "little")
        inner = b"\1\2\3" + bytes(4) + entry + inner
    with pytest.raises(DamagedError):
        streams.unpack(QUADS << 29 | len(inner), memoryview(inner), 4000)
