"""A chain back to the recipe that makes it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from blockzoo.errors import BlockzooError
from blockzoo.zoo import Zoo
from tests.assembly.test_assemble import recipe
from tests.zoos import checkpoint


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    zoo = Zoo(tmp_path / "zoo")
    for name, changed in (("base", ()), ("tuned", (2, 3))):
        zoo.ingest(checkpoint(tmp_path / name, changed=changed))
    zoo.ingest(checkpoint(tmp_path / "other", seed=5))
    return zoo


@pytest.mark.parametrize(
    "slices",
    [
        [("base", 0, 4), ("tuned", 2, 4)],
        [("other", 0, 2), ("base", 3, 4), ("other", 1, 4)],
        [("other", 1, 4), ("tuned", 0, 1)],
        [("base", 0, 1)],
    ],
)
def test_what_was_assembled_is_told_and_told_again(
    zoo: Zoo, tmp_path: Path, slices: list[tuple[str, int, int]]
) -> None:
    zoo.assemble(recipe(*slices), "mix")
    text = zoo.recipe("mix")
    found = yaml.safe_load(text)
    assert found["merge_method"] == "passthrough" and found["dtype"] == "float32"
    assert len(found["slices"]) <= len(slices)
    (tmp_path / "again.yml").write_text(text)
    zoo.assemble(tmp_path / "again.yml", "again")
    assert zoo.model("again").chain == zoo.model("mix").chain


def test_the_fewest_slices_are_taken(zoo: Zoo) -> None:
    zoo.assemble(recipe(("base", 0, 1), ("base", 1, 2), ("other", 2, 3), ("other", 3, 4)), "mix")
    assert yaml.safe_load(zoo.recipe("mix"))["slices"] == [
        {"sources": [{"model": "base", "layer_range": [0, 2]}]},
        {"sources": [{"model": "other", "layer_range": [2, 4]}]},
    ]


def test_the_head_decides_the_last_slice(zoo: Zoo) -> None:
    """`top` goes on to the end like `mix`, but its head is another."""
    zoo.assemble(recipe(("base", 0, 3), ("other", 2, 3)), "top")
    zoo.assemble(recipe(("base", 0, 3), ("other", 2, 3), ("tuned", 2, 3)), "mix")
    assert yaml.safe_load(zoo.recipe("mix"))["slices"] == [
        {"sources": [{"model": "top", "layer_range": [0, 4]}]},
        {"sources": [{"model": "tuned", "layer_range": [2, 3]}]},
    ]
    zoo.assemble(recipe(("other", 0, 1), ("base", 0, 4)), "mix")
    zoo.assemble(recipe(("base", 0, 4), ("other", 0, 1)), "top")
    assert yaml.safe_load(zoo.recipe("top"))["slices"] == [
        {"sources": [{"model": "base", "layer_range": [0, 4]}]},
        {"sources": [{"model": "other", "layer_range": [0, 1]}]},
    ]


def test_a_chain_with_blocks_of_its_own_has_no_recipe(zoo: Zoo) -> None:
    with pytest.raises(BlockzooError, match="the embedding of other is in no other"):
        zoo.recipe("other")
    with pytest.raises(BlockzooError, match="layer 2 of tuned is in no other"):
        zoo.recipe("tuned")
    zoo.assemble(recipe(("tuned", 0, 4)), "mix")
    zoo.remove("tuned")
    with pytest.raises(BlockzooError, match="layer 2 of mix is in no other"):
        zoo.recipe("mix")
