"""Taking checkpoints in together: their names, one session for all, and the names set last.

Called by :meth:`blockzoo.zoo.Zoo.ingest` and ``ingest_all``. Reading a checkpoint is `ingest`'s
work; here is what makes it stand under a name, whatever else happens to the zoo meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from blockzoo.errors import BlockzooError, DamagedError, SourceError
from blockzoo.ingest import Base, Intake, attach, base_names, default_name
from blockzoo.progress import Progress
from blockzoo.records import Model
from blockzoo.store.mapping import raise_open_file_limit
from blockzoo.store.refs import LATEST, split_name, tagged
from blockzoo.store.session import NameLock, Session

if TYPE_CHECKING:
    from blockzoo.dedupe.incoming import Incoming
    from blockzoo.dedupe.plan import Level
    from blockzoo.zoo import Zoo

_TRIES = 5  # of an ingest whose objects a collection takes away at the same time
_NAMES_AT_ONCE = 8  # that are set: a journal takes several in one go
_TOGETHER = 64  # checkpoints that are open at once

Failed = Callable[[str, Exception], None]


@dataclass(frozen=True)
class Ingested:
    """What an ingest did.

    Parameters
    ----------
    name, digest, kind : str
    bytes : int
        Of the original files.
    new_bytes : int
        Of the tensors that the zoo did not have before.
    seconds : float
        With its share, by new bytes, of what was done for several at once.
    already : bool
        Whether this very model was under this name before.
    detached : bool
        Whether it is an adapter that waits for its base.
    attached : tuple of str
        Names of adapters that waited for this model and are attached to it now.
    notes : tuple of str
        Sentences about what is unusual.
    """

    name: str
    digest: str
    kind: str
    bytes: int
    new_bytes: int
    seconds: float
    already: bool
    detached: bool = False
    attached: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class _Arrival:
    """A checkpoint on its way to a name."""

    source: str
    path: Path
    name: str
    short: str
    tag: str | None
    before: str  # the digest that the name had; "" for none
    seconds: float = 0.0
    intake: Intake | None = None
    model: Model | None = None

    @property
    def origin(self) -> str:
        local = self.path == Path(self.source)
        return str(self.path.resolve()) if local else self.source


class Arrivals:
    """Checkpoints that come in together.

    Parameters
    ----------
    zoo : Zoo
    base, detached
        As for `Intake`.
    level : {"fast", "small"} or None
        Keep near-copies as differences; None keeps all new tensors raw.
    progress : Progress
    failed : callable
        Told of each source that cannot be taken in, and the error; the others go on, unless it
        raises.
    """

    def __init__(
        self,
        zoo: Zoo,
        *,
        base: str | None,
        detached: bool,
        level: Level | None,
        progress: Progress,
        failed: Failed,
    ) -> None:
        self.zoo = zoo
        self.base = base
        self.detached = detached
        self.level: Level | None = level
        self.progress = progress
        self.failed = failed

    def run(self, sources: Sequence[tuple[str, Path, str | None]]) -> list[Ingested]:
        """Take checkpoints in, each as (source as given, path, name or None)."""
        done: list[Ingested] = []
        for start in range(0, len(sources), _TOGETHER):
            done += self._together(sources[start : start + _TOGETHER])
        return done

    def _together(self, sources: Sequence[tuple[str, Path, str | None]]) -> list[Ingested]:
        with ExitStack() as locks:
            arrivals = []
            for source, path, name in sources:
                with self._telling(source):
                    arrivals.append(self._named(locks, source, path, name))
            arrivals, incoming = self._keep(arrivals)
        if incoming is not None and arrivals:
            self._after(arrivals, incoming)
        return [self._finished(arrival) for arrival in arrivals]

    def _named(self, locks: ExitStack, source: str, path: Path, name: str | None) -> _Arrival:
        if name is None:
            name = source if path != Path(source) else default_name(path)
        short, tag = split_name(name)
        locks.enter_context(NameLock(self.zoo.objects.layout, short))
        before = self.zoo.refs.get(short).tags.get(tag or LATEST)
        return _Arrival(source, path, name, short, tag, before.digest if before else "")

    def _keep(self, arrivals: list[_Arrival]) -> tuple[list[_Arrival], Incoming | None]:
        for _ in range(_TRIES):
            with ExitStack() as stack:
                session = stack.enter_context(Session(self.zoo.objects))
                incoming = self._incoming(session, arrivals, stack)
                files = stack.enter_context(ExitStack())
                arrivals = [
                    a for a in arrivals if self._read(a, arrivals, session, incoming, files)
                ]
                began = time.monotonic()
                if incoming is not None and self.level is not None:
                    incoming.store(self.zoo, self.level, self.progress)
                if not session.commit():
                    continue
                _share(arrivals, time.monotonic() - began)
                with ThreadPoolExecutor(_NAMES_AT_ONCE) as pool:
                    # while the session lives: a collection waits
                    list(pool.map(self._set, arrivals))
                return arrivals, incoming
        raise BlockzooError(
            "objects were collected as fast as they were written",
            hint="do not run `blockzoo gc --older-than 0` in a loop beside an ingest",
        )

    def _incoming(
        self, session: Session, arrivals: Sequence[_Arrival], stack: ExitStack
    ) -> Incoming | None:
        if self.level is None:
            return None
        from blockzoo.dedupe import coding
        from blockzoo.dedupe.incoming import Incoming
        from blockzoo.team import Team

        stack.callback(coding.forget)
        raise_open_file_limit()
        size = sum(_size(arrival.path) for arrival in arrivals)
        return Incoming(session, stack.enter_context(Team(size)))

    def _read(
        self,
        arrival: _Arrival,
        arrivals: Sequence[_Arrival],
        session: Session,
        incoming: Incoming | None,
        files: ExitStack,
    ) -> bool:
        """Read a checkpoint; False where it cannot be taken in, and nothing of it is named."""
        began = time.monotonic()
        seen = incoming.seen() if incoming else set()
        arrival.model = None
        arrival.intake = Intake(
            session,
            arrival.path,
            lambda wants: self._find_base(wants, arrivals),
            base=self.base,
            detached=self.detached,
            progress=self.progress,
            what=arrival.name,
            incoming=incoming,
        )
        with self._telling(arrival.source):
            arrival.model = arrival.intake.run(files)
        if arrival.model is None and incoming:
            incoming.forget(incoming.seen() - seen)
        arrival.seconds += time.monotonic() - began
        return arrival.model is not None

    def _find_base(self, wants: str, arrivals: Sequence[_Arrival]) -> Base | None:
        """An adapter's base: one that has just come in with it, or as the zoo finds it."""
        coming = {
            arrival.name: Base(arrival.model.digest, arrival.model, arrival.intake.blocks)
            for arrival in arrivals
            if arrival.model and arrival.intake and arrival.model.kind == "model"
        }
        return self.zoo.find_base(wants, coming)

    @contextmanager
    def _telling(self, source: str) -> Iterator[None]:
        try:
            yield
        except (BlockzooError, OSError) as error:
            self.failed(source, error)

    def _set(self, arrival: _Arrival) -> None:
        model, intake = arrival.model, arrival.intake
        assert model is not None and intake is not None
        if arrival.before != model.digest:
            target = tagged(model, intake.new_bytes)
            self.zoo.refs.set(arrival.short, arrival.tag, target, "ingest", arrival.origin)

    def _after(self, arrivals: Sequence[_Arrival], incoming: Incoming) -> None:
        """Keep the sketches; and what the zoo had raw before, it need not keep so now."""
        from blockzoo.similarity.sketches import Sketches

        Sketches(self.zoo.objects).put(incoming.sketches)
        if incoming.kept_raw and self.level is not None:
            names = [arrival.name for arrival in arrivals]
            plan = self.zoo.dedupe(level=self.level, only=names, sample=False)
            plan.execute(self.progress)

    def _finished(self, arrival: _Arrival) -> Ingested:
        model, intake = arrival.model, arrival.intake
        assert model is not None and intake is not None
        attached: tuple[str, ...] = ()
        if model.kind == "model":
            try:
                attached = attach_waiting(self.zoo, arrival.short, model)
            except DamagedError as error:  # of others: this model stands
                intake.notes.append(
                    f"adapters that wait for it may not be attached: {error.message}"
                )
        return Ingested(
            arrival.name,
            model.digest,
            model.kind,
            model.nbytes,
            intake.new_bytes,
            arrival.seconds,
            arrival.before == model.digest,
            model.detached,
            attached,
            tuple(intake.notes),
        )


