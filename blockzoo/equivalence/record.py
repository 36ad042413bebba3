"""The record that one block may stand in for another: in which model, at what cost, by what proof.

Kept as canonical JSON under ``equivalences/``, named by its digest. It has no time and no path
in it, so the same certification gives the same record. It stays for as long as a name reaches the
receiving model, or the version that it certifies, and keeps the adapter blocks that were made for
it; another model's block that is gone is gone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from blockzoo.equivalence.evidence import Evidence
from blockzoo.equivalence.grade import Judgement, Verdict
from blockzoo.equivalence.swap import Swap
from blockzoo.explore import html
from blockzoo.explore.table import Column, Table
from blockzoo.explore.values import SHORT_DIGEST
from blockzoo.tensors import bytes_digest, canonical_json

#: the packages whose code decides the figures
_SOURCES = ("execution", "equivalence")
_SHOWN = 4  # swaps in a heading
_COLUMNS = (
    Column("what"),
    Column("text"),
    Column("documents", kind="int"),
    Column("tokens", kind="int"),
    Column("kl", "mean KL", kind="ratio"),
    Column("kl_high", "at most", kind="ratio"),
    Column("kl_p99", "p99", kind="ratio"),
    Column("kl_p99_high", "at most", kind="ratio"),
    Column("top1", "top-1", kind="percent"),
    Column("top1_low", "at least", kind="percent"),
)


@dataclass(frozen=True, repr=False)
class Equivalence:
    """What a certification found.

    Parameters
    ----------
    model : str
        Digest of the receiving model.
    swaps : tuple of Swap
        All swapped together, in the order of the chain.
    judgement : Judgement
    evidence : Evidence
        The swapped chain against the model, both in float32.
    floor, int8 : Evidence
        The model computed in bfloat16, and from weights rounded to 8 bits, against itself.
    texts, calibration : tuple of dict
        ``domain``, ``digest``; for the texts also ``documents``, ``tokens`` and ``left_out``.
    own : str
        Which of the texts is of the tenant's own domain; empty where that was not told.
    candidates : int
        How many were tried together; p-values are corrected for that.
    settings : dict
        Numbers that the figures depend on.
    code : dict
        Versions of blockzoo, torch and transformers.
    stand_in : str
        Digest of a model whose whole chain stands in, such as a stitched one; then there are no
        swaps. Empty otherwise.
    """

    model: str
    swaps: tuple[Swap, ...]
    judgement: Judgement
    evidence: Evidence
    floor: Evidence
    int8: Evidence
    texts: tuple[Mapping[str, Any], ...]
    calibration: tuple[Mapping[str, Any], ...]
    own: str
    candidates: int
    settings: Mapping[str, Any]
    code: Mapping[str, str] = field(default_factory=lambda: code_version())
    stand_in: str = ""

    @property
    def grade(self) -> Verdict:
        return self.judgement.verdict

    def to_json(self) -> dict[str, Any]:
        data = {
            "format": 1,
            "model": self.model,
            "swaps": [swap.to_json() for swap in self.swaps],
            "judgement": self.judgement.to_json(),
            "evidence": self.evidence.to_json(),
            "floor": self.floor.to_json(),
            "int8": self.int8.to_json(),
            "texts": [dict(text) for text in self.texts],
            "calibration": [dict(text) for text in self.calibration],
            "own": self.own,
            "candidates": self.candidates,
            "settings": dict(self.settings),
            "code": dict(self.code),
        }
        return data | ({"stand_in": self.stand_in} if self.stand_in else {})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Equivalence:
        return cls(
            data["model"],
            tuple(Swap.from_json(swap) for swap in data["swaps"]),
            Judgement(**data["judgement"]),
            Evidence.from_json(data["evidence"]),
            Evidence.from_json(data["floor"]),
            Evidence.from_json(data["int8"]),
            tuple(data["texts"]),
            tuple(data["calibration"]),
            data["own"],
            data["candidates"],
            data["settings"],
            data["code"],
            data.get("stand_in", ""),
        )

    @cached_property
    def encoded(self) -> bytes:
        return canonical_json(self.to_json())

    @cached_property
    def digest(self) -> str:
        return bytes_digest(self.encoded)

    def heading(self) -> str:
        """What was certified and what came of it, in a few lines."""
        short = self.digest[:SHORT_DIGEST]
        lines = [f"equivalence {short}: {self.grade}; {self.judgement.why}"]
        lines += [
            f"  in {self.model[:SHORT_DIGEST]}, {swap.hop}: {swap.by[:SHORT_DIGEST]} "
            f"({swap.donor_hop} of {swap.donor[:SHORT_DIGEST]}) for {swap.block[:SHORT_DIGEST]}"
            + (" with a compact difference" if swap.adapters else "")
            for swap in self.swaps[:_SHOWN]
        ]
        if len(self.swaps) > _SHOWN:
            lines.append(f"  and so on at {len(self.swaps) - _SHOWN} more places")
        if self.stand_in:
            whole = self.stand_in[:SHORT_DIGEST]
            lines.append(f"  for {self.model[:SHORT_DIGEST]}: the whole chain of {whole}")
        if self.candidates > 1:
            lines.append(f"  one of {self.candidates} candidates (Holm)")
        if not self.own:
            lines.append("  none of the texts is said to be of the tenant's own domain")
        else:
            lines.append(f"  the tenant's own domain: {self.own}")
        return "\n".join(lines)

    def table(self) -> Table:
        """Figures by domain, and the model's own rounding as a scale."""
        rows: list[dict[str, Any]] = [
            {"what": "swapped", "text": name, **figures.to_json()}
            for name, figures in self.evidence.domains.items()
        ]
        for what, evidence in (
            ("swapped", self.evidence), ("its bf16", self.floor), ("its int8", self.int8)
        ):  # fmt: skip
            rows.append({"what": what, "text": "together", **evidence.together.to_json()})
        versions = ", ".join(f"{name} {version}" for name, version in self.code.items())
        note = f"KL in nats a token, one-sided 95% bounds by document; worst: {self.evidence.worst}"
        return Table("", _COLUMNS, rows, f"{note}; {versions}")

    def __repr__(self) -> str:
        return f"{self.heading()}\n{self.table().to_text()}"

    def _repr_html_(self) -> str:
        lines = "".join(f"<div>{html.text(line)}</div>" for line in self.heading().split("\n"))
        return html.page(lines + self.table().to_html())


def code_version() -> dict[str, str]:
    """The versions of what computes a certification, and a digest of its source."""
    found = {"source": _source_digest()}
    for name in ("blockzoo", "torch", "transformers"):
        if name in sys.modules:
            found[name] = str(sys.modules[name].__version__)
    return found


@cache
def _source_digest() -> str:
    root = Path(__file__).parents[1]
    files = sorted(file for part in _SOURCES for file in (root / part).rglob("*.py"))
    return bytes_digest(b"".join(file.read_bytes() for file in files))[:SHORT_DIGEST]
