"""All the certifications in a zoo, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blockzoo.equivalence.certify import missing
from blockzoo.equivalence.record import Equivalence
from blockzoo.explore.table import Column, Table
from blockzoo.store.reach import roots
from blockzoo.store.refs import LATEST

if TYPE_CHECKING:
    from blockzoo.zoo import Zoo

_SHOWN = 2  # swaps of a chain
_COLUMNS = (
    Column("equivalence", kind="digest"),
    Column("model"),
    Column("what", "swaps"),
    Column("grade"),
    Column("kl", "mean KL", kind="ratio"),
    Column("worst", "worst at most", kind="ratio"),
    Column("top1", "top-1", kind="percent"),
    Column("texts"),
    Column("own", "own domain"),
    Column("gone"),
)


def equivalences(zoo: Zoo, name: str | None = None) -> Table:
    """The records of one model, or of all, by model and hop.

    ``gone`` names what a record speaks of that is no longer in the zoo.
    """
    wanted = zoo.resolve(name) if name is not None else None
    names = {d: min(found).removesuffix(f":{LATEST}") for d, found in roots(zoo.refs).items()}
    rows = []
    for found in zoo.objects.all("equivalences"):
        record = Equivalence.from_json(zoo.objects.equivalence(found.digest))
        if wanted in (None, record.model):
            rows.append(_row(zoo, record, names))
    rows.sort(key=lambda row: (row["model"], row["swaps"], row["equivalence"]))
    return Table("equivalences" if name is None else f"equivalences of {name}", _COLUMNS, rows)


def _row(zoo: Zoo, record: Equivalence, names: dict[str, str]) -> dict[str, Any]:
    figures = record.evidence.together
    swaps = [
        f"{swap.hop}={names.get(swap.donor, swap.donor[:12])}"
        + (f":{swap.donor_hop}" if swap.donor_hop != swap.hop else "")
        for swap in record.swaps
    ]
    more = f" and {len(swaps) - _SHOWN} more" if len(swaps) > _SHOWN else ""
    return {
        "equivalence": record.digest,
        "model": names.get(record.model, record.model[:12]),
        "what": ", ".join(swaps[:_SHOWN]) + more,
        "swaps": swaps,
        "grade": record.grade,
        "kl": figures.kl,
        "worst": max(f.kl_high for f in record.evidence.domains.values()),
        "top1": figures.top1,
        "texts": [text["domain"] for text in record.texts],
        "own": record.own,
        "gone": missing(zoo, record),
    }
