"""``similar``, ``stats --families`` and ``diff --rank`` on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import planted
from tests.cli.conftest import Run, parsed


def test_without_a_name_the_family_tree_is_shown(filled: Run) -> None:
    rows = parsed(filled("similar", "--json"))["families"]
    parents = {row["name"]: row["parent"] for row in rows}
    assert parents == {"base": None, "tuned": "base", "other": None}
    [edge] = [row for row in rows if row["parent"]]
    assert edge["guessed"] and 0 < edge["distance"] < 0.1
    assert set(edge["hops"]) == {
        f"layers.{i}.{half}" for i in (2, 3) for half in ("attention", "mlp")
    }
    text = filled("similar").stdout
    assert "└─ tuned" in text and "layers 2–3" in text and "guess" in text
    assert filled("similar", "-q").stdout == "base -\ntuned base\nother -\n"


def test_the_nearest_of_a_model_and_of_a_block(filled: Run) -> None:
    found = parsed(filled("similar", "tuned", "--top-k", "1", "--json"))
    assert found["of"] == "tuned" and [row["name"] for row in found["rows"]] == ["base"]
    assert filled("similar", "tuned", "-q").stdout.split() == ["base", "other"]
    block = parsed(filled("similar", "tuned@layers.2.mlp", "--json"))["rows"][0]
    assert "base@layers.2.mlp" in block["where"] and block["distance"] < 0.1
    again = filled("similar", block["block"][:10], "-q").stdout.split()
    assert len(again) > 1 and block["block"] not in again


def test_wrong_names_and_options_are_explained(filled: Run) -> None:
    assert "hint: `blockzoo ls`" in filled("similar", "nobody", code=1).stderr
    assert "it has embedding" in filled("similar", "base@nowhere", code=1).stderr
    filled("similar", "base", "--top-k", "0", code=2)
    filled("similar", "base", "--svg", "x.svg", code=2)


def test_the_tree_is_drawn_on_request(filled: Run, tmp_path: Path) -> None:
    filled("similar", "--svg", "tree.svg")
    assert (tmp_path / "tree.svg").read_text().startswith("<svg")


def test_statistics_have_the_families_on_request(filled: Run) -> None:
    assert "families" not in parsed(filled("stats", "--json"))
    found = parsed(filled("stats", "--families", "--json"))
    assert found["models"] == 3 and len(found["families"]) == 3
    text = filled("stats", "--families").stdout
    assert "saving" in text and "└─ tuned" in text


def test_an_empty_zoo_has_no_families(blockzoo: Run) -> None:
    blockzoo("init")
    assert blockzoo("similar").stdout == "no models\n"
    assert parsed(blockzoo("similar", "--json"))["families"] == []


def test_lost_sketches_are_made_again(filled: Run, tmp_path: Path) -> None:
    first = filled("similar").stdout
    for segment in (tmp_path / "zoo" / "cache").rglob("*.sketches"):
        segment.write_bytes(b"?")
    assert filled("similar").stdout == first


@pytest.mark.parametrize("rank", [False, True])
def test_a_difference_has_ranks_on_request(filled: Run, rank: bool) -> None:
    rows = parsed(filled("diff", "base", "tuned", *(["--rank"] if rank else []), "--json"))["rows"]
    changed = [row for row in rows if row["tensor"].endswith("layers.2.mlp.up_proj.weight")]
    assert [row.get("rank") for row in changed] == [1 if rank else None]  # a constant shift


def test_two_models_are_compared_block_by_block(blockzoo: Run, tmp_path: Path) -> None:
    base = planted.make_base(tmp_path / "base")
    near = planted.variant(base, tmp_path / "near", lambda t: planted.perturb(t, "model.", 0.02))
    blockzoo("ingest", base, near)
    planted.write_text(tmp_path / "text.txt", 1)
    weights = parsed(blockzoo("similar", "base", "near", "--json"))
    changed = next(row for row in weights["rows"] if row["hop"] == "layers.1.mlp")
    assert changed["distance"] == pytest.approx(0.02, rel=1e-3) and "cka" not in changed
    options = ["--activations", "--calibration", "text.txt"]
    both = parsed(blockzoo("similar", "base", "near", *options, "--svg", "heat.svg", "--json"))
    changed = next(row for row in both["rows"] if row["hop"] == "layers.1.mlp")
    assert changed["error"] > 0.01 and changed["cka"] > 0.99 and both["clusters"]
    assert (tmp_path / "heat.svg").read_text().startswith("<svg")
    assert "hint" in blockzoo("similar", "base", "nobody", code=1).stderr
    blockzoo("similar", "base", "near", "--activations", code=2)
    blockzoo("similar", "base", *options, code=2)
