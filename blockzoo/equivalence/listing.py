"""The certifications in a zoo: one by its digest, and all as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blockzoo.equivalence.record import Equivalence
from blockzoo.errors import DamagedError, UsageError
from blockzoo.explore.table import Column, Table
from blockzoo.store.reach import first_names

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
    evidence = zoo.model(name).evidence if name is not None else ""
    names = first_names(zoo.refs)
    rows = []
    for found in zoo.objects.all("equivalences"):
        try:
            record = Equivalence.from_json(zoo.objects.equivalence(found.digest))
        except DamagedError:
            if zoo.objects.find("equivalences", found.digest) is None:
                continue  # collected since it was listed
            raise
        if wanted in (None, record.model) or found.digest == evidence:
            rows.append(_row(zoo, record, names))
    rows.sort(key=lambda row: (row["model"], row["swaps"], row["equivalence"]))
    return Table("equivalences" if name is None else f"equivalences of {name}", _COLUMNS, rows)


def find(zoo: Zoo, digits: str) -> Equivalence | None:
    """The record whose digest begins so; None where there is none."""
    if len(digits) < 8 or not set(digits) <= set("0123456789abcdef"):
        return None
    found = [o.digest for o in zoo.objects.all("equivalences") if o.digest.startswith(digits)]
    if len(found) > 1:
        raise UsageError(f"{digits} begins {len(found)} records' digests", hint="give more digits")
    return Equivalence.from_json(zoo.objects.equivalence(found[0])) if found else None


def missing(zoo: Zoo, record: Equivalence) -> list[str]:
    """What a record speaks of that is no longer in the zoo, in words."""
    gone = []
    if zoo.objects.find("models", record.model) is None:
        gone.append(f"model {record.model[:12]}")
    if record.stand_in and zoo.objects.find("models", record.stand_in) is None:
        gone.append(f"model {record.stand_in[:12]}")
    for swap in record.swaps:
        for digest in (swap.block, swap.by, *swap.adapters):
            if zoo.objects.find("blocks", digest) is None:
                gone.append(f"block {digest[:12]} at {swap.hop}")
    return gone


def _row(zoo: Zoo, record: Equivalence, names: dict[str, str]) -> dict[str, Any]:
    figures = record.evidence.together
    swaps = [
        f"{swap.hop}={names.get(swap.donor, swap.donor[:12])}"
        + (f"@{swap.donor_hop}" if swap.donor_hop != swap.hop else "")
        for swap in record.swaps
    ]
    if record.stand_in:
        swaps = [f"all={names.get(record.stand_in, record.stand_in[:12])}"]
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
