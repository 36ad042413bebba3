"""Work is shared with other processes, and done all the same where they fail."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from blockzoo.errors import SourceError
from blockzoo.team import Team

_MUCH = 1 << 40  # bytes


def _where(number: int) -> tuple[int, int]:
    return number, os.getpid()


def _refuse(number: int) -> int:
    raise SourceError(f"no {number}", hint="none")


def _die_elsewhere(home: int) -> int:
    if os.getpid() != home:
        os.kill(os.getpid(), signal.SIGKILL)
    return home


def _die_speaking(home: int) -> int:
    """Half an answer, then nothing."""
    if os.getpid() != home:
        for fd in range(3, 32):
            with suppress(OSError):
                if stat.S_ISFIFO(os.fstat(fd).st_mode):
                    os.write(fd, pickle.dumps(("x" * 1000, None))[:500])
        os.kill(os.getpid(), signal.SIGKILL)
    return home


def _no_space(_: int) -> int:
    raise OSError(errno.ENOSPC, str(os.getpid()))


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))


def test_every_item_is_worked_on_once_by_this_process_and_another() -> None:
    with Team(_MUCH) as team:
        found = dict(team.map(_where, range(200)))
        assert team.call(_where, 7)[1] != os.getpid()
    assert sorted(found) == list(range(200))
    assert all(item == number for item, (number, _) in found.items())


def test_little_work_starts_no_process() -> None:
    with Team(1000) as team:
        assert {pid for _, (_, pid) in team.map(_where, range(20))} == {os.getpid()}
        assert team.call(_where, 1) == (1, os.getpid())


def test_an_error_elsewhere_is_raised_here_with_its_hint() -> None:
    with Team(_MUCH) as team, pytest.raises(SourceError, match="no 3") as raised:
        team.call(_refuse, 3)
    assert raised.value.hint == "none"
    with Team(_MUCH) as team, pytest.raises(SourceError):
        list(team.map(_refuse, range(9)))


def test_an_error_of_the_disk_elsewhere_is_no_dead_process() -> None:
    with Team(_MUCH) as team:
        with pytest.raises(OSError) as raised:
            team.call(_no_space, 1)
        assert raised.value.errno == errno.ENOSPC
        assert raised.value.strerror != str(os.getpid()), "it was tried once more here"
        assert team.call(_where, 7)[1] != os.getpid()


@pytest.mark.parametrize("die", [_die_elsewhere, _die_speaking])
def test_what_a_dead_process_leaves_is_done_here(die: Callable[[int], int]) -> None:
    home = os.getpid()
    with Team(_MUCH) as team:
        assert team.call(die, home) == home
        assert [result for _, result in team.map(die, [home] * 9)] == [home] * 9


def test_what_cannot_be_started_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with Team(_MUCH) as team:
        assert team.call(_where, 1) == (1, os.getpid())
        assert len(list(team.map(_where, range(9)))) == 9


def test_no_code_runs_from_the_folder_one_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a checkpoint's, and those are data."""
    for module in ("pickle", "queue", "numpy", "blake3"):
        (tmp_path / f"{module}.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    with Team(_MUCH) as team:
        assert team.call(_where, 7)[1] != os.getpid()
    assert not (tmp_path / "ran").exists()
