"""Work is shared with other processes, and done all the same where they fail."""

from __future__ import annotations

import os
import signal
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


def test_what_a_dead_process_leaves_is_done_here() -> None:
    home = os.getpid()
    with Team(_MUCH) as team:
        assert team.call(_die_elsewhere, home) == home
        assert [result for _, result in team.map(_die_elsewhere, [home] * 9)] == [home] * 9
