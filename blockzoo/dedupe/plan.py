"""A plan that makes the zoo smaller without loss: shown first, then executed, undone at will.

A plan says which tensor is kept as a difference from which, or as planes by itself, and what
that takes, estimated by coding a sample of each. Executing it changes how tensors are kept and
nothing else: no digest, no block, no model. It can be killed at any moment and run again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from blockzoo.errors import DamagedError, UsageError
from blockzoo.progress import Progress, silent

if TYPE_CHECKING:
    from blockzoo.dedupe.repack import Change
    from blockzoo.explore.table import Table
    from blockzoo.store.session import Session
    from blockzoo.zoo import Zoo

Level = Literal["fast", "small"]
_FORMAT = 1
_BATCH = 64  # steps, or
_BATCH_BYTES = 256 << 20  # of tensors, between one flush and the next
_THREADS = (os.cpu_count() or 1) + 2  # some wait for the disk


@dataclass(frozen=True)
class Step:
    """What becomes of one tensor.

    Parameters
    ----------
    tensor : str
        Digest.
    name : str
        Where it stands, such as ``math-full layers.3.mlp mlp.up_proj.weight``.
    codec : str
        Suffix of the kind it will be kept in; that of raw files for an undo.
    reference : str
        The digest of the tensor it becomes a difference from; "" for none.
    distance : float
        Estimated relative distance to the reference.
    before, after : int
        Bytes of its file, the second estimated.
    """

    tensor: str
    name: str
    codec: str
    reference: str
    distance: float
    before: int
    after: int


@dataclass(frozen=True)
class Plan:
    """Steps towards a smaller zoo (or, for an undo, a raw one).

    Parameters
    ----------
    level : {"fast", "small"}
    steps : tuple of Step
    references : int
        How many tensors others differ from.
    untouched : int
        Bytes of the tensors that stay as they are.
    """

    zoo: Zoo = field(repr=False)
    level: Level
    steps: tuple[Step, ...]
    references: int
    untouched: int

    @property
    def before(self) -> int:
        return self.untouched + sum(step.before for step in self.steps)

    @property
    def after(self) -> int:
        return self.untouched + sum(step.after for step in self.steps)

    def table(self) -> Table:
        """A row for each model and kind: tensors, bytes before and after."""
        from blockzoo.explore.table import Column, Table
        from blockzoo.explore.values import format_bytes, format_percent

        columns = (
            Column("model"),
            Column("kept_as", "kept as"),
            Column("tensors", kind="int"),
            Column("before", kind="bytes"),
            Column("after", kind="bytes"),
            Column("share", "of before", kind="percent"),
        )
        groups: dict[tuple[str, str], list[Step]] = {}
        for step in self.steps:
            groups.setdefault((step.name.split(" ")[0], step.codec.lstrip(".")), []).append(step)
        rows = []
        for (model, codec), steps in sorted(groups.items()):
            before, after = sum(s.before for s in steps), sum(s.after for s in steps)
            row = {"model": model, "kept_as": codec, "tensors": len(steps)}
            rows.append(row | {"before": before, "after": after, "share": after / before})
        saved = 1 - self.after / self.before if self.before else 0.0
        note = (
            f"tensors: {format_bytes(self.before)} now, about {format_bytes(self.after)} then "
            f"({format_percent(saved)} less); {self.references} serve as references"
        )
        return Table("plan", columns, rows, note)

    def to_json(self) -> dict[str, Any]:
        """Everything, under stable keys; `load` reads it."""
        return {
            "format": _FORMAT,
            "zoo": self.zoo.id,
            "level": self.level,
            "before": self.before,
            "after": self.after,
            "references": self.references,
            "untouched": self.untouched,
            "steps": [asdict(step) for step in self.steps],
        }

    def save(self, path: str | Path) -> None:
        """Write the plan to a file, to be read and executed later."""
        Path(path).write_text(json.dumps(self.to_json(), indent=1) + "\n")

    def execute(self, progress: Progress = silent) -> Done:
        """Do it, several tensors at once; may be interrupted and run again.

        A step whose tensor or reference is gone, or is not kept as it was, is passed over; so
        is one that would make a difference of what others have come to differ from.
        """
        from blockzoo.dedupe import repack
        from blockzoo.store.reach import reach, roots
        from blockzoo.store.session import Session

        used = set(reach(self.zoo.objects, roots(self.zoo.refs)).references.values())
        sound = [step for step in self.steps if not (step.reference and step.tensor in used)]
        total, seen = sum(step.before for step in sound), 0
        before = after = 0
        with Session(self.zoo.objects) as session, ThreadPoolExecutor(_THREADS) as pool:
            try:
                for steps in batched(sound):
                    changes = []
                    found = pool.map(partial(_change, session, self.level), steps)
                    for step, change in zip(steps, found, strict=True):
                        changes += [change] if change else []
                        seen += step.before
                        progress("dedupe", seen, total, 0)
                    repack.settle(session, changes)
                    before += sum(change.before for change in changes)
                    after += sum(change.after for change in changes)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return Done(before, after)

    def __repr__(self) -> str:
        return self.table().to_text()

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


@dataclass(frozen=True)
class Done:
    """What an executed plan did: bytes of the tensors it was about, before and after."""

    before: int
    after: int


def batched(steps: Sequence[Step]) -> Iterator[Sequence[Step]]:
    """Cut steps into runs of some files and bytes, which are brought to the disk together."""
    batch: list[Step] = []
    for step in steps:
        batch.append(step)
        if len(batch) == _BATCH or sum(s.before for s in batch) > _BATCH_BYTES:
            yield batch
            batch = []
    yield batch


def _change(session: Session, level: Level, step: Step) -> Change | None:
    """What a step comes to; None where it is done, or the zoo is no longer as it was."""
    from blockzoo.codecs import PACKED
    from blockzoo.dedupe import repack

    try:
        if step.codec not in PACKED:
            return repack.unpack(session, step.tensor)
        repack.finish(session, step.tensor)
        return repack.pack(
            session, step.tensor, codec=step.codec, level=level, reference=step.reference
        )
    except DamagedError:
        return None


def load(zoo: Zoo, path: str | Path) -> Plan:
    """Read a plan that `Plan.save` wrote.

    Raises
    ------
    UsageError
        Where it is no plan, or one for another zoo.
    """
    try:
        data = json.loads(Path(path).read_bytes())
        steps = tuple(Step(**step) for step in data["steps"])
        if data["format"] != _FORMAT or data["level"] not in ("fast", "small"):
            raise ValueError("written by another version")
        plan = Plan(zoo, data["level"], steps, int(data["references"]), int(data["untouched"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no plan: {error}") from error
    if data["zoo"] != zoo.id:
        raise UsageError(
            f"{path} is a plan for another zoo", hint="make one with `blockzoo dedupe --plan FILE`"
        )
    return plan


def names_of(zoo: Zoo, models: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """For each tensor one place where it stands: ``model hop name``; the first model's by name."""
    places: dict[str, str] = {}
    ordered = sorted((min(names), digest) for digest, names in models.items())
    for name, digest in ordered:
        model = zoo.objects.model(digest)
        blocks = zoo.blocks_of(model)
        for hop in model.chain:
            for block in filter(None, (hop.block, *hop.adapters)):
                for local, ref in blocks[block].tensors.items():
                    short = name.removesuffix(":latest")
                    places.setdefault(ref.digest, f"{short} {hop.name} {local}")
    return places
