"""How clusters merge as more distance is allowed, drawn as SVG."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from blockzoo.explore import html
from blockzoo.explore.dendrogram import Drawing
from blockzoo.explore.values import format_ratio

_ROW = 16  # pixels
_PLOT = 360
_LETTER = 6.6  # a generous width
_MARGIN = 12

_STYLE = (
    "<style>.bz-merge{--bz-fg:#1f2328;--bz-bar:#0969da}"
    "@media (prefers-color-scheme:dark){.bz-merge{--bz-fg:#e6edf3;--bz-bar:#388bfd}}"
    ".bz-merge text{font:11px system-ui,sans-serif;"
    "fill:var(--jp-content-font-color0,var(--bz-fg))}"
    ".bz-merge path{stroke:var(--bz-bar);fill:none}</style>"
)


def merging(
    title: str,
    labels: Sequence[str],
    children: NDArray[np.intp],
    distances: NDArray[np.float64],
) -> Drawing:
    """Draw a tree of merges to the scale of their distances, one row a leaf.

    Parameters
    ----------
    title : str
    labels : sequence of str
        Of the n leaves.
    children : numpy.ndarray
        (n − 1, 2): which two each merge joins, leaves first, then merges in order
        (scikit-learn's ``children_``).
    distances : numpy.ndarray
        (n − 1,), not descending.
    """
    count = len(labels)
    left = _MARGIN + _LETTER * max(map(len, labels), default=0) + 6
    scale = _PLOT / max(float(distances.max(initial=0.0)), 1e-12)
    place: dict[int, tuple[float, float]] = {}
    parts = [f'<text x="{_MARGIN}" y="16" font-weight="600">{html.text(title)}</text>']
    for row, leaf in enumerate(_order(count, children)):
        y = 40.0 + row * _ROW
        place[leaf] = left, y
        parts.append(
            f'<text x="{left - 5:.1f}" y="{y + 4:.1f}" text-anchor="end">'
            f"{html.text(labels[leaf])}</text>"
        )
    for number, (pair, distance) in enumerate(zip(children.tolist(), distances, strict=True)):
        (x1, y1), (x2, y2) = (place[child] for child in pair)
        x = left + float(distance) * scale
        place[count + number] = x, (y1 + y2) / 2
        parts.append(
            f'<path d="M{x1:.1f} {y1:.1f}H{x:.1f}V{y2:.1f}H{x2:.1f}">'
            f"<title>{html.text(format_ratio(float(distance)))}</title></path>"
        )
    width, height = left + _PLOT + _MARGIN, 40 + count * _ROW + _MARGIN
    return Drawing(
        f'<svg class="bz-merge" xmlns="http://www.w3.org/2000/svg" role="img" '
        f'aria-label="{html.text(title)}" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}">{_STYLE}{"".join(parts)}</svg>'
    )


def _order(count: int, children: NDArray[np.intp]) -> list[int]:
    """The leaves from top to bottom, so that no two lines cross."""
    found = []
    waiting = [count + len(children) - 1]
    while waiting:
        node = waiting.pop()
        if node < count:
            found.append(node)
        else:
            waiting += children[node - count].tolist()
    return found
