"""Dedupe without loss: smaller, byte for byte the same, undone at will, safe to interrupt."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockzoo import Zoo
from blockzoo.codecs import PACKED
from blockzoo.dedupe import incoming, repack
from blockzoo.dedupe.choose import choose
from blockzoo.dedupe.incoming import Incoming
from blockzoo.dedupe.plan import load
from blockzoo.dedupe.repack import Change
from blockzoo.errors import BaseMissingError, DamagedError, UsageError
from blockzoo.store import durable
from blockzoo.store.reach import reach, roots
from blockzoo.store.session import Session
from tests.zoos import checkpoint, hashes, run, start, write_safetensors

FULL = (
    "base",
    "math-full",
    "sql-full",
    "sql-then-trec-full",
    "shakespeare-top3",
    "shakespeare-norms",
    "novel-lora-merged",
    "chat-added-tokens",
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and fine-tunes in which every weight moved a little."""
    root = tmp_path_factory.mktemp("sources")
    checkpoint(root / "base", seed=1, layers=4, width=96, dtype="BF16")
    for i in (1, 2, 3):
        checkpoint(root / f"tune{i}", seed=1, layers=4, width=96, moved=0.01 * i, dtype="BF16")
    return root


@pytest.fixture
def zoo(sources: Path, tmp_path: Path) -> Zoo:
    zoo = Zoo(tmp_path / "zoo")
    for source in sorted(sources.iterdir()):
        zoo.ingest(source)
    return zoo


def check(zoo: Zoo, sources: Path, out: Path, names: tuple[str, ...] | None = None) -> None:
    """Everything verifies, and every model comes out as it went in; read by a fresh zoo."""
    fresh = Zoo(zoo.path, create=False)
    assert fresh.verify().ok
    for name in names or tuple(sorted(path.name for path in sources.iterdir())):
        shutil.rmtree(out / name, ignore_errors=True)
        fresh.export(name, out / name)
        assert hashes(out / name) == hashes(sources / name), name


def kinds(zoo: Zoo) -> dict[str, int]:
    suffixes = [found.path.suffix for found in zoo.objects.all("tensors")]
    return {suffix: suffixes.count(suffix) for suffix in set(suffixes)}


def test_models_are_the_same_before_between_and_after(
    zoo: Zoo, sources: Path, tmp_path: Path
) -> None:
    digests = {name: zoo.resolve(name) for name in zoo.names()}
    raw_size = zoo.stats().stored_bytes
    for level in ("small", "fast"):
        plan = zoo.dedupe(level=level)
        assert plan.steps and plan.after < plan.before
        plan.execute()
        small_size = zoo.stats().stored_bytes
        assert small_size < 0.8 * raw_size
        check(zoo, sources, tmp_path / "out")
        assert not zoo.dedupe(level=level).steps, "there is nothing left to do"
        zoo.gc(older_than=0).execute()
        check(zoo, sources, tmp_path / "out")
        zoo.undo_dedupe().execute()
        assert zoo.stats().stored_bytes == raw_size
        assert set(kinds(zoo)) == {".safetensors"}
        check(zoo, sources, tmp_path / "out")
    assert {name: zoo.resolve(name) for name in zoo.names()} == digests


def test_the_real_family_saves_more_than_other_tools(shared: Path, tmp_path: Path) -> None:
    """30 points over the best of tar and zstd, restic, borg and ZipNN: benchmarks/storage.py."""
    zoo = Zoo(tmp_path / "zoo")
    for name in FULL:
        zoo.ingest(shared / "family" / name)
    plan = zoo.dedupe(level="small")
    plan.execute()
    stats = zoo.stats()
    assert stats.saving > 0.67
    assert abs(plan.after / sum_of_tensors(zoo) - 1) < 0.05, "the plan's estimate was off"
    check(zoo, shared / "family", tmp_path / "out", FULL)


