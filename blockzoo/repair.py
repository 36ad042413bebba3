"""Restoring damaged and missing objects from another zoo or from an original folder.

Nothing damaged is deleted before its good bytes stand in its place. What cannot be restored is
reported as it was.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from blockzoo.errors import DamagedError, NotFoundError
from blockzoo.progress import Progress
from blockzoo.records import Model
from blockzoo.store import durable
from blockzoo.store.check import Problem, Report
from blockzoo.store.layout import Layout, write_marker
from blockzoo.store.refs import tagged
from blockzoo.store.session import Session
from blockzoo.tensors import canonical_json

if TYPE_CHECKING:
    from blockzoo.zoo import Zoo

_DAMAGED_DIGITS = 8  # of 64, in which a damaged digest may differ and still be known again
_PASSES = 6  # a restored record may name objects that are missing too: model, base, blocks, tensors


def repair(zoo: Zoo, source: Path, progress: Progress) -> Report:
    """Check the zoo, restore what `source` has, and check again.

    Parameters
    ----------
    source : Path
        Another zoo (a folder with a ``zoo.json``), or the folder that a model came from.

    Returns
    -------
    Report
        ``problems`` are those that remain.
    """
    first = report = zoo.verify(progress)
    for _ in range(_PASSES):
        if report.ok:
            break
        if (source / "zoo.json").exists():
            _from_zoo(zoo, source, report.problems)
        else:
            _from_folder(zoo, source, report.problems, progress)
        before, report = report, zoo.verify(progress)
        if {_key(p) for p in report.problems} == {_key(p) for p in before.problems}:
            break
    left = {_key(p) for p in report.problems}
    return replace(report, repaired=tuple(p for p in first.problems if _key(p) not in left))


def open_damaged(path: Path) -> Zoo:
    """Open a zoo, writing its ``zoo.json`` anew where that is damaged.

    Raises
    ------
    NoZooError, ZooVersionError
    """
    from blockzoo.zoo import Zoo

    try:
        return Zoo(path, create=False)
    except DamagedError:
        write_marker(Layout(path), replace=True)
        return Zoo(path, create=False)


def _key(problem: Problem) -> tuple[str, str]:
    return problem.folder, problem.digest


def _from_zoo(zoo: Zoo, source: Path, problems: Iterable[Problem]) -> None:
    from blockzoo.zoo import Zoo

    other = Zoo(source, create=False)
    with Session(zoo.objects, map(_key, problems)) as session:
        for problem in problems:
            try:
                _copy(other, session, problem)
            except (DamagedError, NotFoundError):
                continue  # the other zoo does not have it, or has it damaged too
        session.commit()
    for problem in problems:
        if problem.folder == "refs" and problem.path:
            twin = other.objects.layout.refs / problem.path.relative_to(zoo.refs.root)
            if twin.exists() and _alike(problem.path.read_bytes(), _told(twin.read_bytes())):
                _replace_ref(zoo, problem.path, twin.read_bytes())


def _copy(other: Zoo, session: Session, problem: Problem) -> None:
    if problem.folder == "tensors":
        session.tensor(*other.objects.tensor(problem.digest))
    elif problem.folder == "files":
        session.file(other.objects.file(problem.digest))
    elif problem.folder == "blocks":
        session.block(other.objects.block(problem.digest))
    elif problem.folder == "models":
        session.model(other.objects.model(problem.digest))
    elif problem.folder == "equivalences":
        record = other.objects.equivalence(problem.digest)
        session.equivalence(problem.digest, canonical_json(record))


def _from_folder(zoo: Zoo, source: Path, problems: Iterable[Problem], progress: Progress) -> None:
    """Take the checkpoint in once more, trusting no damaged object; no name moves."""
    from blockzoo.ingest import Intake

    with Session(zoo.objects, map(_key, problems)) as session:
        intake = Intake(
            session,
            source,
            zoo.find_base,
            base=None,
            detached=True,
            progress=progress,
            what=source.name,
        )
        model = intake.run()
        session.commit()
    for problem in problems:
        if problem.folder == "refs" and problem.path:
            _reset_ref(zoo, problem, model, source)


def _replace_ref(zoo: Zoo, path: Path, data: bytes) -> None:
    durable.replace(path, data, zoo.refs.staging / f"ref-{uuid.uuid4().hex}")
    # a copy that is damaged too is found by the next pass, and stays reported


def _reset_ref(zoo: Zoo, problem: Problem, model: Model, source: Path) -> None:
    """Let a damaged entry point to the folder's model, if it did so before."""
    assert problem.path is not None
    name, _, number = problem.digest.rpartition("@")
    damaged = problem.path.read_bytes()
    named_so = name.rpartition("/")[2] == source.name
    if not _alike(damaged, [model.digest.encode()]) or not (named_so or _told(damaged)):
        return  # this folder is not what the entry pointed to
    zoo.refs.rewrite(name, int(number), tagged(model), "repair", str(source.resolve()))


def _told(entry: bytes) -> list[bytes]:
    """The digests in an entry's file, sound or not."""
    return re.findall(rb'"digest":"([^"]{64})"', entry)


def _alike(damaged: bytes, digests: Iterable[bytes]) -> bool:
    """Whether a damaged entry may have pointed to one of these models, as far as it still tells."""
    told, known = _told(damaged), list(digests)
    return not told or any(
        sum(a != b for a, b in zip(one, other, strict=True)) <= _DAMAGED_DIGITS
        for one in told
        for other in known
    )
