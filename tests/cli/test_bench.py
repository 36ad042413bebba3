"""``blockzoo bench`` on small models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blockzoo.zoo import Zoo
from tests.cli.conftest import Run, parsed
from tests.zoos import checkpoint


@pytest.fixture
def served(blockzoo: Run, tmp_path: Path) -> Run:
    zoo = Zoo(tmp_path / "zoo")
    for name, changed in (("base", ()), ("tuned", (2, 3))):
        folder = checkpoint(tmp_path / name, changed=changed)
        (folder / "tokenizer.json").unlink()
        zoo.ingest(folder)
    return blockzoo


def workload(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_workload_is_played_and_its_figures_shown(served: Run, tmp_path: Path) -> None:
    path = workload(
        tmp_path,
        {"model": "base", "prompt_tokens": [1, 2, 3], "max_new_tokens": 4},
        {"model": "tuned", "prompt_length": 5, "max_new_tokens": 6, "at": 0.05},
    )
    text = served("bench", "--workload", path, "--ignore-eos").stdout
    assert [line.split()[0] for line in text.splitlines()[3:6]] == ["base", "tuned", "all"]
    assert "made up" in text and "token ids" in text and "resident" in text
    data = parsed(served("bench", "--workload", path, "--ignore-eos", "--json"))
    assert data["new_tokens"] == 10 and data["failed"] == 0
    assert {row["model"] for row in data["memory"]} == {"base", "tuned"}
    lines = served("bench", "--workload", path, "-q").stdout.splitlines()
    assert lines[0] == "requests 2" and lines[1] == "failed 0"


def test_a_trace_is_mapped_to_the_names_given(served: Run, shared: Path) -> None:
    trace = shared / "traces" / "mooncake_conversation.jsonl"
    asked = ("--trace", trace, "--requests", 6, "--scale", 0.005, "--longest", 60, "--speed", 50)
    data = parsed(served("bench", "base", "tuned", *asked, "--json"))
    assert data["requests"] == 6 and data["failed"] == 0
    assert "which tenant a request is for" in data["made_up"]
    assert "names no models" in served("bench", *asked, code=2).stderr


def test_failures_are_told_and_the_rest_goes_on(served: Run, tmp_path: Path) -> None:
    path = workload(
        tmp_path,
        {"model": "base", "prompt_tokens": [1], "max_new_tokens": 100_000},
        {"model": "base", "prompt_tokens": [1], "max_new_tokens": 2},
    )
    done = served("bench", "--workload", path, "-q")
    assert "failed 1" in done.stdout and "context" in done.stderr


def test_wrong_calls_are_told(served: Run, tmp_path: Path) -> None:
    path = workload(tmp_path, {"model": "bse", "prompt_length": 3})
    assert "one of --workload and --trace" in served("bench", "base", code=2).stderr
    assert "did you mean base?" in served("bench", "bse", "--workload", path, code=1).stderr
    assert "did you mean base?" in served("bench", "--workload", path, code=1).stderr
    path.write_text("{")
    assert "line 1" in served("bench", "--workload", path, code=2).stderr
