"""A matrix of likenesses drawn as SVG: no plotting library, no scripts, the same offline."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from blockzoo.explore import html
from blockzoo.explore.dendrogram import Drawing
from blockzoo.explore.values import format_ratio

_CELL = 16  # pixels
_LETTER = 6.6  # a generous width
_MARGIN = 12
_KEY = 120  # width of the scale below

_STYLE = (
    "<style>.bz-heat{--bz-fg:#1f2328;--bz-none:#d8dee4}"
    "@media (prefers-color-scheme:dark){.bz-heat{--bz-fg:#e6edf3;--bz-none:#373e47}}"
    ".bz-heat text{font:11px system-ui,sans-serif;"
    "fill:var(--jp-content-font-color0,var(--bz-fg))}"
    ".bz-heat .none{fill:var(--bz-none)}</style>"
)
#: from unlike to alike: viridis, at five places
_COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


def heatmap(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: NDArray[np.float64],
    *,
    low: float,
    high: float,
    key: tuple[str, str],
) -> Drawing:
    """Draw a matrix.

    Parameters
    ----------
    title : str
    rows, columns : sequence of str
        What each stands for.
    values : numpy.ndarray
        (rows, columns). What is not finite is left grey.
    low, high : float
        The values of the first and the last colour; what is beyond has theirs.
    key : (str, str)
        What these two mean, in words.
    """
    left = _MARGIN + _LETTER * max((len(row) for row in rows), default=0)
    top = _MARGIN + 20 + _LETTER * max((len(column) for column in columns), default=0)
    parts = [f'<text x="{_MARGIN}" y="16" font-weight="600">{html.text(title)}</text>']
    for number, row in enumerate(rows):
        y = top + number * _CELL
        parts.append(
            f'<text x="{left - 5:.1f}" y="{y + 12:.1f}" text-anchor="end">{html.text(row)}</text>'
        )
        for place, column in enumerate(columns):
            value = float(values[number, place])
            look = f'fill="{_colour(value, low, high)}"' if math.isfinite(value) else 'class="none"'
            told = format_ratio(value) if math.isfinite(value) else "not comparable"
            parts.append(
                f'<rect x="{left + place * _CELL:.1f}" y="{y:.1f}" width="{_CELL - 1}" '
                f'height="{_CELL - 1}" {look}>'
                f"<title>{html.text(f'{row} · {column}: {told}')}</title></rect>"
            )
    for place, column in enumerate(columns):
        x = left + place * _CELL + 11
        parts.append(
            f'<text transform="translate({x:.1f} {top - 5:.1f}) rotate(-90)">'
            f"{html.text(column)}</text>"
        )
    bottom = top + len(rows) * _CELL + 14
    parts += _key(left, bottom, key)
    label = _LETTER * sum(map(len, key)) + _KEY + 20
    width = left + max(len(columns) * _CELL, label) + _MARGIN
    height = bottom + 20 + _MARGIN
    return Drawing(
        f'<svg class="bz-heat" xmlns="http://www.w3.org/2000/svg" role="img" '
        f'aria-label="{html.text(title)}" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}">{_STYLE}{"".join(parts)}</svg>'
    )


def _key(left: float, top: float, words: tuple[str, str]) -> list[str]:
    start = left + _LETTER * len(words[0]) + 6
    step = _KEY / 24
    bars = [
        f'<rect x="{start + i * step:.1f}" y="{top:.1f}" width="{step + 0.5:.1f}" height="10" '
        f'fill="{_colour(i / 23, 0, 1)}"/>'
        for i in range(24)
    ]
    return [
        f'<text x="{left:.1f}" y="{top + 9:.1f}">{html.text(words[0])}</text>',
        *bars,
        f'<text x="{start + _KEY + 8:.1f}" y="{top + 9:.1f}">{html.text(words[1])}</text>',
    ]


def _colour(value: float, low: float, high: float) -> str:
    share = min(max((value - low) / (high - low), 0.0), 1.0) * (len(_COLOURS) - 1)
    first = min(int(share), len(_COLOURS) - 2)
    mixed = (
        round(a + (b - a) * (share - first))
        for a, b in zip(_COLOURS[first], _COLOURS[first + 1], strict=True)
    )
    return "#" + "".join(f"{c:02x}" for c in mixed)
