"""``stitch`` on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run, parsed
from tests.stitching import stitchable

__all__ = ["stitchable"]


@pytest.fixture
def prepared(blockzoo: Run, stitchable: dict[str, Path]) -> Run:
    """`blockzoo` with ``narrow`` and ``wide`` in its zoo."""
    blockzoo("ingest", stitchable["narrow"], stitchable["wide"])
    return blockzoo


def test_a_stitched_model_is_made_measured_reused_and_run(
    prepared: Run, stitchable: dict[str, Path]
) -> None:
    texts = ["--calibration", stitchable["fitted"], "--text", stitchable["held"]]
    made = ["stitch", "narrow@1", "wide@1", "--name", "mixed", "--also", "2:2", "--steps", "5"]
    data = parsed(prepared(*made, *texts, "--json"))
    assert data["name"] == "mixed" and data["at"] == [1, 1] and data["controls_lost"]
    assert data["positions"] == [[1, 1], [2, 2]] and data["parameters"] > 32 * 48
    assert set(data["margins"]) == {"random weights", "shuffled tokens", "zero map"}
    assert data["perplexity"]["stitched"]["held"] < data["perplexity"]["zero map"]["held"]
    shown = prepared("show", data["record"]["digest"][:12]).stdout
    assert "the whole chain of" in shown
    passed = data["record"]["judgement"]["verdict"] in ("A", "B")
    repeated = prepared("certify", "--again", data["record"]["digest"][:12], code=int(not passed))
    assert "the same figures again" in repeated.stdout
    again = prepared("stitch", "narrow@2", "wide@2", "--name", "later", "--with", "mixed")
    assert "nothing was measured" in again.stdout and data["block"][:12] in again.stdout
    quiet = prepared("stitch", "narrow@2", "wide@2", "--name", "later", "--with", "mixed", "-q")
    assert quiet.stdout == "later\n"
    out = prepared("run", "later", "--ids", "-p", "3 4 5", "--max-new-tokens", "4", "--json")
    assert parsed(out)
    assert "stitched" in prepared("export", "mixed", "out", code=2).stderr
    assert "stitch" in prepared("show", "mixed").stdout
    prepared("verify")


def test_wrong_use_is_explained(prepared: Run, stitchable: dict[str, Path]) -> None:
    ends = ["stitch", "narrow@1", "wide@1", "--name", "mixed"]
    assert "--calibration FILE" in prepared(*ends, code=1).stderr
    assert "NAME@LAYER" in prepared("stitch", "narrow", "wide@1", "--name", "x", code=2).stderr
    assert "I:J" in prepared(*ends, "--also", "2-2", code=2).stderr
    assert "--name" in prepared(*ends[:3], code=2).stderr
    for option in (["--also", "2:2"], ["--steps", "3"], ["--no-controls"]):
        assert "--with takes" in prepared(*ends, "--with", "narrow", *option, code=2).stderr
    assert "has no stitch" in prepared(*ends, "--with", "narrow", code=2).stderr
