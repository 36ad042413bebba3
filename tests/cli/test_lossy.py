"""``dedupe --compact``, ``--equivalent`` and ``--revert`` on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import planted as models
from tests.cli.conftest import Run, parsed

_TEXTS = ("--calibration", "chosen.txt", "--text", "plain.txt", "--own", "own.txt")


@pytest.fixture
def prepared(blockzoo: Run, tmp_path: Path) -> Run:
    """`blockzoo` with ``base`` and ``near`` in its zoo, and three texts beside it."""
    base = models.make_base(tmp_path / "base")
    near = models.variant(base, tmp_path / "near", lambda t: models.perturb(t, "model.", 0.005))
    blockzoo("ingest", base, near)
    for seed, name in enumerate(("own", "plain", "chosen")):
        models.write_text(tmp_path / f"{name}.txt", seed)
    return blockzoo


def test_a_plan_is_shown_executed_and_taken_back(prepared: Run, tmp_path: Path) -> None:
    asked = ["near", "--compact", *_TEXTS, "--grade", "C"]
    before = parsed(prepared("ls", "--json"))
    shown = prepared("dedupe", *asked, "--dry-run", "--svg", "frontier.svg")
    assert "proposed" in shown.stdout and "would be" in shown.stdout
    assert (tmp_path / "frontier.svg").read_text().startswith("<svg")
    assert parsed(prepared("ls", "--json")) == before
    refused = prepared("dedupe", *asked, code=2)
    assert "nobody is here to be asked" in refused.stderr and "--yes" in refused.stderr
    [plan] = parsed(prepared("dedupe", *asked, "--yes", "--json"))["plans"]
    point = plan["points"][plan["chosen"]]
    assert point["grade"] in "ABC" and point["resident"] < plan["exact"]["resident"]
    assert plan["digest"] != plan["model"]
    assert "compact" in prepared("history", "near").stdout
    assert plan["model"][:12] in prepared("dedupe", "near", "--revert").stdout
    assert prepared("dedupe", "near", "--revert", code=1).stderr.count("no compact version") == 1


def test_nothing_lossy_is_done_uncertified_or_unnamed(prepared: Run) -> None:
    asked = ["near", "--compact", "--calibration", "chosen.txt"]
    assert "no text to certify on" in prepared("dedupe", *asked, code=2).stderr
    assert "MODEL is missing" in prepared("dedupe", "--compact", *_TEXTS, code=2).stderr
    assert "--text goes with" in prepared("dedupe", "--text", "own.txt", code=2).stderr
    for more in (["--undo"], ["--equivalent"], ["--low-rank", "--bits", "2"]):
        assert "exclude" in prepared("dedupe", "near", "--compact", *_TEXTS, *more, code=2).stderr
    equivalent = ["near", "--equivalent", *_TEXTS, "--bits", "2"]
    assert "go with --compact" in prepared("dedupe", *equivalent, code=2).stderr
    assert "nothing else" in prepared("dedupe", "near", "--revert", "--dry-run", code=2).stderr
    two = ["near", "base", "--compact", *_TEXTS, "--svg", "one.svg"]
    assert "give one MODEL" in prepared("dedupe", *two, code=2).stderr


def test_what_holds_no_grade_leaves_with_1(prepared: Run, tmp_path: Path) -> None:
    base = tmp_path / "base"
    far = models.variant(base, tmp_path / "far", lambda t: models.perturb(t, "model.", 0.2))
    prepared("ingest", far)
    asked = ["far", "--equivalent", *_TEXTS, "--grade", "A", "--yes"]
    assert "nothing that saves anything is certified A" in prepared("dedupe", *asked, code=1).stdout
