"""What came of stitching two models: what was made, and what it is worth on held-out text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from blockzoo.equivalence.stitch_controls import CLEARLY
from blockzoo.explore import html
from blockzoo.explore.table import Column, Table

if TYPE_CHECKING:
    from blockzoo.equivalence.record import Equivalence
    from blockzoo.equivalence.stitch_fit import Position


@dataclass(frozen=True, repr=False)
class Stitched:
    """What came of stitching.

    Parameters
    ----------
    name, digest : str
        The model's.
    block : str
        Digest of the stitch.
    source, target : str
        Names of the models it was made of.
    at : (int, int)
        After how many layers of the source, before which layer of the target.
    positions : tuple of (int, int)
        What the stitch was fitted for; every pair of their depths will do.
    parameters : int
        Numbers in the stitch.
    seconds : dict of str to float
        What fitting took: ``"fit"``, and ``"controls"``.
    settings : dict
        Of the fit; empty where an earlier stitch was used.
    calibration_tokens : int
    perplexity : dict of str to dict of str to float
        By chain (``"source"``, ``"target"``, ``"stitched"`` and each control), then by text and
        ``"together"``.
    margins : dict of str to float
        By how many nats a token each control is worse than the stitched chain, at least (95%).
    record : Equivalence or None
        What it costs as a stand-in for the target; None where there was no text.
    """

    name: str
    digest: str
    block: str
    source: str
    target: str
    at: Position
    positions: tuple[Position, ...]
    parameters: int
    seconds: Mapping[str, float]
    settings: Mapping[str, Any]
    calibration_tokens: int
    perplexity: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    margins: Mapping[str, float] = field(default_factory=dict)
    record: Equivalence | None = None

    @property
    def lost(self) -> bool:
        """Whether every control that was fitted lost clearly; True where there were none."""
        return all(margin >= CLEARLY for margin in self.margins.values())

    def to_json(self) -> dict[str, Any]:
        data = {key: value for key, value in vars(self).items() if key != "record"}
        data |= {"at": list(self.at), "positions": [list(p) for p in self.positions]}
        record = self.record
        told = {"digest": record.digest, **record.to_json()} if record is not None else None
        return {**data, "controls_lost": self.lost, "record": told}

    def heading(self) -> str:
        """What was made, in a few lines."""
        source, target = self.at
        lines = [
            f"{self.name} is {self.digest[:12]}: {self.source}'s first {source} layers, a stitch "
            f"of {self.parameters:,} numbers ({self.block[:12]}), {self.target} from layer "
            f"{target} on"
        ]
        if self.settings:
            lines.append(
                f"fitted on {self.calibration_tokens:,} tokens in {self.seconds['fit']:.0f} s, for "
                + ", ".join(f"{a}:{b}" for a, b in self.positions)
            )
        if not self.perplexity:
            lines.append("nothing was measured: there was no held-out text")
        for name, margin in self.margins.items():
            if margin < CLEARLY:
                lines.append(
                    f"the control {name!r} has not lost clearly (by {margin:.3f} nats a token at "
                    f"least, where {CLEARLY} are wanted): the stitch may be doing the work alone"
                )
        return "\n".join(lines)

    def table(self) -> Table:
        """Perplexities, by chain and text."""
        names = {"source": self.source, "target": self.target, "stitched": self.name}
        rows = [
            {"chain": names.get(key, f"control: {key}"), **figures,
             "margin": self.margins.get(key)}
            for key, figures in self.perplexity.items()
        ]  # fmt: skip
        texts = [text for text in next(iter(self.perplexity.values()), {}) if text != "together"]
        columns = [Column("chain"), Column("together", kind="float")]
        columns += [Column(text, kind="float") for text in texts]
        if self.margins:
            columns.append(Column("margin", "worse by nats, at least", kind="float"))
        return Table("perplexity on held-out text", tuple(columns), rows)

    def __repr__(self) -> str:
        parts = [self.heading()]
        parts += [self.table().to_text()] if self.perplexity else []
        parts += [repr(self.record)] if self.record is not None else []
        return "\n".join(parts)

    def _repr_html_(self) -> str:
        lines = "".join(f"<div>{html.text(line)}</div>" for line in self.heading().split("\n"))
        shown = self.table().to_html() if self.perplexity else ""
        more = self.record._repr_html_() if self.record is not None else ""
        return html.page(lines + shown) + more
