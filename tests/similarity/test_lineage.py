"""The family tree is told from weights: of the real family, of generated ones, in any order."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from blockzoo.records import Block
from blockzoo.similarity.kinship import kinships, own_tensors
from blockzoo.similarity.lineage import Lineage, families
from blockzoo.similarity.ranking import nearest_blocks, nearest_models
from blockzoo.similarity.sketches import Sketches
from blockzoo.similarity.weights import as_float, compare
from blockzoo.store.reach import reach, roots
from blockzoo.zoo import Zoo
from tests.zoos import checkpoint, write_safetensors

FULL = {
    "math-full": "base",
    "sql-full": "base",
    "sql-then-trec-full": "sql-full",
    "shakespeare-top3": "base",
    "shakespeare-norms": "base",
    "novel-lora-merged": "base",
    "chat-added-tokens": "base",
}
ADAPTERS = ("code-lora-qv", "sentiment-lora-all", "trec-dora", "sentiment-ia3", "trec-prefix")


def tree(lineage: Lineage) -> dict[str, str]:
    """Each child's name and its parent's."""
    return {row["name"]: row["parent"] for row in lineage.to_json() if row["parent"]}


def lineage(zoo: Zoo) -> Lineage:
    return families(zoo.objects, zoo.refs)


@pytest.fixture(scope="module")
def family(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    zoo = Zoo(tmp_path_factory.mktemp("zoo"))
    for name in ("small", "base", *FULL, *ADAPTERS):
        zoo.ingest(shared / "family" / name)
    return zoo


def test_the_true_tree_of_the_family_is_found(family: Zoo) -> None:
    found = lineage(family)
    assert tree(found) == FULL | dict.fromkeys(ADAPTERS, "base")
    assert [found.members[digest].name for digest in found.roots] == ["base", "small"]
    guessed = {row["name"]: row["guessed"] for row in found.to_json()}
    assert all(guessed[name] for name in FULL) and not any(guessed[name] for name in ADAPTERS)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_neither_names_nor_order_nor_adapters_are_needed(
    shared: Path, tmp_path: Path, seed: int
) -> None:
    zoo = Zoo(tmp_path / "zoo")
    order = ["base", "small", *FULL]
    np.random.default_rng(seed).shuffle(order)
    hidden = {name: f"m{number}" for number, name in enumerate(order)}
    for name, other in hidden.items():
        zoo.ingest(shared / "family" / name, name=other)
    assert tree(lineage(zoo)) == {hidden[child]: hidden[up] for child, up in FULL.items()}


def test_distances_at_an_edge_are_those_of_the_weights(family: Zoo) -> None:
    found = lineage(family)
    for name, parent in FULL.items():
        edge = found.edges[family.resolve(name)]
        models = [family.model(n) for n in (parent, name)]
        ours, theirs = (own_tensors(m, family.blocks_of(m)) for m in models)
        squares: dict[str, float] = {}
        sizes: dict[str, int] = {}
        for tensor, (hop, ref) in ours.items():
            tensors = family.objects.tensor
            truth = compare(tensors(ref.digest), tensors(theirs[tensor][1].digest))
            assert truth is not None
            squares[hop] = squares.get(hop, 0.0) + ref.elements * truth.relative**2
            sizes[hop] = sizes.get(hop, 0) + ref.elements
        true = math.sqrt(sum(squares.values()) / sum(sizes.values()))
        assert edge.distance == pytest.approx(true, rel=0.03)
        assert set(edge.hops) == {hop for hop, square in squares.items() if square}
        for hop, distance in edge.hops.items():
            assert distance == pytest.approx(math.sqrt(squares[hop] / sizes[hop]), rel=0.12)
    assert found.edges[family.resolve("chat-added-tokens")].rows_added == 2


def test_a_lora_adapter_is_as_far_as_its_update_is_large(family: Zoo) -> None:
    found = lineage(family)
    assert all(found.edges[family.resolve(n)].distance is None for n in ADAPTERS[2:])
    for name in ADAPTERS[:2]:
        adapter, base = family.model(name), family.model("base")
        blocks = family.blocks_of(adapter)
        weights = own_tensors(base, family.blocks_of(base))
        squares = 0.0
        for hop in adapter.chain:
            for block in (blocks[digest] for digest in hop.adapters):
                for module, facts in block.spec["modules"].items():
                    a, b, w = (
                        np.concatenate(list(as_float(*family.tensor(ref.digest)))).reshape(
                            ref.shape
                        )
                        for ref in (
                            block.tensors[f"{module}.lora_A.weight"],
                            block.tensors[f"{module}.lora_B.weight"],
                            weights[f"{hop.prefix}{module}.weight"][1],
                        )
                    )
                    update = facts["alpha"] / facts["rank"] * b.astype(float) @ a
                    squares += w.size * (np.linalg.norm(update) / np.linalg.norm(w)) ** 2
        true = math.sqrt(squares / sum(ref.elements for _, ref in weights.values()))
        edge = found.edges[family.resolve(name)]
        assert edge.distance == pytest.approx(true, rel=1e-4)
        assert len(edge.hops) == (8 if name == "code-lora-qv" else 16)


def write(folder: Path, tensors: dict[str, np.ndarray]) -> Path:
    """A checkpoint of no known family: whole layers, told apart by number."""
    checkpoint(folder, layers=1)
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def weights(seed: int, rows: int = 90) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed).standard_normal
    names = [f"blocks.{i}.{part}.weight" for i in range(3) for part in "ab"]
    return {"embed.weight": draw((rows, 60))} | {name: draw((64, 60)) for name in names}


def moved(origin: dict[str, np.ndarray], seed: int, size: float) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed).standard_normal
    return {name: value + size * draw(value.shape) for name, value in origin.items()}


def test_two_families_and_a_stranger_stay_apart(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    expected = {}
    for base in ("x", "y"):
        origin = weights(ord(base))
        models = {base: origin}
        for i in range(3):
            models[f"{base}{i}"] = moved(origin, i, 0.01 * (i + 1))
            models[f"{base}{i}-again"] = moved(models[f"{base}{i}"], 9 + i, 0.005)
            expected |= {f"{base}{i}": base, f"{base}{i}-again": f"{base}{i}"}
        for name in sorted(models, reverse=True):
            zoo.ingest(write(tmp_path / name, models[name]))
    zoo.ingest(write(tmp_path / "stranger", weights(77)))
    found = lineage(zoo)
    assert tree(found) == expected
    assert len(found.roots) == 3


def test_a_grown_vocabulary_tells_the_child(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    origin = weights(1)
    grown = moved(origin, 2, 0.01)
    extra = np.random.default_rng(3).standard_normal((2, 60))
    grown["embed.weight"] = np.concatenate([origin["embed.weight"], extra])
    zoo.ingest(write(tmp_path / "grown", grown))
    zoo.ingest(write(tmp_path / "origin", origin))
    found = lineage(zoo)
    assert tree(found) == {"grown": "origin"}
    edge = found.edges[zoo.resolve("grown")]
    assert edge.rows_added == 2 and "vocabulary" in edge.evidence
    assert "embedding" not in edge.hops  # the rows that both have are equal


def test_the_middle_one_of_a_row_is_not_taken_for_its_root(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    child = moved(weights(1), 2, 0.01)
    zoo.ingest(write(tmp_path / "first", weights(1)))
    zoo.ingest(write(tmp_path / "then", child))
    zoo.ingest(write(tmp_path / "last", moved(child, 3, 0.01)))
    assert tree(lineage(zoo)) == {"then": "first", "last": "then"}


def test_where_nothing_else_speaks_the_first_is_the_parent(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    zoo.ingest(write(tmp_path / "b", weights(1)))
    zoo.ingest(write(tmp_path / "a", moved(weights(1), 2, 0.01)))
    assert tree(lineage(zoo)) == {"a": "b"}


def test_two_names_of_one_model_are_one_member(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    zoo.ingest(checkpoint(tmp_path / "a"))
    zoo.tag("a", "b:v1")
    [row] = lineage(zoo).to_json()
    assert row["names"] == ["a", "b", "b:v1"] and row["parent"] is None


def test_equal_weights_under_another_config_are_at_no_distance(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    zoo.ingest(checkpoint(tmp_path / "a"))
    other = checkpoint(tmp_path / "b")
    (other / "notes.txt").write_text("the same weights")
    zoo.ingest(other)
    [row] = [row for row in lineage(zoo).to_json() if row["parent"]]
    assert row["distance"] == 0.0 and row["hops"] == {}


def test_an_empty_zoo_has_no_tree(tmp_path: Path) -> None:
    assert lineage(Zoo(tmp_path / "zoo")).to_json() == []


def test_detached_adapters_and_odd_dtypes_are_members_too(shared: Path, tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    zoo.ingest(shared / "adapters" / "gpt2-legal", detached=True)
    zoo.ingest(shared / "checkpoints" / "capp-gpt")
    assert len(lineage(zoo).roots) == 2


def test_the_nearest_models_come_first(family: Zoo) -> None:
    found = reach(family.objects, roots(family.refs))
    models = {d: own_tensors(m, found.blocks) for d, m in found.models.items()}
    asked = family.resolve("sql-then-trec-full")
    ranked = nearest_models(Sketches(family.objects), asked, models)
    names = {family.resolve(name): name for name in family.names()}
    assert [names[kin.second] for kin in ranked][:2] == ["sql-full", "shakespeare-norms"] or [
        names[kin.second] for kin in ranked
    ][:2] == ["sql-full", "base"]
    assert all(kin.first == asked for kin in ranked)


def test_a_block_is_ranked_by_its_farthest_tensor(family: Zoo) -> None:
    found = reach(family.objects, roots(family.refs))

    def block(model: str, hop: str) -> Block:
        chain = {h.name: h.block for h in family.model(model).chain}
        return found.blocks[chain[hop]]

    hop = "layers.3.mlp"
    asked, origin = block("sql-then-trec-full", hop), block("sql-full", hop)
    ranked = nearest_blocks(Sketches(family.objects), asked, found.blocks)
    assert ranked[0].digest == origin.digest
    tensors = family.objects.tensor
    true = {}
    for name, ref in asked.tensors.items():
        truth = compare(tensors(ref.digest), tensors(origin.tensors[name].digest))
        assert truth is not None
        true[name] = truth.relative
    assert ranked[0].largest == pytest.approx(max(true.values()), rel=0.12)
    assert ranked[0].tensor in true and ranked[0].mean <= ranked[0].largest
    assert len(ranked) > 30  # the blocks at every other depth, and of every other model


def test_pairs_are_measured_alike_in_both_directions(family: Zoo) -> None:
    found = reach(family.objects, roots(family.refs))
    models = {d: own_tensors(m, found.blocks) for d, m in found.models.items() if m.kind == "model"}
    for kin in kinships(Sketches(family.objects), models, 0.8):
        turned = kin.turned()
        assert (turned.first, turned.second) == (kin.second, kin.first)
        assert turned.distance == kin.distance and turned.rows_added == -kin.rows_added
