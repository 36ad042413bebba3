"""A grouping that is kept changes nothing but the time, and does not grow without end."""

from __future__ import annotations

import numpy as np

from blockzoo.codecs import delta, rows
from blockzoo.codecs.grouping import Grouping, groups
from blockzoo.codecs.words import layout
from blockzoo.tensors import TensorInfo
from tests.codecs.tensors import DIGEST, near, weights


def test_dependents_of_any_dtype_and_length_share_one_grouping() -> None:
    info, data = weights("F32", (700, 64))
    grouping = Grouping()
    for seed in range(2):
        for dtype in ("F32", "BF16", "F16"):
            tensor = near(*weights(dtype, (700, 64)), seed, 3)
            base = (DIGEST, info, data)
            file = delta.encode(*tensor, base, grouping=grouping)
            assert file is not None and file == delta.encode(*tensor, base)
            assert delta.decode(memoryview(file), (info, data), 1, grouping) == tensor
        shorter = near(*weights("F32", (500 + seed, 64)), seed, 3)
        file = rows.encode(*shorter, (DIGEST, info, data), grouping=grouping)
        assert file is not None and file == rows.encode(*shorter, (DIGEST, info, data))


def test_words_are_sorted_by_exponent_and_stable() -> None:
    values = np.frombuffer(weights("BF16", (300, 40))[1], "<u2")
    found = groups(layout("BF16"), values)
    assert found.order is not None
    exponents = (values >> 7) & 255
    assert np.array_equal(found.order, np.argsort(255 - exponents, kind="stable"))
    counts = np.bincount(255 - exponents, minlength=256)
    assert found.ends == tuple(np.cumsum(counts).tolist())
    assert found.merged()[-1] == len(values)


def test_what_is_kept_stays_within_its_budget() -> None:
    grouping, kind = Grouping(keep=100_000), layout("BF16")
    values = np.frombuffer(weights("BF16", (10_000,))[1], "<u2")
    for start in range(0, 100_000, 10_000):
        assert grouping.chunk(kind, start, values).ends == groups(kind, values).ends
    assert grouping._size <= 100_000 and len(grouping._chunks) == 2


def test_zeros_and_specials_are_grouped_too() -> None:
    for pattern in (0x0000, 0x8000, 0x7F80, 0xFFFF):
        info = TensorInfo("BF16", (5000,))
        base = memoryview(np.full(5000, pattern, "<u2").tobytes())
        tensor = near(info, base, 0, 2)
        file = delta.encode(*tensor, (DIGEST, info, base))
        assert file is not None and delta.decode(memoryview(file), (info, base)) == tensor
