"""Many processes at once on one zoo: nothing is lost, whatever the locks do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockzoo import Zoo
from blockzoo.errors import LockedError
from blockzoo.store.objects import Object, Objects
from blockzoo.store.session import NameLock
from tests.zoos import checkpoint, hashes, run, start

PROCESSES = 8

_GC_LOOP = """
import sys, time
from blockzoo import Zoo
zoo = Zoo(sys.argv[1])
end = time.time() + float(sys.argv[2])
freed = 0
while time.time() < end:
    freed += zoo.gc().execute()
print(freed)
"""

_LOOP = """
import sys, time
from blockzoo import Zoo
from blockzoo.errors import LockedError
from blockzoo.store.session import Session
zoo = Zoo(sys.argv[1])
end = time.time() + float(sys.argv[2])
while time.time() < end:
    try:
        {work}
    except LockedError:
        pass
"""

_WORK = {
    "sessions": "Session(zoo.objects).__enter__().__exit__(None, None, None)",
    "collect": "zoo.gc(older_than=0).execute()",
    "collect too": "zoo.gc().execute()",
    "pack": "zoo.dedupe().execute()",
    "pack some": "zoo.dedupe(level='fast', only=['model3', 'model5']).execute()",
    "unpack": "zoo.undo_dedupe().execute()",
    "verify": "assert zoo.verify().ok",
    "list": "zoo.models(); zoo.blocks(); zoo.stats(); zoo['model0']",
}

_FLOCK_OFF = "import fcntl; fcntl.flock = fcntl.lockf = lambda *_: None\n"
_NO_LOCKS = _FLOCK_OFF + "from blockzoo_cli.main import main\nmain()\n"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight models, each sharing most layers with the others."""
    root = tmp_path_factory.mktemp("sources")
    for i in range(PROCESSES):
        checkpoint(root / f"model{i}", seed=i % 2, layers=6, width=96, changed=(i % 6,))
    return root


def _check(zoo: Zoo, sources: Path, out: Path) -> None:
    assert zoo.verify().ok
    for i in range(PROCESSES):
        zoo.export(f"model{i}", out / f"model{i}")
        assert hashes(out / f"model{i}") == hashes(sources / f"model{i}")


def _leave_old_garbage(zoo: Zoo, sources: Path) -> None:
    """Objects that no name reaches and that are old: just what a collection takes first, and
    just what the ingests are about to rely on.
    """
    for i in range(PROCESSES):
        zoo.ingest(sources / f"model{i}")
    for i in range(PROCESSES):
        zoo.remove(f"model{i}")
    for path in zoo.path.rglob("*.*"):
        if path.is_file():
            os.utime(path, (1, 1))


def test_eight_ingests_beside_a_running_gc_lose_nothing(sources: Path, tmp_path: Path) -> None:
    for round_ in range(3):
        zoo = Zoo(tmp_path / f"zoo{round_}")
        _leave_old_garbage(zoo, sources)
        collector = start(zoo.path, 4, code=_GC_LOOP)
        ingests = [
            start("ingest", sources / f"model{i}", "--zoo", zoo.path) for i in range(PROCESSES)
        ]
        for process in ingests:
            _, error = process.communicate()
            assert process.returncode == 0, error
        freed, error = collector.communicate()
        assert collector.returncode == 0, error
        assert int(freed) > 0, "the collection had nothing to take: the test shows nothing"
        _check(zoo, sources, tmp_path / f"out{round_}")


@pytest.mark.parametrize("locks", [True, False])
def test_everything_that_deletes_at_once_trips_over_nothing(
    sources: Path, tmp_path: Path, locks: bool
) -> None:
    zoo = Zoo(tmp_path / "zoo")
    _leave_old_garbage(zoo, sources)
    for i in range(PROCESSES):
        zoo.ingest(sources / f"model{i}")
    loops = {
        what: start(zoo.path, 6, code=("" if locks else _FLOCK_OFF) + _LOOP.format(work=work))
        for what, work in _WORK.items()
        if locks or what != "collect"  # with nothing young: that needs to know who writes
    }
    for what, process in loops.items():
        _, error = process.communicate()
        assert process.returncode == 0, f"{what}: {error}"
    _check(zoo, sources, tmp_path / "out")


def test_without_working_locks_nothing_is_lost_or_corrupt(sources: Path, tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    _leave_old_garbage(zoo, sources)
    collector = start(zoo.path, 3, code=_FLOCK_OFF + _GC_LOOP)
    ingests = [
        start("ingest", sources / f"model{i}", "--zoo", zoo.path, code=_NO_LOCKS)
        for i in range(PROCESSES)
    ]
    same_name = [
        start("ingest", sources / f"model{i}", "--name", "one", "--zoo", zoo.path, code=_NO_LOCKS)
        for i in range(4)
    ]
    for process in [*ingests, *same_name, collector]:
        _, error = process.communicate()
        assert process.returncode == 0, error
    _check(zoo, sources, tmp_path / "out")
    assert len([row for row in zoo.history("one") if row["action"] == "ingest"]) == 4


def test_two_ingests_of_one_name_at_once_are_kept_apart(sources: Path, tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    with NameLock(zoo.objects.layout, "model0"):
        with pytest.raises(LockedError, match="another process is ingesting 'model0'"):
            zoo.ingest(sources / "model0")
        done = run("ingest", sources / "model0", "--zoo", zoo.path)
        assert done.returncode == 11
        assert "hint:" in done.stderr
        zoo.ingest(sources / "model1")
    zoo.ingest(sources / "model0")
    assert zoo.verify().ok


def test_a_collection_that_would_take_what_is_being_written_is_refused(tmp_path: Path) -> None:
    from blockzoo.store.session import Session

    zoo = Zoo(tmp_path / "zoo")
    with Session(zoo.objects):
        with pytest.raises(LockedError):
            zoo.gc(older_than=0)
        assert not zoo.gc().objects


def test_a_long_ingest_keeps_what_it_used_at_its_start(sources: Path, tmp_path: Path) -> None:
    """More than an hour may lie between the first tensor and the commit."""
    from blockzoo.store.session import Session

    zoo = Zoo(tmp_path / "zoo")
    zoo.ingest(sources / "model0")
    model = zoo.model("model0")
    zoo.remove("model0")
    with Session(zoo.objects) as session:
        zoo.rely_on(session, model)
        for path in zoo.path.rglob("*.*"):
            os.utime(path, (1, 1))  # … which is long ago by now
        assert session.commit()
        assert not zoo.gc().objects


def test_a_record_that_is_collected_while_records_are_read_stops_nobody(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = Zoo(tmp_path / "zoo")
    zoo.ingest(sources / "model0")
    listed = Objects.all

    def listed_before(objects: Objects, folder: str) -> Iterator[Object]:
        yield from listed(objects, folder)
        if folder == "equivalences":
            gone = "0" * 64
            yield Object(folder, gone, objects.layout.shard(folder, gone) / f"{gone}.json")

    monkeypatch.setattr(Objects, "all", listed_before)
    zoo.tag("model0", "model0:v1")
    assert not zoo.equivalences().rows and zoo.verify().ok
    assert not zoo.gc(older_than=0).objects
