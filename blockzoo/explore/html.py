"""The look of the HTML views: one style sheet, folds, escaping.

Everything is in the markup itself: no scripts, no fonts, no requests, so a saved notebook shows
the same offline. Colours follow Jupyter's and VS Code's variables and the system's dark mode.
The way a fold lays out follows xarray's: a summary line first, details behind a triangle.
"""

from __future__ import annotations

from html import escape

_LIGHT = "--bz-fg:#1f2328;--bz-dim:#656d76;--bz-line:#d8dee4;--bz-tint:#f6f8fa;--bz-bar:#54aeff"
_DARK = "--bz-fg:#e6edf3;--bz-dim:#8d96a0;--bz-line:#373e47;--bz-tint:#1c2128;--bz-bar:#388bfd"

STYLE = (
    "<style>"
    f".bz{{{_LIGHT};color:var(--jp-content-font-color0,var(--bz-fg));"
    "font-size:13px;line-height:1.5;max-width:100%}"
    f"@media (prefers-color-scheme:dark){{.bz{{{_DARK}}}}}"
    # a notebook's own theme outranks the system's
    f"body[data-jp-theme-light=true] .bz,body.vscode-light .bz{{{_LIGHT}}}"
    f"body[data-jp-theme-light=false] .bz,body.vscode-dark .bz,html[theme=dark] .bz{{{_DARK}}}"
    ".bz-scroll{overflow:auto;max-height:36em}"
    ".bz table{border-collapse:collapse;border:0;margin:.3em 0;color:inherit}"
    ".bz th,.bz td{padding:.15em .8em .15em .3em;text-align:left;border:0;white-space:nowrap;"
    "vertical-align:top;background:none;color:inherit}"
    ".bz thead th{border-bottom:1px solid var(--bz-line);color:var(--bz-dim);font-weight:600}"
    ".bz tbody tr:hover{background:var(--bz-tint)}"
    ".bz .bz-right{text-align:right;font-variant-numeric:tabular-nums}"
    ".bz .bz-wrap{white-space:normal;min-width:10em}"
    ".bz code{font-family:var(--jp-code-font-family,ui-monospace,monospace);font-size:.92em;"
    "background:none;color:inherit;padding:0}"
    ".bz .bz-dim{color:var(--bz-dim)}"
    ".bz .bz-head{padding:.3em 0;border-bottom:1px solid var(--bz-line);margin-bottom:.3em}"
    ".bz .bz-head b{margin-right:.8em}.bz .bz-head span{margin-right:1em}"
    ".bz details{margin:.05em 0}.bz details details,.bz details>table,.bz details>.bz-body"
    "{margin-left:1.3em}"
    ".bz summary{cursor:pointer;padding:.1em 0}.bz summary:hover{background:var(--bz-tint)}"
    ".bz summary>span{display:inline-block;margin-right:1em}"
    ".bz .bz-name{min-width:11em}.bz .bz-size{min-width:6em;text-align:right}"
    ".bz .bz-bar{width:5em;height:.6em;background:var(--bz-line);border-radius:.3em;"
    "overflow:hidden;vertical-align:baseline}"
    ".bz .bz-bar i{display:block;height:100%;background:var(--bz-bar)}"
    ".bz pre{white-space:pre-wrap;margin:.2em 0;background:none;color:inherit}"
    "</style>"
)


def text(value: object) -> str:
    """Escape a value for use between tags or in an attribute's quotes."""
    return escape(str(value), quote=True)


def span(value: object, style: str = "", title: str = "") -> str:
    """A piece of a summary line."""
    attributes = f' class="{style}"' if style else ""
    attributes += f' title="{text(title)}"' if title else ""
    return f"<span{attributes}>{text(value)}</span>"


def bar(fraction: float, title: str = "") -> str:
    """A small bar, filled by a fraction between 0 and 1."""
    share = min(max(fraction, 0.0), 1.0)
    filled = f'<i style="width:{100 * share:.0f}%"></i>'
    return f'<span class="bz-bar" title="{text(title)}">{filled}</span>'


def fold(summary: str, body: str, *, opened: bool = False) -> str:
    """A part that opens at a click; ``summary`` and ``body`` are HTML."""
    return f"<details{' open' if opened else ''}><summary>{summary}</summary>{body}</details>"


def page(body: str) -> str:
    """The whole of a view, style sheet included."""
    return f'{STYLE}<div class="bz">{body}</div>'
