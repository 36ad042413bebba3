"""The command line answers at once, and loads nothing it does not need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from blockzoo_cli.main import VERBS

from blockzoo.store.refs import Tagged
from blockzoo.zoo import Zoo
from tests.cli.conftest import Run, parsed

HEAVY = ("torch", "transformers", "peft", "numpy", "rich", "huggingface_hub")


def loaded(arguments: list[str]) -> str:
    """Which heavy modules a verb has loaded at its end."""
    code = (
        "import sys\nfrom blockzoo_cli.main import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stderr.strip()


def best_time(arguments: list[str]) -> float:
    """Seconds of processor time, which other work on the machine hardly changes."""
    times = []
    for _ in range(5):
        before = os.times()
        subprocess.run(
            [sys.executable, "-m", "blockzoo_cli", *arguments], check=True, capture_output=True
        )
        after = os.times()
        user = after.children_user - before.children_user
        times.append(user + after.children_system - before.children_system)
    return min(times)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo with 200 names."""
    zoo = Zoo(tmp_path_factory.mktemp("crowd") / "zoo")
    for i in range(200):
        target = Tagged(f"{i:064x}", "model", "llama", 14_000_000, 1000 * i, 1.7e9 + i)
        zoo.refs.set(f"team-{i % 7}/model-{i}", None, target, "ingest")
    return zoo.path


def test_help_takes_less_than_a_quarter_of_a_second() -> None:
    assert best_time(["--help"]) < 0.25
    assert loaded(["--help"]) == "[]"


def test_a_list_of_200_models_takes_less_than_half_a_second(crowd: Path) -> None:
    assert best_time(["ls", "--zoo", str(crowd)]) < 0.5
    assert loaded(["ls", "--zoo", str(crowd)]) == "[]"


def test_all_200_are_listed(crowd: Path, blockzoo: Run) -> None:
    assert len(parsed(blockzoo("ls", "--json", "--zoo", crowd))) == 200
    assert len(blockzoo("ls", "-q", "--zoo", crowd).stdout.splitlines()) == 200
    assert "model-199" in blockzoo("ls", "--zoo", crowd).stdout


@pytest.mark.parametrize("verb", ["show", "history"])
def test_looking_at_a_model_loads_no_torch(verb: str, filled: Run, tmp_path: Path) -> None:
    found = loaded([verb, "tuned", "--zoo", str(tmp_path / "zoo")])
    assert not any(f"'{name}'" in found for name in ("torch", "transformers", "peft", "rich"))


def test_help_names_every_verb(blockzoo: Run) -> None:
    text = blockzoo("--help").stdout
    for verb in (verb for verbs in VERBS.values() for verb in verbs):
        assert f"\n  {verb} " in text
        assert blockzoo(verb, "--help").stdout.startswith(f"Usage: blockzoo {verb} ")


def test_the_version_is_printed(blockzoo: Run) -> None:
    assert blockzoo("--version").stdout.startswith("blockzoo ")
