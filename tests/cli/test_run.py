"""``blockzoo run`` on real models."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from blockzoo.zoo import Zoo
from tests.cli.conftest import Run, parsed


@pytest.fixture
def served(blockzoo: Run, shared: Path, tmp_path: Path) -> Run:
    zoo = Zoo(tmp_path / "zoo")
    for folder in ("family/base", "family/code-lora-qv", "checkpoints/stories260k"):
        zoo.ingest(shared / folder)
    return blockzoo


def test_text_streams_to_stdout_alone(served: Run) -> None:
    asked = ("run", "code-lora-qv", "-p", "def f(", "--max-new-tokens", 12)
    done: subprocess.CompletedProcess[str] = served(*asked)
    whole = parsed(served(*asked, "--json"))
    assert done.stdout == whole["text"] + "\n" and done.stderr == ""
    assert whole["finish_reason"] == "length" and len(whole["token_ids"]) == 12
    assert whole["model"] == "code-lora-qv" and len(whole["chain"]) > 18
    ids = served(*asked, "-q").stdout.split()
    assert [int(i) for i in ids] == whole["token_ids"]


def test_the_prompt_may_come_from_stdin(served: Run) -> None:
    asked = ("run", "base", "--max-new-tokens", 5)
    piped = served(*asked, given="The prince")
    assert piped.stdout == served(*asked, "-p", "The prince").stdout


def test_sampling_follows_its_seed(served: Run) -> None:
    asked = ("run", "base", "-p", "The", "--max-new-tokens", 10, "--temperature", 1.3, "--seed")
    first = served(*asked, 1).stdout
    assert first == served(*asked, 1).stdout != served(*asked, 2).stdout


def test_a_model_without_a_tokenizer_takes_and_gives_ids(served: Run) -> None:
    asked = ("run", "stories260k", "--max-new-tokens", 4)
    out = served(*asked, "--ids", "-p", "1 5 9").stdout.split()
    assert len(out) == 4 and all(word.isdigit() for word in out)
    assert "--ids" in served(*asked, "-p", "Once", code=2).stderr


def test_a_wrong_name_is_told(served: Run) -> None:
    assert "did you mean base?" in served("run", "bse", "-p", "x", code=1).stderr