def attach_waiting(zoo: Zoo, name: str, model: Model) -> tuple[str, ...]:
    """Attach the adapters that waited for a model of this name, where they fit."""
    attached = []
    for ref in zoo.refs.all():
        for digest in sorted({to.digest for to in ref.tags.values() if to.detached}):
            waiting = zoo.objects.model(digest)
            if name not in base_names(waiting.wants):
                continue
            base = Base(model.digest, model, zoo.blocks_of(model))
            with Session(zoo.objects) as session:
                try:
                    blocks, config = zoo.blocks_of(waiting), zoo.config(waiting)
                    whole = attach(session, waiting, blocks, config, base)
                except SourceError:
                    continue  # it wants another model of the same name
                zoo.rely_on(session, model)
                if session.commit() and zoo.refs.swap(
                    ref.name, digest, tagged(whole), "attach", name
                ):
                    attached.append(ref.name)
    return tuple(dict.fromkeys(attached))


def _share(arrivals: Sequence[_Arrival], seconds: float) -> None:
    """Count time spent for all to each, by the bytes that it brought."""
    sizes = [arrival.intake.new_bytes + 1 for arrival in arrivals if arrival.intake]
    for arrival, size in zip(arrivals, sizes, strict=True):
        arrival.seconds += seconds * size / sum(sizes)


def _size(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    try:
        files = path.iterdir() if path.is_dir() else [path]
        return sum(file.stat().st_size for file in files)
    except OSError:
        return 0
