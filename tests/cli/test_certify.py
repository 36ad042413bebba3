"""``certify`` on the command line, and what ``show`` makes of its record."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import planted as models
from tests.cli.conftest import Run, parsed
from tests.cli.test_startup import loaded


@pytest.fixture
def prepared(blockzoo: Run, tmp_path: Path) -> Run:
    """`blockzoo` with ``base``, ``near`` and ``far`` in its zoo, and two texts beside it."""
    base = models.make_base(tmp_path / "base")
    near = models.variant(base, tmp_path / "near", lambda t: models.perturb(t, "model.", 0.002))
    far = models.variant(base, tmp_path / "far", lambda t: models.perturb(t, "model.", 0.5))
    blockzoo("ingest", base, near, far)
    models.write_text(tmp_path / "own.txt", 1)
    models.write_text(tmp_path / "chosen.txt", 2)
    return blockzoo


def test_a_swap_is_certified_shown_listed_and_repeated(prepared: Run, tmp_path: Path) -> None:
    swap = ["--swap", "layers.1.mlp=near", "--own", "own.txt", "--calibration", "chosen.txt"]
    record = parsed(prepared("certify", "base", *swap, "--json"))["records"][0]
    assert record["judgement"]["verdict"] == "A" and record["own"] == "own"
    text = prepared("show", record["digest"][:10]).stdout
    assert "equivalence" in text and "its bf16" in text and "99." in text
    assert parsed(prepared("show", record["digest"], "--json"))["evidence"] == record["evidence"]
    assert parsed(prepared("certify", "base", "--json"))[0]["equivalence"] == record["digest"]
    again = prepared("certify", "--again", record["digest"][:8])
    assert "the same figures again" in again.stdout
    assert prepared("certify", "-q").stdout.split() == [record["digest"]]
    for words in (["certify", "base"], ["show", record["digest"]]):  # both only read records
        assert "'torch'" not in loaded([*words, "--zoo", str(tmp_path / "zoo")])


def test_what_does_not_pass_leaves_with_1(prepared: Run) -> None:
    done = prepared("certify", "base", "--swap", "layers.*=far", "--text", "own.txt", code=1)
    assert "rejected" in done.stdout and "none of the texts is said" in done.stdout
    swaps = ["--swap", "layers.0.mlp=near", "--swap", "layers.1.mlp=far", "--text", "own.txt"]
    both = parsed(prepared("certify", "base", *swaps, "--each", "--json", code=1))["records"]
    assert [record["judgement"]["verdict"] for record in both] == ["A", "rejected"]
    whole = parsed(prepared("certify", "base", *swaps, "--json", code=1))["records"]
    assert len(whole) == 1 and len(whole[0]["swaps"]) == 2


def test_that_no_text_is_of_the_models_own_domain_cannot_be_overlooked(prepared: Run) -> None:
    """It is said on stderr even where nobody watches, and whatever the verdict and the form."""
    swap = ["certify", "base", "--swap", "layers.1.mlp=near"]
    for form in ([], ["--json"], ["-q"]):
        done = prepared(*swap, "--text", "own.txt", *form)
        assert "warning: measured on own only" in done.stderr and "--own FILE" in done.stderr
    again = prepared("certify", "--again", prepared("certify", "-q").stdout.split()[0])
    assert "warning: measured on own only" in again.stderr
    assert "warning" not in prepared(*swap, "--own", "own.txt").stderr


def test_wrong_use_is_explained(prepared: Run) -> None:
    assert "--text FILE" in prepared("certify", "base", "--swap", "layers.0.mlp=far", code=1).stderr
    assert "--swap is missing" in prepared("certify", "base", "--text", "own.txt", code=2).stderr
    assert "MODEL is missing" in prepared("certify", "--swap", "layers.0.mlp=far", code=2).stderr
    assert "--again takes" in prepared("certify", "base", "--again", "abc", code=2).stderr
    for option in (["--each"], ["--tokens", "500"], ["--own", "own.txt"]):
        done = prepared("certify", "--again", "0123456789", *option, code=2)
        assert "--again takes" in done.stderr
        assert "--swap is missing" in prepared("certify", "base", *option, code=2).stderr
    assert "no equivalence" in prepared("certify", "--again", "0123456789", code=1).stderr
    assert "hint: `blockzoo ls`" in prepared("show", "0123456789", code=1).stderr
    assert prepared("certify", "--json").stdout == "[]\n"
