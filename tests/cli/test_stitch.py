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
    again = prepared("stitch", "narrow@2", "wide@2", "--name", "later", "--with", "mixed")
    assert "nothing was measured" in again.stdout and data["block"][:12] in again.stdout
    out = prepared("run", "later", "--ids", "-p", "3 4 5", "--max-new-tokens", "4", "-q")
    assert len(out.stdout.split()) > 1
    assert "mixed is stitched" in prepared("export", "mixed", "out", code=2).stderr
    assert "mixed is stitched" in prepared("profile", "mixed", code=1).stderr


def test_wrong_use_is_explained(prepared: Run, stitchable: dict[str, Path]) -> None:
    ends = ["stitch", "narrow@1", "wide@1", "--name", "mixed"]
    assert "--calibration FILE" in prepared(*ends, code=1).stderr
    assert "I:J" in prepared(*ends, "--also", "2-2", code=2).stderr
    assert "--name" in prepared(*ends[:3], code=2).stderr
    assert "--with takes" in prepared(*ends, "--with", "x", "--steps", "3", code=2).stderr
