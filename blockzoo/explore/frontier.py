"""Loss against bytes drawn as SVG, both by their logarithms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from blockzoo.explore import html
from blockzoo.explore.dendrogram import Drawing
from blockzoo.explore.values import format_bytes, format_ratio

_WIDTH, _HEIGHT = 560, 320  # of the plot, pixels
_LEFT, _TOP, _BELOW = 72, 34, 40
_KEY = 16  # pixels a line
_COLOURS = ("#0969da", "#bf8700", "#1a7f37", "#cf222e", "#8250df", "#656d76")
_STYLE = (
    "<style>.bz-front{--bz-fg:#1f2328;--bz-line:#d8dee4}"
    "@media (prefers-color-scheme:dark){.bz-front{--bz-fg:#e6edf3;--bz-line:#373e47}}"
    ".bz-front text{font:11px system-ui,sans-serif;"
    "fill:var(--jp-content-font-color0,var(--bz-fg))}"
    ".bz-front .axis{stroke:var(--bz-line)}</style>"
)

Series = Mapping[str, Sequence[tuple[float, float]]]


def frontier(
    title: str,
    series: Series,
    marked: Sequence[tuple[float, float, str]] = (),
    *,
    what: str = "mean KL",
) -> Drawing:
    """Draw what is lost by how many bytes are left.

    Parameters
    ----------
    title : str
    series : mapping of str to sequence of (float, float)
        By name: bytes and loss, both over nought; other points are left out.
    marked : sequence of (float, float, str)
        Points that are circled, with a word beside them.
    what : str
        The loss, in words.
    """
    drawn = {
        name: sorted((x, y) for x, y in points if x > 0 and y > 0)
        for name, points in series.items()
    }
    xs = [x for points in drawn.values() for x, _ in points] or [1.0]
    ys = [y for points in drawn.values() for _, y in points] or [1.0]
    across, up = _Axis(min(xs), max(xs), _WIDTH), _Axis(min(ys), max(ys), _HEIGHT)

    def at(x: float, y: float) -> tuple[float, float]:
        return _LEFT + across(x), _TOP + _HEIGHT - up(y)

    parts = [f'<text x="8" y="18" font-weight="600">{html.text(title)}</text>']
    for tick in across.ticks(4):
        x, y = at(tick, up.low)
        parts.append(_line(x, _TOP, x, y, "axis"))
        parts.append(_text(x, y + 14, format_bytes(tick), "middle"))
    for tick in up.ticks(5):
        x, y = at(across.low, tick)
        parts.append(_line(x, y, x + _WIDTH, y, "axis"))
        parts.append(_text(x - 6, y + 4, format_ratio(tick), "end"))
    parts.append(_text(8, _TOP + _HEIGHT + _BELOW - 6, html.text(f"{what} by bytes"), "start"))
    for number, (name, points) in enumerate(drawn.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        places = [at(*point) for point in points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in places]
        y = _TOP + _KEY * number + 10
        parts.append(f'<rect x="{_LEFT + _WIDTH + 14}" y="{y - 8}" width="8" height="8" '
                     f'fill="{colour}"/>')  # fmt: skip
        parts.append(_text(_LEFT + _WIDTH + 28, y, html.text(name), "start"))
    for mark_x, mark_y, word in marked:
        if mark_x > 0 and mark_y > 0:
            x, y = at(mark_x, mark_y)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="none" stroke="#cf222e"/>')
            parts.append(_text(x + 8, y - 6, html.text(word), "start"))
    content = _STYLE + "".join(parts)
    width, height = _LEFT + _WIDTH + 190, _TOP + _HEIGHT + _BELOW
    return Drawing(
        f'<svg xmlns="http://www.w3.org/2000/svg" class="bz-front" width="{width}" '
        f'height="{height}" viewBox="0 0 {width} {height}" role="img">{content}</svg>'
    )


class _Axis:
    """From values to pixels, by the logarithm."""

    def __init__(self, low: float, high: float, length: float) -> None:
        if high <= low:
            low, high = low / 2, high * 2
        self.low, self._high, self._length = low, high, length
        self._span = math.log(high / low)

    def __call__(self, value: float) -> float:
        return self._length * math.log(value / self.low) / self._span

    def ticks(self, count: int) -> list[float]:
        return [self.low * math.exp(self._span * i / count) for i in range(count + 1)]


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'
