"""The chains that are proven to stand in for a model: what its certifications allow to be served.

Whoever serves models asks at each request, so what was read once is not read again: a record
never changes, and only folders that did are listed anew. A record that is added meanwhile is
seen the next time somebody asks; one that cannot be read keeps no other from counting. Nothing
here imports torch.
"""

from __future__ import annotations

import os
import re
import time
import warnings
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blockzoo.equivalence.grade import GRADES, Verdict
from blockzoo.equivalence.listing import missing
from blockzoo.equivalence.record import Equivalence
from blockzoo.equivalence.swap import Swap, swapped
from blockzoo.errors import DamagedError, UsageError
from blockzoo.explore.values import SHORT_DIGEST
from blockzoo.records import Model

if TYPE_CHECKING:
    from blockzoo.zoo import Zoo

#: a folder that changed so lately may change again without its time of change telling it
_UNSURE = 2_000_000_000  # nanoseconds

_FILE = re.compile("([0-9a-f]{64})[.]json")


@dataclass(frozen=True)
class CertifiedChain:
    """A chain that may be served in a model's place.

    Parameters
    ----------
    grade : {"A", "B", "C"}
    kl, kl_high : float
        The mean loss in the worst domain of the certificate, in nats a token, and the largest
        of the domains' 95% bounds.
    top1 : float
        The least share, over domains, of tokens whose likeliest successor stays.
    own : str
        Which of the certificate's texts is of the tenant's own domain; empty where none is said
        to be.
    record : str
        The certificate's digest.
    swaps : tuple of Swap
    model : Model
        The chain as a model that runs; it is not a record of any zoo.
    """

    grade: Verdict
    kl: float
    kl_high: float
    top1: float
    own: str
    record: str
    swaps: tuple[Swap, ...] = field(repr=False)
    model: Model = field(repr=False)

    @property
    def name(self) -> str:
        """The grade and the certificate: ``B:0123456789ab``."""
        return f"{self.grade}:{self.record[:SHORT_DIGEST]}"


class Certificates:
    """The records of a zoo by the model they are about.

    Parameters
    ----------
    zoo : Zoo

    Notes
    -----
    Not thread-safe: whoever shares one holds a lock.
    """

    def __init__(self, zoo: Zoo) -> None:
        self._zoo = zoo
        self._root = str(zoo.objects.layout.root / "equivalences")
        self._listed: dict[str, tuple[int, frozenset[str]]] = {}  # by folder: its time, records
        self._records: dict[str, Equivalence] = {}
        self._unread: set[str] = set()  # records that were passed over, and warned of
        self._made: dict[tuple[str, bool], list[CertifiedChain]] = {}

    def chains(self, model: str, at_most: str, *, any_text: bool = False) -> list[CertifiedChain]:
        """`chains` of a model by its whole digest."""
        check_grade(at_most)
        self._refresh()
        return [
            chain
            for chain in self._judged(model, any_text)
            if chain.grade <= at_most and not missing(self._zoo, self._records[chain.record])
        ]

    def _judged(self, model: str, any_text: bool) -> list[CertifiedChain]:
        key = model, any_text
        if key not in self._made:
            records = [r for r in self._records.values() if r.model == model]
            # a whole chain that stands in is a model of its own, and served by its own name
            records = [r for r in records if (r.own or any_text) and not r.stand_in]
            self._made[key] = _judged(self._zoo, model, records) if records else []
        return self._made[key]

    def _refresh(self) -> None:
        """Read the records that have come, and forget those that have gone."""
        now = time.time_ns()
        listed = {}
        for folder in os.scandir(self._root) if os.path.isdir(self._root) else ():
            if not folder.is_dir():
                continue  # a stray file
            changed = folder.stat().st_mtime_ns
            before = self._listed.get(folder.name)
            if before is None or before[0] != changed or changed > now - _UNSURE:
                files = (_FILE.fullmatch(name) for name in os.listdir(folder.path))
                listed[folder.name] = changed, frozenset(file[1] for file in files if file)
            else:
                listed[folder.name] = before
        if listed == self._listed:
            return
        self._listed = listed
        there = frozenset[str]().union(*(digests for _, digests in listed.values()))
        if there != self._records.keys():
            read = {digest: self._read(digest) for digest in there - self._records.keys()}
            known = self._records | {digest: one for digest, one in read.items() if one}
            self._records = {d: record for d, record in known.items() if d in there}
            self._made.clear()

    def _read(self, digest: str) -> Equivalence | None:
        """None where it cannot be read: one damaged record must not keep others from counting."""
        objects = self._zoo.objects
        try:
            return Equivalence.from_json(objects.equivalence(digest))
        except DamagedError as error:
            if objects.find("equivalences", digest) is None:
                return None  # collected since it was listed
            why = error.message
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            why = f"equivalence {digest[:SHORT_DIGEST]} is of another format: {error!r}"
        if digest not in self._unread:
            self._unread.add(digest)
            warnings.warn(
                f"{why}; what it certifies or rejects does not count (see `blockzoo verify`)",
                stacklevel=2,
            )
        return None


def chains(
    zoo: Zoo, name: str, at_most: str = "B", *, any_text: bool = False
) -> list[CertifiedChain]:
    """The chains that are proven to stand in for a model, the least lossy first.

    Parameters
    ----------
    zoo : Zoo
    name : str
    at_most : {"A", "B", "C"}
        The worst grade that is taken.
    any_text : bool
        Take certificates that name no text of the model's own domain, too. What holds on plain
        text need not hold where the model is used.

    Notes
    -----
    Where several certificates are of one chain, the worst of them counts, and one that rejects
    it rules it out. A chain with a block that is no longer in the zoo is left out. A record that
    cannot be read is passed over, with a warning.

    Raises
    ------
    UsageError
        Where `at_most` is no grade.
    NotFoundError
    """
    return Certificates(zoo).chains(zoo.resolve(name), at_most, any_text=any_text)


def check_grade(grade: str) -> None:
    """Raise UsageError where it is none of A, B and C."""
    names = [one.name for one in GRADES]
    if grade not in names:
        raise UsageError(f"there is no grade {grade!r}", hint=f"there are {', '.join(names)}")


def _judged(zoo: Zoo, digest: str, records: list[Equivalence]) -> list[CertifiedChain]:
    """One of each chain, by the worst of its certificates."""
    if zoo.objects.find("models", digest) is None:
        return []
    model = zoo.objects.model(digest)
    by_chain: dict[str, list[CertifiedChain]] = defaultdict(list)
    for record in records:
        if record.judgement.verdict != "inconclusive":  # which tells nothing
            chain = _chain(model, record)
            by_chain[chain.model.digest].append(chain)
    worst = [max(some, key=lambda chain: (chain.grade, chain.kl)) for some in by_chain.values()]
    passed = [chain for chain in worst if chain.grade in ("A", "B", "C")]
    return sorted(passed, key=lambda chain: (chain.kl, chain.record))


def _chain(model: Model, record: Equivalence) -> CertifiedChain:
    domains = record.evidence.domains.values()
    return CertifiedChain(
        record.grade,
        max(figures.kl for figures in domains),
        max(figures.kl_high for figures in domains),
        min(figures.top1 for figures in domains),
        record.own,
        record.digest,
        record.swaps,
        swapped(model, record.swaps),
    )
