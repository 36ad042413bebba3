"""What of mergekit's YAML is read, and what is refused, by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockzoo.assembly.mergekit import Merge, Slice, read_merge
from blockzoo.errors import BlockzooError, UsageError

SLICES = "slices:\n- sources: [{model: a, layer_range: [0, 2]}]\n"
PASS = "merge_method: passthrough\n"


def read(tmp_path: Path, text: str | bytes) -> Merge:
    path = tmp_path / "recipe.yml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_merge(path)


def test_a_recipe_is_read_and_written_alike(tmp_path: Path) -> None:
    text = """
        slices:
          - sources:
            - model: acme/sql:v3   # a comment
              layer_range: [0, 24]
          - sources:
            - layer_range: [8, 32]
              model: "base"
        merge_method: passthrough
        base_model: base
        dtype: bfloat16
        tokenizer_source: union
        """
    merge = read(tmp_path, text)
    slices = (Slice("acme/sql:v3", 0, 24), Slice("base", 8, 32))
    assert merge == Merge(slices, "base", "bfloat16", "union")
    assert read(tmp_path, merge.to_yaml()) == merge
    assert "layer_range: [8, 32]" in merge.to_yaml()


def test_one_model_is_all_of_its_layers(tmp_path: Path) -> None:
    merge = read(tmp_path, "models: [{model: a}]\n" + PASS)
    assert merge == Merge((Slice("a"),)) and read(tmp_path, merge.to_yaml()) == merge


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SLICES + "merge_method: slerp\n", "'slerp', and would make new tensors"),
        (SLICES, "merge_method is missing"),
        (PASS, "either slices or models"),
        (SLICES + "models: [{model: a}]\n" + PASS, "either slices or models"),
        ("models: [{model: a}, {model: b}]\n" + PASS, "takes one model, and models has 2"),
        ("models: [{model: a}]\nbase_model: b\n" + PASS, "base_model b would be a second"),
        (SLICES + PASS + "parameters: {scale: 0.5}\n", "parameters, which would scale"),
        (SLICES + PASS + "tokenizer: {source: union}\n", "tokenizer, which would rearrange"),
        (SLICES + PASS + "chat_template: auto\n", "chat_template, which"),
        ("modules: {}\n" + SLICES + PASS, "modules, which"),
        (SLICES + PASS + "colour: red\n", "'colour', which is not known"),
        (SLICES + PASS + "dtype: int4\n", "'int4', which is not known"),
        (SLICES + PASS + "dtype: float32\nout_dtype: float16\n", "would cast"),
        (SLICES.replace("[0, 2]", "[0]") + PASS, "expected two numbers"),
        (SLICES.replace("[0, 2]", "[0, true]") + PASS, "expected two numbers"),
        (SLICES.replace("model: a", "model: 12") + PASS, "model is 12, expected a model's name"),
        (SLICES.replace("model: a", "model: a+lora") + PASS, "'a.lora' names a LoRA"),
        (SLICES.replace("model: a", "model: a@main") + PASS, "names a revision"),
        (SLICES.replace("]}]", "], parameters: {scale: 1}}]") + PASS, "a source has parameters"),
        (SLICES.replace("[{", "[{model: b, layer_range: [0, 2]}, {") + PASS, "one source for each"),
        (SLICES + PASS + PASS, "'merge_method' is given twice"),
        ("a: &a {b: 1}\nc: {<<: *a}\n", "'<<' is not read"),
        ("slices: 3\n" + PASS, "slices is not a list"),
        ("slices: &a [*a]\n" + PASS, "slices is not a list"),
        ("slices: [{sources: &b [*b]}]\n" + PASS, "sources is not a list"),
        (SLICES + PASS + "dtype: &d [*d]\n", "dtype is a list"),
        ("- 1\n", "it holds no mapping"),
        ("", "it holds no mapping"),
        ("a: [", "not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"[" * 20_000, "not valid YAML"),
        (b"#" * (1 << 20), "more than 256 KiB"),
    ],
)
def test_what_is_not_done_is_refused(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read(tmp_path, text)


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BlockzooError, match="cannot be read"):
        read_merge(tmp_path / "none.yml")
