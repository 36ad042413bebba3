"""Compact differences: chains that have them compute what a model of base + difference computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockzoo.errors import UnservableError
from blockzoo.execution.chain import RunnableChain
from blockzoo.execution.executor import Executors
from blockzoo.execution.packing import WIDTHS, middle, pack, run_length, unpack
from blockzoo.partition import why_not_served
from blockzoo.records import Block, Model

from .compacting import Compacted, Way, compacted
from .running import Loaded, prompts
from .tiny import VOCABULARY, load, make


@given(
    bits=st.sampled_from(WIDTHS),
    rows=st.integers(0, 20),
    columns=st.integers(1, 300),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_codes_come_back_from_their_bytes(bits: int, rows: int, columns: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=draw)
    packed = pack(codes, bits)
    assert packed.shape == (rows, run_length(columns, bits)) and packed.dtype == torch.uint8
    assert torch.equal(unpack(packed, bits, columns, torch.float32), codes - middle(bits))
    if rows:  # a row alone, as an embedding's are looked up
        assert torch.equal(
            unpack(packed[-1], bits, columns, torch.float32), codes[-1] - middle(bits)
        )


def lay(base: Loaded, ways: Mapping[str, Way] | Way, seed: int = 0) -> Compacted:
    """A way for each matrix by a part of its name, or one for all."""

    def way(name: str) -> Way:
        if not isinstance(ways, Mapping):
            return ways
        return next((way for part, way in ways.items() if part in name), "none")

    source = base.source
    return compacted(base.chain(), base.model, source.tensor, source.add, way, seed)


def run(base: Loaded, compact: Compacted) -> torch.Tensor:
    chain = RunnableChain(
        compact.model, {**base.blocks, **compact.blocks}, base.config, base.source,
        executors=Executors(),
    )  # fmt: skip
    return chain(prompts(VOCABULARY), logits_to_keep=0)


def dense(folder: Path, compact: Compacted) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = compact.apply(load(folder))(prompts(VOCABULARY)).logits
    return logits


MIXED: dict[str, Way] = {
    "embed": 4, "wte": 4, "head": 2, "layers.0": 1, "layers.1": "lowrank", "layers.2": 2, "norm": 1,
    "h.0": "lowrank", "h.1": 1, "h.2": 4,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "ways"),
    [
        *(("llama", bits) for bits in WIDTHS),
        *(("llama-odd-tied", bits) for bits in WIDTHS),
        *((name, ways) for name in ("gpt2", "gpt2-inverse-depth", "gemma2")
          for ways in (1, 4, MIXED)),
        ("llama", "lowrank"),
        ("llama", "full"),
        ("llama-biases", MIXED),
        ("llama-odd-tied", MIXED),
        ("gemma3", 2),
        ("phi3", 4),
        ("qwen2", MIXED),
        ("neox-parallel", 2),
        ("mixtral", MIXED),
    ],
)  # fmt: skip
def test_a_compact_chain_computes_what_the_dense_model_does(
    tmp_path: Path, name: str, ways: Any
) -> None:
    folder = make(name, tmp_path)
    base = Loaded(folder)
    compact = lay(base, ways)
    expected = dense(folder, compact)
    scale = expected.abs().max()
    torch.testing.assert_close(run(base, compact) / scale, expected / scale, atol=1e-5, rtol=0)
    untouched = base.chain()(prompts(VOCABULARY), logits_to_keep=0)
    assert (untouched - expected).abs().max() / scale > 1e-2, "a difference that shows"


def test_a_tied_head_names_the_embedding_s_tensors(tmp_path: Path) -> None:
    base = Loaded(make("llama-odd-tied", tmp_path))
    compact = lay(base, {"embed": 2})
    embedding, head = (compact.blocks[compact.model.chain[i].adapters[0]] for i in (0, -1))
    assert {*embedding.tensors.values()} == {*head.tensors.values()}
    assert len(compact.changes) == 1


SOUND: dict[str, Way] = {"mlp": 4, "q_proj": "lowrank", "layernorm": "full"}


def broken(
    base: Loaded, hop: str, change: Any, ways: Mapping[str, Way] = SOUND
) -> tuple[Model, dict[str, Block]]:
    """A compact model, the adapter of one hop changed."""
    compact = lay(base, ways)
    blocks, chain = {**base.blocks, **compact.blocks}, []
    for each in compact.model.chain:
        if each.name == hop:
            block = blocks[each.adapters[0]]
            spec, tensors = dict(block.spec), dict(block.tensors)
            spec["modules"] = {path: dict(facts) for path, facts in spec["modules"].items()}
            spec["replaces"] = dict(spec["replaces"])
            change(spec, tensors)
            block = Block("adapter", spec, tensors)
            blocks[block.digest] = block
            each = replace(each, adapters=(block.digest,))
        chain.append(each)
    return replace(compact.model, chain=tuple(chain)), blocks


UP, Q = "mlp.up_proj", "self_attn.q_proj"


def another(base: Loaded, *shape: int, dtype: torch.dtype = torch.float32) -> Any:
    return base.source.add(torch.zeros(shape, dtype=dtype))


@pytest.mark.parametrize(
    ("hop", "change", "reason"),
    [
        ("mlp", lambda b, s, t: s["modules"][UP].update(method="svd"), "'svd' are not known"),
        ("mlp", lambda b, s, t: s["modules"][UP].update(bits=3), "3 bits, not of 1, 2, 4"),
        ("mlp", lambda b, s, t: s["modules"][UP].update(columns=31), "31 columns, the base's has"),
        ("mlp", lambda b, s, t: s["modules"].update({"mlp.x": {}}), "mlp.x, which has no weight"),
        ("mlp", lambda b, s, t: s["modules"].pop(UP), "belongs to no module"),
        ("mlp", lambda b, s, t: t.pop(f"{UP}.scale"), "has no model.layers.1.mlp.up_proj.scale"),
        (
            "mlp",
            lambda b, s, t: t.update({f"{UP}.scale": another(b, 47)}),
            r"\[47\], \[48\] would fit",
        ),
        (
            "mlp",
            lambda b, s, t: t.update({f"{UP}.codes": another(b, 48, 15, dtype=torch.uint8)}),
            r"\[48, 15\], \[48, 16\] would fit",
        ),
        (
            "mlp",
            lambda b, s, t: t.update({f"{UP}.codes": another(b, 48, 16)}),
            "up_proj.codes is F32",
        ),
        (
            "mlp",
            lambda b, s, t: s["modules"].update({"mlp.experts.0.w1": s["modules"][UP]}),
            "run fused with the other experts",
        ),
        ("attention", lambda b, s, t: s["modules"][Q].update(alpha=9), "the rank 3 and alpha 9"),
        (
            "attention",
            lambda b, s, t: t.update({f"{Q}.lora_B.weight": another(b, 33, 3)}),
            r"of \[33, 32\], the base's is \[32, 32\]",
        ),
        (
            "attention",
            lambda b, s, t: t.update({"input_layernorm.weight": another(b, 31)}),
            "does not fit the base's",
        ),
    ],
)
def test_what_cannot_be_laid_on_the_base_is_named(
    tmp_path: Path, hop: str, change: Any, reason: str
) -> None:
    base = Loaded(make("llama", tmp_path))
    model, blocks = broken(base, f"layers.1.{hop}", lambda s, t: change(base, s, t))
    with pytest.raises(UnservableError, match=reason):
        RunnableChain(model, blocks, base.config, base.source)
    whole, blocks = broken(base, f"layers.1.{hop}", lambda s, t: None)
    assert why_not_served(whole, blocks, base.config) is None


def test_a_matrix_that_lies_otherwise_is_refused(tmp_path: Path) -> None:
    base = Loaded(make("llama", tmp_path))

    def turn(spec: dict[str, Any], tensors: dict[str, Any]) -> None:
        spec["modules"]["self_attn.o_proj"]["transposed"] = True  # it is square

    model, blocks = broken(base, "layers.1.attention", turn, {"o_proj": 4})
    with pytest.raises(UnservableError, match="lies otherwise"):
        RunnableChain(model, blocks, base.config, base.source)


def test_codes_of_another_adapter_type_are_refused(tmp_path: Path) -> None:
    base = Loaded(make("llama", tmp_path))
    model, blocks = broken(base, "layers.1.mlp", lambda s, t: s.update(type="lora"))
    reason = why_not_served(model, blocks, base.config)
    assert reason is not None and "is U8, not floating point" in reason


def test_a_second_adapter_on_a_matrix_is_refused(tmp_path: Path) -> None:
    base = Loaded(make("llama", tmp_path))
    compact = lay(base, {"q_proj": 4})
    first, hop, *rest = compact.model.chain
    twice = replace(hop, adapters=hop.adapters * 2)
    model = replace(compact.model, chain=(first, twice, *rest))
    reason = why_not_served(model, {**base.blocks, **compact.blocks}, base.config)
    assert reason == "two adapters are on model.layers.0.self_attn.q_proj"
