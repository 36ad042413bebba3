"""A family tree drawn as SVG, to scale: no plotting library, no scripts, the same offline.

One row a model. A model stands as far to the right as it is from the root of its family along
the tree; a line leads to it from its parent's column. Dashed lines are guesses of direction.
Adapters are hollow; one whose distance is not told stands a little to the right of its base.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from blockzoo.explore import html
from blockzoo.explore.values import format_ratio
from blockzoo.similarity.lineage import Lineage

_ROW = 24  # pixels
_PLOT = 420
_MARGIN = 16
_STUB = 18  # how far from its base an adapter stands whose distance is not told
_LETTER = 7.3  # a generous width
_GAP = 14  # between families

_STYLE = (
    "<style>.bz-tree{--bz-fg:#1f2328;--bz-dim:#656d76;--bz-bar:#0969da}"
    "@media (prefers-color-scheme:dark){.bz-tree{--bz-fg:#e6edf3;--bz-dim:#8d96a0;"
    "--bz-bar:#388bfd}}"
    ".bz-tree text{font:12px system-ui,sans-serif;fill:var(--jp-content-font-color0,var(--bz-fg))}"
    ".bz-tree .dim{fill:var(--bz-dim)}.bz-tree path{stroke:var(--bz-dim);fill:none}"
    ".bz-tree .guess{stroke-dasharray:4 3}.bz-tree circle{fill:var(--bz-bar);"
    "stroke:var(--bz-bar);stroke-width:1.5}.bz-tree .adapter{fill:none}</style>"
)


@dataclass(frozen=True, repr=False)
class Drawing:
    """An SVG picture that a notebook shows.

    Parameters
    ----------
    svg : str
    """

    svg: str

    def _repr_html_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return f"Drawing of {len(self.svg):,} characters of SVG; .save(path) writes it"

    def save(self, path: str | Path) -> Path:
        """Write it to a file; any browser opens it."""
        target = Path(path)
        target.write_text(self.svg, encoding="utf-8")
        return target


def dendrogram(lineage: Lineage) -> Drawing:
    """Draw a family tree.

    Parameters
    ----------
    lineage : Lineage
    """
    depth, rows = _places(lineage)
    scale = _PLOT / max([*depth.values(), 1e-12])
    x = {d: _MARGIN + depth[d] * scale + _STUB * _unknown(lineage, d) for d in depth}
    lines, marks = [], []
    for digest, y in rows.items():
        member, edge = lineage.members[digest], lineage.edges.get(digest)
        label = html.text(member.name)
        if edge:
            style = ' class="guess"' if edge.guessed else ""
            up = x[edge.parent], rows[edge.parent]
            lines.append(f'<path{style} d="M{up[0]:.1f} {up[1]:.1f}V{y:.1f}H{x[digest]:.1f}"/>')
            if edge.distance is not None:
                label += f'<tspan class="dim" dx="8">{format_ratio(edge.distance)}</tspan>'
        kind = ' class="adapter"' if member.kind == "adapter" else ""
        title = f"<title>{html.text(', '.join(member.names))} {digest[:12]}</title>"
        marks.append(f'<circle{kind} cx="{x[digest]:.1f}" cy="{y:.1f}" r="4">{title}</circle>')
        marks.append(f'<text x="{x[digest] + 10:.1f}" y="{y + 4:.1f}">{label}</text>')
    longest = max((len(member.name) for member in lineage.members.values()), default=0)
    width = _MARGIN * 2 + _PLOT + _STUB + (longest + 8) * _LETTER
    height = max([*rows.values(), 0.0]) + _ROW + _MARGIN
    note = "dashed: the direction is a guess; hollow: an adapter"
    marks.append(f'<text class="dim" x="{_MARGIN}" y="{height - 8:.1f}">{note}</text>')
    return Drawing(
        f'<svg class="bz-tree" xmlns="http://www.w3.org/2000/svg" role="img" '
        f'aria-label="family tree of {len(rows)} models" width="{width:.0f}" '
        f'height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}">'
        f"{_STYLE}{''.join(lines)}{''.join(marks)}</svg>"
    )


def _places(lineage: Lineage) -> tuple[dict[str, float], dict[str, float]]:
    """How far each model is from its root, and the height of its row."""
    depth: dict[str, float] = {}
    rows: dict[str, float] = {}
    y = float(_MARGIN)
    for root in lineage.roots:
        for digest, _ in lineage.walk(root):
            edge = lineage.edges.get(digest)
            depth[digest] = (depth[edge.parent] + (edge.distance or 0.0)) if edge else 0.0
            rows[digest] = y
            y += _ROW
        y += _GAP
    return depth, rows


def _unknown(lineage: Lineage, digest: str) -> bool:
    edge = lineage.edges.get(digest)
    return edge is not None and edge.distance is None