def sum_of_tensors(zoo: Zoo) -> int:
    return sum(found.path.stat().st_size for found in zoo.objects.all("tensors"))


def test_a_difference_is_one_step_deep_and_its_reference_is_kept(zoo: Zoo, tmp_path: Path) -> None:
    zoo.dedupe().execute()
    found = reach(zoo.objects, roots(zoo.refs))
    assert found.references
    for reference in found.references.values():
        assert not zoo.objects.reference_of(reference)
    # the base loses its name; what differs from it still needs it
    zoo.remove("base")
    for path in zoo.path.rglob("*.*"):
        os.utime(path, (1, 1))
    zoo.gc(older_than=0).execute()
    assert Zoo(zoo.path).verify().ok
    Zoo(zoo.path).export("tune1", tmp_path / "out")


def test_an_ingest_relies_on_references_too(zoo: Zoo, sources: Path, tmp_path: Path) -> None:
    """Old, unnamed differences that an ingest finds in place keep their references from gc."""
    zoo.dedupe().execute()
    for name in zoo.names():
        zoo.remove(name)
    for path in zoo.path.rglob("*.*"):
        os.utime(path, (1, 1))
    zoo.ingest(sources / "tune1")
    zoo.gc().execute()
    check(zoo, sources, tmp_path / "out", ("tune1",))


def test_what_is_hot_stays_raw(zoo: Zoo, sources: Path, tmp_path: Path) -> None:
    zoo.dedupe().execute()
    zoo.dedupe(keep_raw=["tune2"]).execute()
    model = zoo.model("tune2")
    for block in zoo.blocks_of(model).values():
        for ref in block.tensors.values():
            path = zoo.objects.find("tensors", ref.digest)
            assert path and path.suffix == ".safetensors"
    check(zoo, sources, tmp_path / "out")


