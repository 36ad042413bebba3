"""How a model and a block show themselves."""

from __future__ import annotations

import json

import pytest

from blockzoo.errors import NotFoundError
from blockzoo.explore import BlockView, ModelView
from blockzoo.records import Block, Hop, Model, Part, Recipe
from blockzoo.tensors import TensorRef
from tests.explore.test_table import assert_works_offline


def _ref(letter: str, *shape: int) -> TensorRef:
    return TensorRef("BF16", shape, letter * 64)


EMBEDDING = Block("embedding", {"family": "llama"}, {"model.embed_tokens.weight": _ref("a", 64, 8)})
ATTENTION = Block(
    "attention",
    {"family": "llama", "config": {"hidden_act": "<silu>"}},
    {"self_attn.q_proj.weight": _ref("b", 8, 8), "self_attn.o_proj.weight": _ref("c", 8, 8)},
)
ADAPTER = Block("adapter", {"type": "lora"}, {"self_attn.q_proj.lora_A.weight": _ref("d", 2, 8)})
BLOCKS = {block.digest: block for block in (EMBEDDING, ATTENTION, ADAPTER)}
CHAIN = (
    Hop("embedding", "embedding", "", EMBEDDING.digest),
    Hop("layers.0.attention", "attention", "model.layers.0.", ATTENTION.digest, (ADAPTER.digest,)),
)
FILES = (Recipe("config.json", (Part("bytes", 3, literal=b"{}\n"),)),)
MODEL = Model("adapter", "lora", CHAIN, FILES, base="e" * 64, wants="acme/base")
SHARERS = {EMBEDDING.digest: ["base", "sql"], "a" * 64: ["base", "sql"], "b" * 64: ["base"]}
VIEW = ModelView("acme/code", MODEL, BLOCKS, SHARERS, base="base")


def test_the_chain_has_a_row_a_block_and_adapters_follow_their_hop() -> None:
    chain = VIEW.chain()
    assert list(zip(chain["hop"], chain["kind"], strict=True)) == [
        ("embedding", "embedding"),
        ("layers.0.attention", "attention"),
        ("layers.0.attention", "adapter"),
    ]
    assert chain["shared_with"] == [["base", "sql"], [], []]
    assert chain["bytes"] == [1024, 256, 32]


def test_a_block_that_shares_one_tensor_shows_that_tensors_bytes() -> None:
    assert VIEW.chain()["shared_bytes"] == [1024, 128, 0]
    assert VIEW.shared_bytes == 1024 + 128
    assert VIEW.tensor_bytes == 1024 + 256 + 32
    assert "1.15 kB of 1.31 kB (87.8 %) shared" in repr(VIEW)


def test_text_names_the_model_its_base_and_every_hop() -> None:
    text = repr(VIEW)
    assert "acme/code" in text and "on base" in text and MODEL.digest in text
    assert text.count("layers.0.attention") == 2
    assert "config.json" in text


def test_a_model_that_is_not_served_says_why() -> None:
    view = ModelView("x", MODEL, BLOCKS, not_served="LoHa <adapters> are kept only")
    assert "LoHa <adapters> are kept only" in repr(view)
    assert "LoHa &lt;adapters&gt; are kept only" in view._repr_html_()


def test_a_detached_adapter_shows_what_it_waits_for() -> None:
    chain = (Hop("layers.0.attention", "attention", "model.layers.0.", "", (ADAPTER.digest,)),)
    view = ModelView("x", Model("adapter", "lora", chain, FILES, wants="acme/base"), BLOCKS)
    assert "detached; wants acme/base" in repr(view)
    assert view.chain()["kind"] == ["adapter"]
    assert_works_offline(view._repr_html_())


def test_html_folds_open_and_work_offline() -> None:
    markup = VIEW._repr_html_()
    assert_works_offline(markup)
    assert "<details open><summary>" in markup, "the chain is open from the start"
    assert "BF16 64 × 8" in markup, "shapes are seen without opening a hop"
    assert "also in base, sql" in markup


def test_a_missing_block_is_shown_and_not_an_error() -> None:
    view = ModelView("x", MODEL, {EMBEDDING.digest: EMBEDDING})
    assert view.chain()["bytes"] == [1024, None, None]
    assert "not in this zoo" in view._repr_html_()
    assert "layers.0.attention" in repr(view)


def test_json_of_a_model_is_plain_and_whole() -> None:
    data = json.loads(json.dumps(VIEW.to_json()))
    assert data["name"] == "acme/code"
    assert data["digest"] == MODEL.digest
    assert data["chain"][2]["block"] == ADAPTER.digest
    assert data["files"] == [{"path": "config.json", "bytes": 3}]


def test_a_block_is_reached_by_its_hop() -> None:
    attention = VIEW.block("layers.0.attention")
    assert attention.digest == ATTENTION.digest
    assert attention.used_by == ["acme/code"]
    assert attention.tensors()["shared_with"] == [["acme/code"], ["acme/code", "base"]]
    assert VIEW.block("embedding").used_by == ["acme/code", "base", "sql"]
    assert VIEW.block("layers.0.attention", adapter=0).digest == ADAPTER.digest


@pytest.mark.parametrize(("hop", "adapter"), [("layers.9.mlp", None), ("embedding", 0)])
def test_a_hop_that_is_not_there_is_named(hop: str, adapter: int | None) -> None:
    with pytest.raises(NotFoundError, match=hop):
        VIEW.block(hop, adapter)


@pytest.mark.parametrize("used_by", [(), ("base", "sql", "math", "trec", "code", "chat")])
def test_a_block_shows_its_spec_tensors_and_users(used_by: tuple[str, ...]) -> None:
    view = BlockView(ATTENTION, used_by, SHARERS)
    assert "self_attn.q_proj.weight" in repr(view) and "8 × 8" in repr(view)
    assert (", ".join(used_by) or "no named model") in repr(view)
    markup = view._repr_html_()
    assert_works_offline(markup)
    assert "&lt;silu&gt;" in markup and "<silu>" not in markup
    assert ("and 2 more" in markup) == bool(used_by)
    assert view.to_json()["tensors"][0]["shape"] == [8, 8]
