"""Blocks are compared by what they do, and planted truths are judged right."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from blockzoo.errors import SourceError, UsageError
from blockzoo.explore.compare import similarity
from blockzoo.explore.similarity import Similarity
from blockzoo.zoo import Zoo
from tests.planted import write_text

Texts = dict[str, Path]


def row(found: Similarity, hop: str) -> dict[str, Any]:
    return dict(next(row for row in found.table if row["hop"] == hop))


def test_blocks_perturbed_at_known_sizes(planted: Zoo, texts: Texts) -> None:
    for name, size in (("near", 0.002), ("middling", 0.03), ("far", 0.5)):
        found = planted.similarity("base", name, texts["calibration"])
        for hop in ("layers.0.attention", "layers.2.mlp"):
            told = row(found, hop)
            assert told["distance"] == pytest.approx(size, rel=1e-3)
            # a block of several matrices, each off by that much, is off by a few times it
            assert size / 2 < told["error"] < 6 * size
        first = row(found, "layers.0.attention")
        assert (first["cka"] > 0.99) == (name != "far")
        assert row(found, "embedding")["error"] == row(found, "head")["error"] == 0


def test_the_error_is_that_of_outputs_on_the_same_inputs(
    planted: Zoo, texts: Texts, tmp_path: Path
) -> None:
    """Against transformers' layers, fed with the first model's hidden states."""
    models = []
    for name in ("base", "far"):
        planted.export(name, tmp_path / name)
        models.append(AutoModelForCausalLM.from_pretrained(tmp_path / name).eval())
    line = texts["calibration"].read_text().splitlines()[0]
    tokenizer = planted.tokenizer(planted.model("base"))
    text = tmp_path / "line.txt"
    text.write_text(line + "\n" + line[::-1].replace("w", " ") + " w3 w4 w5" * 12)
    ids = [tokenizer(document)["input_ids"] for document in text.read_text().splitlines()]
    apart = moved = 0.0
    for tokens in ids:
        seen: dict[str, torch.Tensor] = {}
        layer, other = (model.model.layers[2] for model in models)
        hook = layer.post_attention_layernorm.register_forward_pre_hook(
            lambda _, given, seen=seen: seen.update(x=given[0])
        )
        with torch.no_grad():
            models[0](torch.tensor([tokens]))
            x = seen["x"]
            f = layer.mlp(layer.post_attention_layernorm(x))
            g = other.mlp(other.post_attention_layernorm(x))
        hook.remove()
        apart += float(((g - f) ** 2).sum())
        moved += float((f**2).sum())
    told = row(planted.similarity("base", "far", text), "layers.2.mlp")
    assert told["error"] == pytest.approx(math.sqrt(apart / moved), rel=1e-3)


def test_permuted_neurons_are_far_in_weights_and_the_same_in_what_they_do(
    planted: Zoo, texts: Texts
) -> None:
    told = row(planted.similarity("base", "permuted", texts["calibration"]), "layers.1.mlp")
    assert told["distance"] > 1 and told["error"] < 1e-5 and told["cka"] > 0.9999


def test_a_dead_head_is_far_in_weights_and_does_nothing(planted: Zoo, texts: Texts) -> None:
    told = row(planted.similarity("quiet", "dead", texts["calibration"]), "layers.1.attention")
    assert told["distance"] > 0.5 and told["error"] < 1e-6 and told["cka"] > 0.9999


def test_one_changed_projection_is_not_hidden_by_a_mean(planted: Zoo) -> None:
    told = row(planted.similarity("base", "one"), "layers.1.attention")
    assert told["distance"] == pytest.approx(0.2, rel=1e-3)
    assert told["tensor"] == "self_attn.v_proj.weight" and told["mean"] < 0.11
    assert row(planted.similarity("base", "one"), "layers.1.mlp")["distance"] == 0


def test_a_huge_dimension_in_common_does_not_make_strangers_alike(
    planted: Zoo, texts: Texts
) -> None:
    told = row(planted.similarity("loud", "louder", texts["calibration"]), "layers.1.mlp")
    # seen as a whole the outputs look alike, since one dimension is all that is seen
    assert told["error_by_dimension"] > 1
    assert told["error_by_dimension"] > 1.2 * told["error"]
    assert abs(told["cka"]) < 0.3


def test_few_tokens_are_said_to_be_few(planted: Zoo, tmp_path: Path) -> None:
    text = write_text(tmp_path / "few.txt", 3, documents=4, length=30)
    found = planted.similarity("base", "other", text)
    assert found.activations is not None and found.activations.few
    assert "too few tokens" in found.table.note and found.to_json()["few"]
    assert abs(row(found, "layers.0.mlp")["cka"]) < 0.4
    tiny = write_text(tmp_path / "tiny.txt", 3, documents=2, length=10)
    with pytest.raises(SourceError, match="too small"):
        planted.similarity("base", "other", tiny)


def test_models_of_other_widths_are_compared_by_cka_alone(shared: Path, tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    for name in ("base", "small", "chat-added-tokens"):
        zoo.ingest(shared / "family" / name, name=name)
    text = shared / "texts" / "trec.calibration.txt"
    found = similarity(zoo, "base", "small", text, tokens=1000)
    told = row(found, "layers.0.mlp")
    assert told.get("distance") is None and told["error"] is None and 0.1 < told["cka"] < 0.9
    # an embedding that has grown reads the same text, and its first rows are compared
    grown = similarity(zoo, "base", "chat-added-tokens", text, tokens=1000)
    assert row(grown, "layers.2.attention")["error"] == 0
    assert row(grown, "head")["error"] < 0.01  # its norm alone; the matrix is the embedding's
    zoo.ingest(shared / "family" / "sql-full", name="sql-full")
    tied = row(similarity(zoo, "base", "sql-full", text, tokens=1000), "embedding")
    assert tied["error"] > 0.1  # where it is the LM head; what goes in is off by 3%


def test_clusters_heatmap_and_json(planted: Zoo, texts: Texts) -> None:
    found = planted.similarity("base", "middling", texts["calibration"])
    clusters = found.clusters(0.05)
    assert ["base@layers.1.mlp", "middling@layers.1.mlp"] in clusters["members"]
    assert all(len(members) == 2 for members in clusters["members"])
    weights = found.clusters(0.05, "weights")
    assert ["base@layers.2.attention", "middling@layers.2.attention"] in weights["members"]
    for measure in ("weights", "activations"):
        svg = found.heatmap(measure).svg  # type: ignore[arg-type]
        assert svg.startswith("<svg") and svg.count("<rect") >= 49
        assert "layers.1.mlp · layers.1.mlp" in svg
        tree = ElementTree.fromstring(found.dendrogram(measure).svg)  # type: ignore[arg-type]
        paths = list(tree.iter("{http://www.w3.org/2000/svg}path"))
        assert len(paths) == len(found.matrix(measure)[0]) - 1  # type: ignore[arg-type]
        ElementTree.fromstring(svg)
    worth = found.candidates(1.0)
    assert len(worth) == 6 and worth["drift"] == sorted(worth["drift"])
    assert len(found.candidates(1e-6)) == 0
    permuted = planted.similarity("base", "permuted", texts["calibration"])
    assert permuted.candidates()["hop"] == ["layers.1.mlp"]
    assert len(planted.similarity("base", "permuted").candidates()) == 0  # by weights it is far
    assert found.to_json()["rows"][0]["hop"] == "embedding"
    assert "largest distance" in repr(found) and "<table" in found._repr_html_()
    alone = planted.similarity("base", "middling")
    assert "CKA" not in repr(alone) and alone.activations is None
    with pytest.raises(UsageError, match="no text"):
        alone.heatmap("activations")


def test_an_adapter_is_compared_with_its_base(shared: Path, tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    zoo.ingest(shared / "family" / "base", name="base")
    text = shared / "texts" / "trec.calibration.txt"
    for adapter in ("trec-dora", "trec-prefix"):
        zoo.ingest(shared / "family" / adapter, name=adapter, base="base")
        found = similarity(zoo, "base", adapter, text, tokens=500)
        told = row(found, "layers.4.attention")
        assert told["distance"] == 0 and told["error"] > 0.001
        assert row(found, "layers.4.mlp")["error"] == 0
    assert "adapter" in similarity(zoo, "base", "trec-dora").table.note