def test_a_plan_can_be_written_read_and_executed_elsewhere(
    zoo: Zoo, sources: Path, tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    done = run("dedupe", "--plan", file, "--zoo", zoo.path)
    assert done.returncode == 0, done.stderr
    assert set(kinds(zoo)) == {".safetensors"}
    other = Zoo(tmp_path / "other")
    done = run("dedupe", "--apply", file, "-y", "--zoo", other.path)
    assert done.returncode == 2 and "another zoo" in done.stderr
    done = run("dedupe", "--apply", file, "-y", "--json", "--zoo", zoo.path)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["done_after"] < data["done_before"]
    check(zoo, sources, tmp_path / "out")
    for text in ("{}", "[]", "", '{"format": 1, "steps": [{}]}'):
        file.write_text(text)
        with pytest.raises(UsageError, match="is no plan"):
            load(zoo, file)


def test_dedupe_on_the_way_in(sources: Path, tmp_path: Path) -> None:
    zoo = tmp_path / "zoo"
    done = run("ingest", "--dedupe", *sorted(sources.iterdir()), "--zoo", zoo)
    assert done.returncode == 0, done.stderr
    assert ".delta" in kinds(Zoo(zoo))
    check(Zoo(zoo), sources, tmp_path / "out")


def test_what_comes_in_later_differs_from_what_is_there(sources: Path, tmp_path: Path) -> None:
    """A base that is kept as planes itself serves as the reference of later fine-tunes."""
    zoo = Zoo(tmp_path / "zoo")
    zoo.ingest_all([sources / "base", sources / "tune1"], dedupe="small")
    before = kinds(zoo)
    assert before[".planes"] and before[".delta"]
    zoo.ingest(sources / "tune2", dedupe="small")
    assert kinds(zoo)[".delta"] > before[".delta"]
    assert kinds(zoo).get(".planes") == before[".planes"]
    check(zoo, sources, tmp_path / "out", ("base", "tune1", "tune2"))


def test_dedupe_on_the_way_in_packs_what_was_raw_before(sources: Path, tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    zoo.ingest(sources / "base")
    zoo.ingest(sources / "tune1")
    assert set(kinds(zoo)) == {".safetensors"}
    zoo.ingest(sources / "tune1", dedupe="small")
    assert kinds(zoo)[".delta"]
    check(zoo, sources, tmp_path / "out", ("base", "tune1"))


def test_a_source_that_fails_takes_nothing_from_the_others(sources: Path, tmp_path: Path) -> None:
    """Tensors seen in it first are stored all the same where another source has them too."""
    shutil.copytree(sources / "tune1", tmp_path / "broken")
    (tmp_path / "broken" / "config.json").write_text("{")
    failures: list[str] = []
    zoo = Zoo(tmp_path / "zoo")
    zoo.ingest_all(
        [tmp_path / "broken", sources / "base", sources / "tune1"],
        dedupe="small",
        failed=lambda source, error: failures.append(source),
    )
    assert failures == [str(tmp_path / "broken")]
    assert zoo.names() == ["base", "tune1"]
    check(zoo, sources, tmp_path / "out", ("base", "tune1"))


@pytest.fixture
def lone_adapter(tmp_path: Path) -> Path:
    """An adapter whose base is nowhere: refused when its tensors have been read."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    _write_adapter(folder, 0)
    config = {"peft_type": "LORA", "r": 16, "base_model_name_or_path": "org/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _write_adapter(folder: Path, seed: int) -> None:
    draw = np.random.default_rng(seed).standard_normal
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{prefix}.lora_A.weight": draw((16, 96)), f"{prefix}.lora_B.weight": draw((96, 16))}
    write_safetensors(folder / "written", tensors)
    os.replace(folder / "written", folder / "adapter_model.safetensors")


def test_what_a_refused_source_had_is_not_waited_for(
    sources: Path, lone_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits: list[bool] = []
    commit = Session.commit

    def watched(self: Session) -> bool:
        commits.append(commit(self))
        return commits[-1]

    monkeypatch.setattr(Session, "commit", watched)
    failures: list[str] = []
    Zoo(tmp_path / "zoo").ingest_all(
        [lone_adapter, sources / "base"],
        dedupe="small",
        failed=lambda source, error: failures.append(source),
    )
    assert failures == [str(lone_adapter)]
    assert commits == [True]


def test_a_source_that_was_refused_may_change(lone_adapter: Path, tmp_path: Path) -> None:
    """What was read of it the first time is never taken for what stands there now."""
    zoo = Zoo(tmp_path / "zoo")
    with pytest.raises(BaseMissingError):
        zoo.ingest(lone_adapter, dedupe="small")
    _write_adapter(lone_adapter, 1)
    zoo.ingest(lone_adapter, dedupe="small", detached=True)
    zoo.export("adapter", tmp_path / "out")
    assert hashes(tmp_path / "out") == hashes(lone_adapter)


def test_a_base_is_found_by_its_whole_name_first(
    sources: Path, lone_adapter: Path, tmp_path: Path
) -> None:
    """Also where one that is called by its last part comes in together with the adapter."""
    zoo = Zoo(tmp_path / "zoo")
    zoo.ingest(sources / "tune1", "org/base")
    zoo.ingest_all([sources / "base", lone_adapter], dedupe="small")
    assert zoo.model("adapter").base == zoo.resolve("org/base") != zoo.resolve("base")


def test_an_old_plan_makes_no_difference_of_a_reference(sources: Path, tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    zoo.ingest(sources / "tune1")
    zoo.ingest(sources / "base")
    plan = zoo.dedupe()
    for name in ("tune2", "tune3"):
        zoo.ingest(sources / name, dedupe="small")
    used = set(reach(zoo.objects, roots(zoo.refs)).references.values())
    assert any(step.reference and step.tensor in used for step in plan.steps)
    plan.execute()
    check(zoo, sources, tmp_path / "out")


def test_two_ingests_at_once_may_choose_different_references(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor that one keeps as a difference may be what the other's tensors differ from."""
    zoo, others = Zoo(tmp_path / "zoo"), ["tune2", "tune3"]
    store = Incoming.store

    def after_others(self: Incoming, *rest: Any) -> None:
        now, others[:] = others[:], []
        for name in now:
            Zoo(zoo.path).ingest(sources / name, f"other/{name}", dedupe="small")
        store(self, *rest)

    monkeypatch.setattr(Incoming, "store", after_others)
    zoo.ingest_all([sources / name for name in ("tune1", "tune2", "base")], dedupe="small")
    stand = [found.digest for found in zoo.objects.all("tensors")]
    assert len(stand) > len(set(stand)), "they chose the same: the test shows nothing"
    zoo.ingest(sources / "tune3")
    check(zoo, sources, tmp_path / "out")


def test_an_error_of_the_disk_is_not_lost_on_the_way(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk tells of one once: also where that is while more is being coded."""
    zoo = Zoo(tmp_path / "zoo")
    flush = durable.flush_disk

    def fail(path: Path) -> bool:
        if path.parent == zoo.objects.layout.tmp:
            raise OSError(errno.EIO, "broken")
        return flush(path)

    monkeypatch.setattr(incoming, "_FLUSH_FROM", 1)
    monkeypatch.setattr(durable, "flush_disk", fail)
    with pytest.raises(OSError, match="broken"):
        zoo.ingest(sources / "base", dedupe="small")
    assert not zoo.names()


def test_a_damaged_reference_names_every_dependent(zoo: Zoo, sources: Path, tmp_path: Path) -> None:
    zoo.dedupe().execute()
    references = reach(zoo.objects, roots(zoo.refs)).references
    victim = max(set(references.values()), key=list(references.values()).count)
    dependents = {digest for digest, reference in references.items() if reference == victim}
    path = zoo.objects.find("tensors", victim)
    assert path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    fresh = Zoo(zoo.path)
    report = fresh.verify()
    assert {p.digest for p in report.problems} == {victim} | dependents
    (problem,) = (p for p in report.problems if p.digest == victim)
    assert {f"tune{i}:latest" for i in (1, 2, 3)} <= set(problem.hurts)
    with pytest.raises(DamagedError):
        fresh.export("tune1", tmp_path / "broken")
    for name in ("tune1", "tune2", "tune3", "base"):
        report = fresh.repair(sources / name)
    assert report.ok, report
    check(zoo, sources, tmp_path / "out")


def _near(zoo: Zoo) -> tuple[str, str, str]:
    """Three raw tensors that are near one another."""
    references = reach(zoo.objects, roots(zoo.refs)).references
    reference = max(set(references.values()), key=list(references.values()).count)
    a, b = [digest for digest, other in references.items() if other == reference][:2]
    zoo.undo_dedupe().execute()
    return a, b, reference


def _pack(session: Session, digest: str, reference: str) -> Change:
    change = repack.pack(session, digest, codec=".delta", level="small", reference=reference)
    assert change
    return change


def test_differences_that_two_processes_made_of_each_other_keep_one_raw(
    zoo: Zoo, sources: Path, tmp_path: Path
) -> None:
    zoo.dedupe().execute()
    a, b, _ = _near(zoo)
    with Session(zoo.objects) as one, Session(zoo.objects) as other:
        # both are made before either is in its place
        there, back = _pack(one, a, b), _pack(other, b, a)
        repack.settle(one, [there])
        assert zoo.objects.lineage(a) == [b]
        repack.settle(other, [back])
    assert zoo.objects.lineage(a) == [b]
    assert not zoo.objects.lineage(b)
    with Session(zoo.objects) as session:  # both kinds stand, as after a kill
        shutil.copy(there.place, tmp_path / "kept")
        unpacked = repack.unpack(session, a)
        assert unpacked
        repack.settle(session, [unpacked])
        repack.settle(session, [_pack(session, b, a)])
        shutil.copy(tmp_path / "kept", there.place)
        assert not repack.finish(session, a), "raw, or there is nothing left to tell them from"
    check(zoo, sources, tmp_path / "out")


def test_a_difference_from_a_difference_is_read_and_kept(
    zoo: Zoo, sources: Path, tmp_path: Path
) -> None:
    """As processes may leave them that packed at the same moment."""
    zoo.dedupe().execute()
    a, b, reference = _near(zoo)
    with Session(zoo.objects) as session:
        first, second = _pack(session, a, b), _pack(session, b, reference)
        repack.settle(session, [first])
        repack.settle(session, [second])
    assert zoo.objects.lineage(a) == [b, reference]
    assert zoo.verify().ok
    needed = reach(zoo.objects, {zoo.resolve(name): {name} for name in zoo.names()}).names
    assert needed["tensors", a] <= needed["tensors", b] <= needed["tensors", reference]
    check(zoo, sources, tmp_path / "out")


def test_what_an_interrupt_leaves_in_the_air_comes_back(
    zoo: Zoo, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo.dedupe().execute()
    a, *_ = _near(zoo)
    path = zoo.objects.find("tensors", a)
    assert path

    def interrupted(*_: object, **__: object) -> list[str]:
        assert not path.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(zoo.objects, "lineage", interrupted)
    with pytest.raises(KeyboardInterrupt), Session(zoo.objects) as session:
        session.drop(a, path)
    assert path.exists()
    monkeypatch.undo()
    with Session(zoo.objects) as session:
        assert not session.drop(a, path), "nothing else holds it"
    check(zoo, sources, tmp_path / "out")


def test_what_an_interrupted_undo_leaves_packed_loses_no_reference(
    zoo: Zoo, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands beside a raw file and is not read, but would be found damaged."""
    zoo.dedupe().execute()
    found = reach(zoo.objects, roots(zoo.refs))
    digest, reference = next(iter(found.references.items()))
    name = min(found.names["tensors", digest] - found.names["models", zoo.resolve("base")])

    def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "drop", interrupted)
    with pytest.raises(KeyboardInterrupt):
        zoo.undo_dedupe().execute()
    monkeypatch.undo()
    for other in zoo.names():
        if other != name.removesuffix(":latest"):
            zoo.remove(other)
    zoo.gc(older_than=0).execute()
    assert zoo.verify().ok and zoo.objects.find("tensors", reference)
    zoo.undo_dedupe().execute()
    zoo.gc(older_than=0).execute()
    check(zoo, sources, tmp_path / "out", (name.removesuffix(":latest"),))


def test_what_is_put_back_takes_the_place_of_nothing_newer(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A difference that stood before may be from a tensor that has been collected meanwhile."""
    zoo.dedupe().execute()
    a, b, reference = _near(zoo)
    with Session(zoo.objects) as one, Session(zoo.objects) as other:
        before, after = _pack(one, a, b), _pack(other, a, reference)
        one.settle([(before.staged, before.place)])

        def packed_anew(*_: object) -> bool:
            other.settle([(after.staged, after.place)])
            return False

        monkeypatch.setattr(one, "_stands", packed_anew)
        assert not one.drop(a, before.place)
    assert zoo.objects.describe(after.place).reference == reference


def test_a_circle_of_references_is_refused(zoo: Zoo) -> None:
    """Whatever a file says."""
    zoo.dedupe().execute()
    references = reach(zoo.objects, roots(zoo.refs)).references
    digest, reference = next(iter(references.items()))
    kept, other = zoo.objects.find("tensors", digest), zoo.objects.find("tensors", reference)
    assert kept and other
    # the reference becomes a "difference" itself: a copy of its dependent's file under its name
    fake = other.with_name(reference + kept.suffix)
    shutil.copy(kept, fake)
    other.unlink()
    fresh = Zoo(zoo.path)
    with pytest.raises(DamagedError):
        fresh.tensor(digest)
    with pytest.raises(DamagedError):
        fresh.tensor(reference)
    assert not fresh.verify().ok


def test_every_changed_byte_of_packed_files_is_found(zoo: Zoo) -> None:
    zoo.dedupe().execute()
    packed = [f.path for f in zoo.objects.all("tensors") if f.path.suffix in PACKED]
    dice = random.Random(1)
    for _ in range(60):
        path = dice.choice(packed)
        good = path.read_bytes()
        bad = bytearray(good)
        bad[dice.randrange(len(bad))] ^= dice.randrange(1, 256)
        path.chmod(0o644)
        path.write_bytes(bad)
        report = Zoo(zoo.path).verify()
        assert path in {p.path for p in report.problems}
        path.write_bytes(good)
    assert Zoo(zoo.path).verify().ok


@pytest.mark.parametrize("verb", ["dedupe", "undo", "gc"])
def test_a_killed_run_leaves_a_clean_zoo(
    verb: str, sources: Path, zoo: Zoo, tmp_path: Path
) -> None:
    _kill(verb, sources, zoo, tmp_path, 4)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("verb", "times"), [("dedupe", 70), ("undo", 70), ("gc", 60)])
def test_two_hundred_kills_leave_clean_zoos(
    verb: str, times: int, sources: Path, zoo: Zoo, tmp_path: Path
) -> None:
    _kill(verb, sources, zoo, tmp_path, times)


def _kill(verb: str, sources: Path, zoo: Zoo, tmp_path: Path, times: int) -> None:
    command: tuple[str, ...] = ("dedupe", "-y")
    if verb == "undo":
        zoo.dedupe().execute()
        command = ("dedupe", "--undo", "-y")
    if verb == "gc":
        zoo.dedupe().execute()
        zoo.remove("tune1")
        zoo.remove("base")
        for path in zoo.path.rglob("*.*"):
            os.utime(path, (1, 1))
        command = ("gc", "--older-than", "0", "-y")
    names = ("tune2", "tune3") if verb == "gc" else ("base", "tune1", "tune2", "tune3")
    shutil.copytree(zoo.path, tmp_path / "timed")
    began = time.monotonic()
    process = start(*command, "--zoo", tmp_path / "timed")
    _, error = process.communicate()
    assert process.returncode == 0, error
    seconds = time.monotonic() - began
    dice = random.Random(verb)
    killed = 0
    for round_ in range(times):
        place = tmp_path / f"round{round_}"
        shutil.copytree(zoo.path, place)
        process = start(*command, "--zoo", place)
        time.sleep(dice.uniform(0.3, 1.0) * seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        check(Zoo(place), sources, tmp_path / "out", names)
        done = run(*command, "--zoo", place)
        assert done.returncode == 0, done.stderr
        check(Zoo(place), sources, tmp_path / "out", names)
        if verb == "dedupe":
            left = [d.digest for d in Zoo(place).objects.all("tensors")]
            assert len(left) == len(set(left)), "a tensor is kept twice"
        shutil.rmtree(place)
    assert killed >= times // 3


def test_the_middle_of_a_family_becomes_the_reference() -> None:
    """Whatever the order of arrival: four tunes around a base, and a stranger."""
    points = np.array([[1.0, 0], [0, 0], [0, 1], [-1, 0], [0, -1], [50, 50]])
    points[:, 0] += 1
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1) * 0.02
    sizes = np.full(6, 1 << 20)
    picked = choose("BF16", sizes, apart, np.zeros(6, bool), True, True)
    assert picked.tolist() == [1, -1, 1, 1, 1, -1]


def test_a_pinned_tensor_is_never_a_difference() -> None:
    apart = np.full((3, 3), 0.01)
    np.fill_diagonal(apart, 0)
    pinned = np.array([False, True, True])
    picked = choose("BF16", np.full(3, 1 << 20), apart, pinned, True, True)
    assert picked[0] in (1, 2) and picked[1] == picked[2] == -1
