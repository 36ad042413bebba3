"""``blockzoo profile`` measures, shows and keeps."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Run, parsed


def test_all_models_are_measured_and_kept(filled: Run, tmp_path: Path) -> None:
    text = filled("profile", "--largest", 4).stdout
    assert "knee" in text and "float32" in text
    assert [line.split()[0] for line in text.splitlines()[3:7]] == [
        "embedding", "attention", "mlp", "head",
    ]  # fmt: skip
    assert len(list((tmp_path / "zoo" / "cache" / "profiles").iterdir())) == 1


def test_json_and_bare_lines(filled: Run) -> None:
    asked = ("profile", "base", "--largest", 3, "--dtype", "bfloat16")
    [profile] = parsed(filled(*asked, "--json"))["profiles"]
    assert profile["dtype"] == "bfloat16"
    assert {tuple(block["sizes"]) for block in profile["blocks"]} == {(1, 2, 3)}
    lines = filled(*asked, "-q").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["embedding", "attention", "mlp", "head"]


def test_wrong_names_and_an_empty_zoo_are_told(filled: Run) -> None:
    assert "did you mean base?" in filled("profile", "bse", code=1).stderr
    filled("init", "--zoo", "empty")
    assert "no model here" in filled("profile", "--zoo", "empty", code=2).stderr
