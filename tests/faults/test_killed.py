"""A process killed at any instant leaves a zoo that verifies clean, and loses nothing.

Each command is first timed, then killed (``kill -9``) at random moments of its run, and run
again to its end. The quick version does a few kills of each; the slow one 200 in all.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from blockzoo import Zoo
from tests.zoos import checkpoint, hashes, start


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sources")
    checkpoint(root / "base", seed=1, layers=8, width=160)
    checkpoint(root / "tune", seed=1, layers=8, width=160, changed=(6, 7))
    checkpoint(root / "other", seed=2, layers=8, width=160)
    checkpoint(root / "near", seed=1, layers=8, width=160, moved=0.01)
    checkpoint(root / "nearer", seed=1, layers=8, width=160, moved=0.001)
    return root


@pytest.fixture(scope="module")
def kept(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo with one model that nothing may hurt."""
    root = tmp_path_factory.mktemp("kept") / "zoo"
    Zoo(root).ingest(sources / "base")
    return root


def _ingest(zoo: Path, sources: Path) -> list[object]:
    return ["ingest", sources / "tune", sources / "other", "--zoo", zoo]


def _ingest_dedupe(zoo: Path, sources: Path) -> list[object]:
    return ["ingest", "--dedupe", *(sources / m for m in BRINGS["ingest --dedupe"]), "--zoo", zoo]


def _export(zoo: Path, sources: Path) -> list[object]:
    return ["export", "base", zoo.parent / "out", "--zoo", zoo]


def _gc(zoo: Path, sources: Path) -> list[object]:
    opened = Zoo(zoo)
    opened.ingest(sources / "other")
    opened.remove("other")
    _age(zoo)
    return ["gc", "--older-than", "0", "--yes", "--zoo", zoo]


def _repair(zoo: Path, sources: Path) -> list[object]:
    if Zoo(zoo).verify().ok:
        for path in sorted((zoo / "tensors").rglob("*.safetensors"))[::3]:
            path.unlink()
    return ["repair", sources / "base", "--zoo", zoo]


def _age(zoo: Path) -> None:
    for path in zoo.rglob("*"):
        if path.is_file():
            os.utime(path, (1, 1))


COMMANDS = {
    "ingest": _ingest,
    "ingest --dedupe": _ingest_dedupe,
    "export": _export,
    "gc": _gc,
    "repair": _repair,
}
#: the models that a command brings in
BRINGS = {"ingest": ("tune", "other"), "ingest --dedupe": ("near", "nearer", "tune")}


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_killed_command_leaves_a_clean_zoo(
    verb: str, sources: Path, kept: Path, tmp_path: Path
) -> None:
    _kill_at_random(verb, sources, kept, tmp_path, times=4)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("verb", COMMANDS)
def test_fifty_kills_of_a_command_leave_a_clean_zoo(
    verb: str, sources: Path, kept: Path, tmp_path: Path
) -> None:
    _kill_at_random(verb, sources, kept, tmp_path, times=50)


def _kill_at_random(verb: str, sources: Path, kept: Path, tmp_path: Path, times: int) -> None:
    # the shorter of two: the first may find the disk or the processor busy
    seconds = min(_time(verb, sources, kept, tmp_path / f"timed{i}") for i in range(2))
    dice = random.Random(verb)
    killed = round_ = 0
    # runs that ended before they were killed prove nothing: others take their place
    while killed < times:
        round_ += 1
        assert round_ <= 4 * times, "most runs ended before they were killed"
        place = tmp_path / str(round_)
        zoo = place / "zoo"
        shutil.copytree(kept, zoo)
        arguments = COMMANDS[verb](zoo, sources)
        process = start(*arguments)
        # the command works for a part of its run only; the rest is Python starting
        time.sleep(dice.uniform(0.25, 1.0) * seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        opened = Zoo(zoo, create=False)
        if verb != "repair":
            report = opened.verify()
            assert report.ok, f"after kill {round_}: {report}"
            opened.export("base", place / "check")
            assert hashes(place / "check") == hashes(sources / "base")
        _finish(verb, zoo, sources, place)
        shutil.rmtree(place)


def _time(verb: str, sources: Path, kept: Path, place: Path) -> float:
    shutil.copytree(kept, place / "zoo")
    arguments = COMMANDS[verb](place / "zoo", sources)
    began = time.monotonic()
    process = start(*arguments)
    _, error = process.communicate()
    assert process.returncode == 0, error
    return time.monotonic() - began


def _finish(verb: str, zoo: Path, sources: Path, place: Path) -> None:
    """Run the command again: it succeeds, and all that was asked for is there."""
    process = start(*COMMANDS[verb](zoo, sources))
    _, error = process.communicate()
    assert process.returncode == 0, error
    opened = Zoo(zoo, create=False)
    assert opened.verify().ok
    for name in ("base", *BRINGS.get(verb, ())):
        opened.export(name, place / name)
        assert hashes(place / name) == hashes(sources / name)
    if verb == "export":
        assert hashes(place / "out") == hashes(sources / "base")
    if verb == "gc":
        assert not opened.gc(older_than=0).objects
