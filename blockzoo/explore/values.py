"""How a value reads to a person: sizes, times, shares, digests.

Text, HTML and the command line's rich tables all format through :func:`format_value`, so that a
size looks the same everywhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any, Literal

Kind = Literal["text", "bytes", "int", "float", "percent", "time", "digest", "ratio", "shape"]

#: how many of a digest's 64 hex digits are shown; `Zoo.resolve` takes any 8 or more
SHORT_DIGEST = 12

_UNITS = ("kB", "MB", "GB", "TB", "PB")


def format_bytes(count: float) -> str:
    """A size in decimal units with three significant digits: ``13.8 MB``."""
    if abs(count) < 1000:
        return f"{int(count)} B"
    size = float(count)
    for unit in _UNITS:
        size /= 1000
        if abs(size) < 999.5 or unit == _UNITS[-1]:
            break
    digits = 2 if abs(size) < 9.995 else 1 if abs(size) < 99.95 else 0
    return f"{size:.{digits}f} {unit}"


def format_percent(fraction: float) -> str:
    """A fraction as a percentage: 0.4312 reads ``43.1 %``."""
    return f"{100 * fraction:.1f} %"


def format_ratio(value: float) -> str:
    """A relative distance or a quotient, with three significant digits; an exact 0 stays ``0``."""
    if value == 0:
        return "0"
    return f"{value:.3g}" if math.isfinite(value) else str(value)


def format_shape(shape: Iterable[int]) -> str:
    """``4096 × 256``; a tensor without dimensions reads ``scalar``."""
    return " × ".join(str(d) for d in shape) or "scalar"


def _visible(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)


def format_value(value: Any, kind: Kind = "text") -> str:
    """Any cell as one line of text.

    Parameters
    ----------
    value
        ``None`` reads as nothing; a list reads as its items with commas.
    kind
        ``bytes`` takes a count, ``percent`` and ``ratio`` a fraction, ``time`` seconds since
        1970 (shown in local time) or text that is kept as it is, ``digest`` hex digits,
        ``shape`` a list of dimensions.
    """
    if value is None:
        return ""
    if kind == "shape":
        return format_shape(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value) if isinstance(value, (set, frozenset)) else value
        return ", ".join(format_value(item, kind) for item in items)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        # names come from checkpoints: what would steer a terminal is shown as a box
        return value[:SHORT_DIGEST] if kind == "digest" else _visible(" ".join(value.split()))
    if kind == "bytes":
        return format_bytes(value)
    if kind == "percent":
        return format_percent(value)
    if kind == "ratio":
        return format_ratio(value)
    if kind == "time":
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
    if kind == "int":
        return f"{int(value):,}"
    if kind == "float":
        return f"{value:,.2f}"
    return str(value)
