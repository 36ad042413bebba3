"""``assemble`` on the command line."""

from __future__ import annotations

from pathlib import Path

from tests import planted as models
from tests.cli.conftest import Run, parsed

RECIPE = """
slices:
- sources: [{model: base, layer_range: [0, 3]}]
- sources: [{model: tuned, layer_range: [2, 4]}]
merge_method: passthrough
"""


def test_a_recipe_becomes_a_model_like_any_other(filled: Run, tmp_path: Path) -> None:
    (tmp_path / "recipe.yml").write_text(RECIPE)
    made = parsed(filled("assemble", "recipe.yml", "--name", "acme/tall", "--json"))
    assert made["layers"] == 5 and made["digest"] in filled("show", "acme/tall", "--json").stdout
    listed = {row["name"]: row for row in parsed(filled("ls", "--json"))}
    assert listed["acme/tall"]["new_bytes"] == 0 and listed["acme/tall"]["kind"] == "model"
    printed = filled("assemble", "--print", "acme/tall").stdout
    (tmp_path / "again.yml").write_text(printed)
    filled("assemble", "again.yml", "--name", "again")
    again = parsed(filled("show", "again", "--json"))
    assert [hop["block"] for hop in again["chain"]] == [
        hop["block"] for hop in parsed(filled("show", "acme/tall", "--json"))["chain"]
    ]
    filled("export", "acme/tall", "out")
    assert (tmp_path / "out" / "mergekit_config.yml").is_file()
    filled("rm", "base", "tuned", "--yes")
    filled("gc", "--older-than", "0", "--yes")
    filled("verify")


def test_wrong_use_is_explained(filled: Run, tmp_path: Path) -> None:
    (tmp_path / "slerp.yml").write_text(RECIPE.replace("passthrough", "slerp"))
    done = filled("assemble", "slerp.yml", "--name", "x", code=2)
    assert "'slerp'" in done.stderr and "hint: only passthrough" in done.stderr
    assert "cannot be read" in filled("assemble", "no.yml", "--name", "x", code=2).stderr
    assert "--name NAME" in filled("assemble", "slerp.yml", code=2).stderr
    assert "stands alone" in filled("assemble", "--print", "base", "--name", "x", code=2).stderr
    done = filled("assemble", "slerp.yml", "--name", "x", "--certify", "base", code=2)
    assert "go together" in done.stderr
    assert "in no other named model" in filled("assemble", "--print", "other", code=1).stderr


def test_the_result_answers_and_is_certified_on_request(blockzoo: Run, tmp_path: Path) -> None:
    base = models.make_base(tmp_path / "base")
    models.variant(base, tmp_path / "near", lambda t: models.perturb(t, "model.layers.", 0.002))
    blockzoo("ingest", "base", "near")
    models.write_text(tmp_path / "own.txt", 1)
    (tmp_path / "recipe.yml").write_text(
        RECIPE.replace("[0, 3]", "[0, 1]").replace("[2, 4]", "[1, 3]").replace("tuned", "near")
    )
    certify = ["--certify", "base", "--own", "own.txt"]
    made = parsed(blockzoo("assemble", "recipe.yml", "--name", "mix", *certify, "--json"))
    assert made["record"]["judgement"]["verdict"] == "A"
    answer = ["-p", "w1 w2 w3", "--max-new-tokens", "3", "--dtype", "float32", "-q"]
    assert len(blockzoo("run", "mix", *answer).stdout.split()) == 3
    assert {swap["hop"] for swap in made["record"]["swaps"]} == {
        "layers.1.attention", "layers.1.mlp", "layers.2.attention", "layers.2.mlp",
    }  # fmt: skip
    (tmp_path / "short.yml").write_text(RECIPE.replace("[0, 3]", "[0, 1]").replace("tuned", "base")
                                        .replace("[2, 4]", "[2, 3]"))  # fmt: skip
    done = blockzoo("assemble", "short.yml", "--name", "short", *certify, code=2)
    assert "base has other layers than it" in done.stderr
