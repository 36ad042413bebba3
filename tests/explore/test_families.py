"""The family tree and what is nearest, as they are shown."""

from __future__ import annotations

import xml.etree.ElementTree as xml
from pathlib import Path

import pytest

from blockzoo.errors import NotFoundError, UsageError
from blockzoo.explore.families import FamilyTree, summary
from blockzoo.similarity.lineage import Edge, Lineage, Member
from blockzoo.zoo import Zoo
from tests.zoos import checkpoint


def member(name: str, kind: str = "model") -> Member:
    return Member(name * 64, (name,), kind, "llama", 1000, 0.0)


def edge(parent: str, child: str, distance: float | None, **more: object) -> Edge:
    return Edge(parent * 64, child * 64, "declared" if distance is None else "x", distance, **more)  # type: ignore[arg-type]


@pytest.fixture
def tree() -> FamilyTree:
    members = [member(name) for name in "abcd"] + [member("e", "adapter"), member("f")]
    edges = [
        edge("a", "b", 0.01, hops={"layers.0.mlp": 0.02}),
        edge("b", "c", 0.03, rows_added=2),
        edge("a", "d", 0.02),
        edge("a", "e", None),
    ]
    return FamilyTree(Lineage({m.digest: m for m in members}, {one.child: one for one in edges}))


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    zoo = Zoo(tmp_path / "zoo")
    for name, changed in (("base", ()), ("near", (1,)), ("far", (1, 2))):
        zoo.ingest(checkpoint(tmp_path / name, changed=changed))
    zoo.ingest(checkpoint(tmp_path / "other", seed=9))
    return zoo


def test_a_tree_in_text_has_its_branches(tree: FamilyTree) -> None:
    lines = repr(tree).splitlines()[2:]
    assert [line.split("  ")[0].rstrip() for line in lines if "c" not in line[:9]] == [
        "a",
        "├─ b",
        "├─ d",
        "└─ e",
        "f",
    ]
    assert any(line.startswith("│  └─ c") and "+2 rows" in line for line in lines)
    assert "guess" in lines[1] and "declared" in lines[4]


def test_a_tree_in_a_notebook_escapes_names() -> None:
    odd = Member("a" * 64, ("<b>x</b>",), "model", "", 1, 0.0)
    tree = FamilyTree(Lineage({odd.digest: odd}, {}))
    for shown in (tree._repr_html_(), tree.dendrogram().svg):
        assert "<b>x" not in shown and "&lt;b&gt;x" in shown


def test_a_dendrogram_is_drawn_to_scale(tree: FamilyTree, tmp_path: Path) -> None:
    path = tree.dendrogram().save(tmp_path / "tree.svg")
    root = xml.parse(path).getroot()
    space = "{http://www.w3.org/2000/svg}"
    x = [float(circle.attrib["cx"]) for circle in root.iter(f"{space}circle")]
    a, b, c, d, _, f = x
    assert c - a == pytest.approx(4 * (b - a), abs=0.5)
    assert d - a == pytest.approx(2 * (b - a), abs=0.5)
    assert a == f
    dashed = [path for path in root.iter(f"{space}path") if path.attrib.get("class") == "guess"]
    assert len(dashed) == 3


def test_an_empty_tree_can_be_shown() -> None:
    tree = FamilyTree(Lineage({}, {}))
    assert repr(tree) == "no models" and tree._repr_html_() and tree.dendrogram().svg


@pytest.mark.parametrize(
    ("hops", "words"),
    [
        (["layers.5.attention", "layers.5.mlp", "layers.6.attention", "layers.6.mlp"], "5–6"),
        (["layers.0.attention", "layers.2.attention"], "layers 0, 2 attention"),
        (["layers.0.attention", "layers.1.mlp"], "layers 0 attention, layers 1 mlp"),
        (["embedding", "h.3", "h.4"], "h 3–4, embedding"),
        ([], ""),
    ],
)
def test_hops_are_summed_up(hops: list[str], words: str) -> None:
    assert summary(hops) == words or summary(hops) == f"layers {words}"


def test_a_zoo_ranks_its_models_and_blocks(zoo: Zoo) -> None:
    table = zoo.similar("far", top_k=2)
    assert table["name"] == ["near", "base"]
    assert table[0]["differs"] == "layers 2" and table[1]["differs"] == "layers 1–2"
    digest = next(h.block for h in zoo.model("near").chain if h.name == "layers.1.mlp")
    for what in ("near@layers.1.mlp", digest, digest[:8]):
        table = zoo.similar(what)
        assert "base@layers.1.mlp" in table[0]["where"]
        assert table[0]["distance"] < 0.1 < table[1]["distance"]
    assert zoo.explore.similar("far", 1)["name"] == ["near"]
    assert "base" in zoo.explore.dendrogram().svg


def test_what_is_unknown_is_refused_in_words(zoo: Zoo) -> None:
    with pytest.raises(NotFoundError):
        zoo.similar("nobody")
    with pytest.raises(NotFoundError, match="no hop"):
        zoo.similar("base@layers.9.mlp")
    with pytest.raises(UsageError):
        zoo.similar("base", top_k=0)


def test_a_model_shows_its_distance_by_hop(zoo: Zoo) -> None:
    tree = zoo.families()
    assert tree.hops("near")["hop"] == ["layers.1.attention", "layers.1.mlp"]
    assert tree.hops("far")["hop"] == ["layers.2.attention", "layers.2.mlp"]
    for name in ("base", "nobody"):
        with pytest.raises(NotFoundError):
            tree.hops(name)


def test_ranks_of_a_difference_are_shown_when_asked_for(shared: Path, tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    for name in ("base", "novel-lora-merged"):
        zoo.ingest(shared / "family" / name)
    assert "rank" not in zoo.diff("base", "novel-lora-merged")[3]
    rows = [r for r in zoo.diff("base", "novel-lora-merged", rank=True) if r.get("rank")]
    assert len(rows) == 7 * 8 and {row["rank"] for row in rows} == {16}
