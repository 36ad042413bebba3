"""The family tree as it is shown: a tree in text, folds in a notebook, rows in JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blockzoo.errors import NotFoundError
from blockzoo.explore import html
from blockzoo.explore.dendrogram import Drawing, dendrogram
from blockzoo.explore.table import Column, Table
from blockzoo.explore.values import format_bytes, format_ratio
from blockzoo.similarity.lineage import Edge, Lineage

if TYPE_CHECKING:
    from collections.abc import Sequence

_LAYER = re.compile(r"(.*?)\.?(\d+)(?:\.(.+))?")
_HOPS = (Column("hop"), Column("distance", "relative distance", kind="ratio"))


@dataclass(frozen=True, repr=False)
class FamilyTree:
    """Which models descend from which.

    Parameters
    ----------
    lineage : Lineage
    """

    lineage: Lineage

    def to_json(self) -> list[dict[str, Any]]:
        """One dict a model, parents before children; see `Lineage.to_json`."""
        return self.lineage.to_json()

    def dendrogram(self) -> Drawing:
        """The tree drawn to the scale of its distances."""
        return dendrogram(self.lineage)

    def hops(self, name: str) -> Table:
        """The distance of a model from its parent at each hop in which they differ.

        Raises
        ------
        NotFoundError
            Where there is no model of that name, or it descends from none.
        """
        named = [d for d, m in self.lineage.members.items() if name in (*m.names, d)]
        if not named or named[0] not in self.lineage.edges:
            raise NotFoundError(f"{name!r} descends from no model here")
        edge = self.lineage.edges[named[0]]
        parent = self.lineage.members[edge.parent].name
        rows = [{"hop": hop, "distance": apart} for hop, apart in edge.hops.items()]
        return Table(f"{parent} → {name}", _HOPS, rows)

    def __repr__(self) -> str:
        if not self.lineage.members:
            return "no models"
        lines: list[tuple[str, ...]] = [("model", "kind", "distance", "differs in", "direction")]
        for root in self.lineage.roots:
            lines += self._lines(root, "", "")
        widths = [max(len(line[i]) for line in lines) for i in range(5)]
        lines.insert(1, tuple("─" * width for width in widths))
        return "\n".join(
            "  ".join(
                cell.rjust(width) if number == 2 else cell.ljust(width)
                for number, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )

    def _lines(self, root: str, first: str, rest: str) -> list[tuple[str, ...]]:
        """A model's line and those of all that descend from it."""
        lines: list[tuple[str, ...]] = []
        waiting = [(root, first, rest)]
        while waiting:
            digest, head, indent = waiting.pop()
            edge = self.lineage.edges.get(digest)
            member = self.lineage.members[digest]
            kind = member.family if member.kind == "adapter" else "model"
            lines.append((head + member.name, kind, *self._facts(edge)))
            children = self.lineage.children(digest)
            for number, child in reversed(list(enumerate(children))):
                last = number == len(children) - 1
                branch, below = ("└─ ", "   ") if last else ("├─ ", "│  ")
                waiting.append((child, indent + branch, indent + below))
        return lines

    def _facts(self, edge: Edge | None) -> tuple[str, str, str]:
        if edge is None:
            return "", "", ""
        apart = "" if edge.distance is None else format_ratio(edge.distance)
        direction = f"guess: {edge.evidence}" if edge.guessed else edge.evidence
        return apart, differences(edge), direction

    def _repr_html_(self) -> str:
        count = len(self.lineage.members)
        head = (
            f'<div class="bz-head"><b>families</b>'
            f"{html.span(f'{count} models, {len(self.lineage.roots)} families')}</div>"
        )
        widest = max((e.distance or 0.0 for e in self.lineage.edges.values()), default=0.0)
        body = "".join(self._fold(root, widest) for root in self.lineage.roots)
        return html.page(head + body)

    def _fold(self, root: str, widest: float) -> str:
        """A model and what descends from it, built from the leaves up."""
        made: dict[str, str] = {}
        for digest, _ in reversed(list(self.lineage.walk(root))):
            member, edge = self.lineage.members[digest], self.lineage.edges.get(digest)
            apart, where, direction = self._facts(edge)
            summary = html.span(member.name, "bz-name", digest)
            if edge is None:
                summary += html.span(format_bytes(member.bytes), "bz-dim")
            if member.kind == "adapter":
                summary += html.span(member.family, "bz-dim")
            if edge and edge.distance is not None:
                share = edge.distance / widest if widest else 0.0
                summary += html.bar(share, apart) + html.span(apart, "bz-size")
            summary += html.span(where) + html.span(direction, "bz-dim")
            children = self.lineage.children(digest)
            inside = "".join(made.pop(child) for child in children)
            if edge and edge.hops:
                table = Table("", _HOPS, self.hops(digest).rows).to_html()
                layers = html.fold(html.span("by hop", "bz-dim"), table)
                inside = layers + inside
            made[digest] = html.fold(
                summary, f'<div class="bz-body">{inside}</div>', opened=bool(children)
            )
        return made[root]


def differences(edge: Edge) -> str:
    """Where a child differs from its parent, in a few words."""
    if edge.distance is None:
        return ""
    parts = [summary(edge.hops) or "no weight"]
    if edge.rows_added:
        parts.append(f"{edge.rows_added:+,} row{'s' if abs(edge.rows_added) > 1 else ''}")
    return ", ".join(parts)


def summary(hops: Mapping[str, float] | Iterable[str]) -> str:
    """Names of hops, layers in ranges: ``layers 5–7, head``; ``layers 0–3 attention``."""
    layers: dict[str, dict[str, set[int]]] = {}
    others = []
    for hop in hops:
        found = _LAYER.fullmatch(hop)
        if found:
            prefix, number, part = found[1], int(found[2]), found[3] or ""
            layers.setdefault(prefix, {}).setdefault(part, set()).add(number)
        else:
            others.append(hop)
    words = []
    for prefix, parts in layers.items():
        every = set.union(*parts.values())
        if len({frozenset(numbers) for numbers in parts.values()}) == 1:
            # one that has but attention and mlp is whole where both differ
            part = next(iter(parts)) if len(parts) == 1 else ""
            words.append(" ".join(filter(None, (prefix, _ranges(every), part))))
        else:
            words += [f"{prefix} {_ranges(numbers)} {part}" for part, numbers in parts.items()]
    return ", ".join([*words, *others])


def _ranges(numbers: Iterable[int]) -> str:
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    ends: Sequence[str] = [f"{a}" if a == b else f"{a}–{b}" for a, b in runs]
    return ", ".join(ends)
