"""Which points of a frontier are tried for which grade, and their certification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from blockzoo.compact.plan import Point
from blockzoo.compact.trial import Loss
from blockzoo.equivalence import texts
from blockzoo.equivalence.certify import Paths, certify, paths_of
from blockzoo.equivalence.grade import GRADES, Grade
from blockzoo.errors import BlockzooError
from blockzoo.execution.texts import Text, read_text
from blockzoo.progress import Progress
from blockzoo.records import Model
from blockzoo.store.session import Session

if TYPE_CHECKING:
    from blockzoo.zoo import Zoo

#: share of a grade's bound on KL, and on what changes of top-1, that a point may come to on
#: calibration text to be tried for it
_LIKELY = (0.8, 0.9)
#: of what the likely one loses, what a safer one that is tried beside it may lose
_SAFER = 0.5


def check_apart(
    zoo: Zoo,
    model: Model,
    chosen_on: Sequence[Text],
    text: Paths,
    own: str | Path | None,
    tokens: int,
) -> None:
    """Refuse texts that cannot certify before an hour is spent on what they should."""
    files = [*paths_of(text), *([own] if own is not None else [])]
    found = [read_text(path) for path in dict.fromkeys(Path(file).resolve() for file in files)]
    texts.take_samples(found, chosen_on, zoo.tokenizer(model), tokens)


def grades_of(wanted: str) -> list[Grade]:
    """The grades that are as good as the one asked for."""
    return [grade for grade in GRADES if grade.name <= wanted]


def is_likely(loss: Loss, grade: Grade) -> bool:
    """Whether a chain of such a loss on calibration text is likely to hold a grade."""
    kl, changed = _LIKELY
    return loss.kl <= kl * grade.kl and 1 - loss.top1 <= changed * (1 - grade.top1)


def _tried(points: Sequence[Point], grade: Grade) -> set[int]:
    """The cheapest point that is likely to hold a grade, and the cheapest that is much safer."""
    likely = [i for i, point in enumerate(points) if is_likely(point.loss, grade)]
    if not likely:
        return set()
    first = min(likely, key=lambda i: points[i].bytes.resident)
    kl, changed = points[first].loss.kl, 1 - points[first].loss.top1
    safer = [
        i
        for i in likely
        if points[i].loss.kl <= _SAFER * kl and 1 - points[i].loss.top1 <= _SAFER * changed
    ]
    return {first, *sorted(safer, key=lambda i: points[i].bytes.resident)[:1]}


def certify_points(
    zoo: Zoo,
    name: str,
    points: Sequence[Point],
    grade: str,
    text: Paths,
    own: str | Path | None,
    calibration: Paths,
    tokens: int,
    progress: Progress,
) -> list[Point]:
    """The points, the likely ones for each grade with their certification.

    What is likely is told from calibration text that nothing was fitted on; all are certified
    together on other text, and Holm's correction stands over them.
    """
    tried: set[int] = set()
    for one in grades_of(grade):
        tried |= _tried(points, one)
    order = sorted(tried)
    if not order:
        return list(points)
    with Session(zoo.objects) as session:
        for number in order:
            points[number].laid.keep(session)
        if not session.commit():
            raise BlockzooError("the zoo was collected meanwhile", hint="run it again")
    swaps = [points[number].laid.swaps for number in order]
    records = certify(
        zoo, name, swaps, text, own=own, calibration=calibration, tokens=tokens, keep=False,
        progress=progress,
    )  # fmt: skip
    found = dict(zip(order, records, strict=True))
    return [replace(point, record=found.get(i)) for i, point in enumerate(points)]
