"""A plan to keep a model as what it differs by from its base: points to choose from, and the cost.

The points form a frontier: fewer bytes, more loss. Some are certified, on text that had no part
in making them; the plan proposes the cheapest that has the grade asked for. Executing it gives
the model a new version under the same name; the exact one stays in the name's history until it
is collected, and `revert` returns to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from blockzoo.compact.laying import Laid
from blockzoo.compact.trial import Loss
from blockzoo.compact.version import keep_version
from blockzoo.errors import BlockzooError
from blockzoo.explore.table import Column, Table

if TYPE_CHECKING:
    from blockzoo.equivalence.record import Equivalence
    from blockzoo.explore.dendrogram import Drawing
    from blockzoo.zoo import Zoo

_COLUMNS = (
    Column("number", "", kind="int"),
    Column("stored", "stored", kind="bytes"),
    Column("resident", "in memory", kind="bytes"),
    Column("step", "read a step", kind="bytes"),
    Column("kl", "mean KL", kind="ratio"),
    Column("top1", "top-1", kind="percent"),
    Column("grade", "certified"),
    Column("kept", "what is kept"),
)


@dataclass(frozen=True)
class Bytes:
    """What a model takes beyond its base.

    Parameters
    ----------
    stored : int
        In the zoo, raw.
    resident : int
        In memory when it is served.
    step : int
        Read by a step that it takes part in.
    """

    stored: int
    resident: int
    step: int

    def to_json(self) -> dict[str, int]:
        return dict(vars(self))


@dataclass(frozen=True)
class Point:
    """One way to keep the model.

    Parameters
    ----------
    laid : Laid
    counts : dict of str to int
        How many matrices are kept in which way.
    bytes : Bytes
    loss : Loss
        On calibration text that nothing was fitted on; the worst domain's.
    record : Equivalence or None
        Its certification, where it was certified.
    """

    laid: Laid = field(repr=False)
    counts: Mapping[str, int]
    bytes: Bytes
    loss: Loss
    record: Equivalence | None = field(default=None, repr=False)

    @property
    def grade(self) -> str:
        return self.record.grade if self.record is not None else ""

    @property
    def kept(self) -> str:
        """Such as ``40 × 2 bits, 3 × none``."""
        return ", ".join(f"{count} × {name}" for name, count in self.counts.items()) or "the base's"

    def to_json(self) -> dict[str, Any]:
        return {
            **self.bytes.to_json(),
            **vars(self.loss),
            "grade": self.grade,
            "record": self.record.digest if self.record is not None else "",
            "kept": dict(self.counts),
            "kept_as": self.kept,
        }


@dataclass(frozen=True, repr=False)
class CompactPlan:
    """What a model can be kept as.

    Parameters
    ----------
    name, base : str
        The model's name and its base's; empty where blocks of any model may stand in.
    digest : str
        The model that was measured.
    exact : Bytes
        What it takes now.
    points : tuple of Point
        From the most bytes to the fewest.
    wanted : str
        The grade asked for.
    """

    zoo: Zoo
    name: str
    base: str
    digest: str
    exact: Bytes
    points: tuple[Point, ...]
    wanted: str

    @property
    def chosen(self) -> Point | None:
        """The point that is proposed; None where none has the grade, or none saves anything."""
        good = [
            point
            for point in self.points
            if point.record is not None
            and point.record.judgement.at_least(self.wanted)
            and point.bytes.resident < self.exact.resident
        ]
        return min(good, key=lambda point: point.bytes.resident, default=None)

    def table(self) -> Table:
        """The frontier, the proposed point marked."""
        rows: list[dict[str, Any]] = [
            {
                "number": 0,
                **self.exact.to_json(),
                "kl": 0.0,
                "top1": 1.0,
                "grade": "",
                "kept": "exact",
            }
        ]
        chosen = self.chosen
        for number, point in enumerate(self.points, 1):
            row = {"number": number, **point.to_json(), "kept": point.kept}
            if point is chosen:
                row["grade"] = f"{point.grade}  ← proposed"
            rows.append(row)
        beyond = f"beyond {self.base}'s" if self.base else "that no other model has"
        note = (
            f"bytes {beyond}; KL and top-1 on calibration text, worst domain; "
            "certified on other text"
        )
        if chosen is None:
            note += f"; no point that saves anything is certified {self.wanted} or better"
        title = f"{self.name} as what it differs by from {self.base}"
        if not self.base:
            title = f"{self.name} with other models' blocks"
        return Table(title, _COLUMNS, rows, note)

    def drawing(self) -> Drawing:
        """Loss against bytes."""
        from blockzoo.explore.frontier import frontier

        series = {
            "in memory": [(p.bytes.resident, p.loss.kl) for p in self.points],
            "stored": [(p.bytes.stored, p.loss.kl) for p in self.points],
            "read a step": [(p.bytes.step, p.loss.kl) for p in self.points],
        }
        marked = [(p.bytes.resident, p.loss.kl, p.grade) for p in self.points if p.record]
        return frontier(f"{self.name}: loss by its own bytes", series, marked)

    def execute(self, *, beside: bool = False) -> str:
        """Keep the proposed point.

        Parameters
        ----------
        beside : bool
            Leave the name where it is: every certified point becomes a chain that may stand in
            for the model (``assembly="at_most:B"``).

        Returns
        -------
        str
            The digest of the model that the name points to now.

        Raises
        ------
        BlockzooError
            Where nothing is proposed, or the name was moved meanwhile.
        """
        chosen = self.chosen
        if chosen is None or chosen.record is None:
            raise BlockzooError(
                f"nothing to be kept of {self.name}: no point that saves anything is certified "
                f"{self.wanted} or better",
                hint="ask for another --grade, or give more text to certify on",
            )
        kept = (
            [p for p in self.points if p.record is not None and p.record.judgement.passed]
            if beside
            else [chosen]
        )
        return keep_version(self.zoo, self.name, self.digest, kept, beside=beside)

    def to_json(self) -> dict[str, Any]:
        chosen = self.chosen
        return {
            "name": self.name,
            "base": self.base,
            "model": self.digest,
            "wanted": self.wanted,
            "exact": self.exact.to_json(),
            "points": [point.to_json() for point in self.points],
            "chosen": self.points.index(chosen) if chosen is not None else None,
        }

    def __repr__(self) -> str:
        return self.table().to_text()

    def _repr_html_(self) -> str:
        return self.table().to_html() + self.drawing().svg


def counted(names: list[str]) -> dict[str, int]:
    """How many of each, the most frequent first."""
    return dict(Counter(names).most_common())
