"""Values as people read them."""

from __future__ import annotations

import pytest

from blockzoo.explore.values import format_value


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9_994, "9.99 kB"),
        (9_996, "10.0 kB"),
        (13_800_000, "13.8 MB"),
        (999_600, "1.00 MB"),
        (4_200_000_000, "4.20 GB"),
        (7 * 10**18, "7000 PB"),
    ],
)
def test_sizes_have_three_digits_and_the_right_unit(count: int, shown: str) -> None:
    assert format_value(count, "bytes") == shown


@pytest.mark.parametrize(
    ("value", "kind", "shown"),
    [
        (None, "bytes", ""),
        (0.4312, "percent", "43.1 %"),
        (0.0, "ratio", "0"),
        (0.031234, "ratio", "0.0312"),
        (float("nan"), "ratio", "nan"),
        (1234567, "int", "1,234,567"),
        (True, "text", "yes"),
        (["b", "a"], "text", "b, a"),
        ({"b", "a"}, "text", "a, b"),
        ("0123456789abcdef" * 4, "digest", "0123456789ab"),
        ("two\nlines", "text", "two lines"),
        ("2026-01-01", "time", "2026-01-01"),
    ],
)
def test_a_value_reads_as_one_line(value: object, kind: str, shown: str) -> None:
    assert format_value(value, kind) == shown  # type: ignore[arg-type]


def test_names_cannot_steer_a_terminal() -> None:
    assert format_value("evil\x1b[31mred\x07") == "evil\ufffd[31mred\ufffd"
    assert format_value("größe – 你好") == "größe – 你好"
