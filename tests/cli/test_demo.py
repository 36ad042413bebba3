"""The demo: six models made here, kept in one zoo, answering from one set of weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from blockzoo_cli.corpus import read_corpus

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["base", "signatures", "tests", "errors", "imports", "returns"]


def _demo(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    sources = os.pathsep.join(map(str, (ROOT, ROOT / "runtime", ROOT / "cli")))
    command = [sys.executable, "-m", "blockzoo_cli", "demo", "--quick", "--dir", str(folder)]
    return subprocess.run(
        [*command, *options],
        env=os.environ | {"PYTHONPATH": sources},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A demo's folder, and what it said as JSON."""
    folder = tmp_path_factory.mktemp("demo")
    done = _demo(folder, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "nothing but the answer where nobody watches"
    return folder, json.loads(done.stdout)


def test_every_model_is_kept_and_answers(first: tuple[Path, dict[str, Any]]) -> None:
    _, said = first
    assert [row["name"] for row in said["checkpoints"]] == NAMES
    assert list(said["answers"]) == NAMES
    assert said["stats"]["models"] == 5 and said["stats"]["adapters"] == 1
    assert said["stats"]["stored_bytes"] < said["stats"]["logical_bytes"]
    assert said["resident_bytes"] < said["separate_bytes"]


def test_each_way_of_tuning_changes_what_it_says(first: tuple[Path, dict[str, Any]]) -> None:
    from blockzoo import Zoo

    zoo = Zoo(first[0] / "zoo", create=False)

    def changed(name: str) -> set[str]:
        return {row["tensor"] for row in zoo.diff("base", name) if row["state"] != "identical"}

    every = {row["tensor"] for row in zoo.diff("base", "base")}
    assert all("norm" in t for t in every - changed("signatures")), "every matrix moved"
    assert changed("tests") and all(t.startswith("model.layers.2.") for t in changed("tests"))
    assert {t.split(".")[-2] for t in changed("imports")} == {"q_proj", "v_proj"}
    assert changed("returns") and all("norm" in t for t in changed("returns"))
    assert zoo["errors"].base == "base"


def test_a_second_run_finds_the_checkpoints_and_says_what_to_try(
    first: tuple[Path, dict[str, Any]],
) -> None:
    folder, said = first
    before = {p: p.stat().st_mtime_ns for p in folder.glob("checkpoints/*/*.safetensors")}
    done = _demo(folder)
    assert done.returncode == 0, done.stderr
    assert before == {p: p.stat().st_mtime_ns for p in before}
    assert "found as an earlier run had left them" in done.stdout
    assert f"export BLOCKZOO_ZOO={folder / 'zoo'}" in done.stdout
    for row in said["kept"]:
        assert row["name"] in done.stdout


def test_a_model_that_was_not_finished_is_trained_again(tmp_path: Path) -> None:
    from blockzoo_cli.training import QUICK, train

    stages: list[str] = []
    folder = tmp_path / "checkpoints"
    (folder / ".base.unfinished").mkdir(parents=True)
    (folder / ".base.unfinished" / "model.safetensors").write_bytes(b"cut off")
    train(folder, QUICK, lambda name, done, remark: stages.append(name))
    assert {p.name for p in folder.iterdir()} == {*NAMES, "settings.json"}
    assert stages.count("base") > 1

    (folder / "tests").rename(tmp_path / "elsewhere")
    again = train(folder, QUICK, lambda name, done, remark: None)
    assert [model.name for model in again if model.seconds] == ["tests"]

    (folder / "base").rename(tmp_path / "old base")
    again = train(folder, QUICK, lambda name, done, remark: None)
    assert all(model.seconds for model in again), "tenants of another base are of no use"


def test_the_text_is_documentation_with_something_to_ask_of_each_function() -> None:
    corpus = read_corpus(modules=24)
    assert len(corpus.texts) > 50
    assert all(function.summary[-1] in ".!?" for function in corpus.functions)
    assert any(function.error.startswith("raise ") for function in corpus.functions)
    assert any(function.result.startswith("return ") for function in corpus.functions)
    assert all(function.test.startswith("def test_") for function in corpus.functions)
    assert read_corpus(modules=24) == corpus
