"""How a chain runs: what it keeps, where it ends, and what it refuses."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoHaConfig, LoraConfig

from blockzoo.errors import UnservableError, UsageError
from blockzoo.execution.chain import RunnableChain
from blockzoo.execution.executor import Executors
from blockzoo.records import Block, Model
from blockzoo.tensors import TensorRef

from .adapting import adapter_chain, adapter_model, make_adapter
from .running import HeldTensors, Loaded, generate, greedy, prompts
from .tiny import VOCABULARY, load, make


class _Watched:
    """Hands out copies and knows how many of them are alive."""

    def __init__(self, held: HeldTensors) -> None:
        self._held = held
        self._out: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
        self.most = 0

    def tensor(self, ref: TensorRef) -> torch.Tensor:
        tensor = self._held.tensor(ref).clone()
        self._out.add(tensor)
        self.most = max(self.most, len(self._out))
        return tensor

    def derived(
        self,
        key: str,
        parts: Sequence[TensorRef],
        build: Callable[[Sequence[torch.Tensor]], torch.Tensor],
    ) -> torch.Tensor:
        return build([self.tensor(part) for part in parts])

    @property
    def alive(self) -> int:
        gc.collect()
        return len(self._out)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_one_block_is_in_memory_at_a_time(name: str, tmp_path: Path) -> None:
    loaded = Loaded(make(name, tmp_path))
    watched = _Watched(loaded.source)
    chain = RunnableChain(
        loaded.model, loaded.blocks, loaded.config, watched, executors=Executors()
    )
    chain(prompts(VOCABULARY))
    assert watched.alive == 0
    assert watched.most <= max(len(block.tensors) for block in loaded.blocks.values())


def test_the_cache_gives_what_the_whole_text_gives(tmp_path: Path) -> None:
    chain = Loaded(make("gemma3", tmp_path)).chain()
    ids = prompts(VOCABULARY, 24)
    cache = chain.new_cache()
    pieces = [chain(ids[:, i : i + 8], None, cache, logits_to_keep=0) for i in (0, 8, 16)]
    whole = chain(ids, logits_to_keep=0)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(chain(ids, logits_to_keep=3), whole[:, -3:], atol=1e-5, rtol=0)


def test_a_chain_names_every_tensor_it_uses(tmp_path: Path) -> None:
    loaded = Loaded(make("mixtral", tmp_path))
    stored = {ref for block in loaded.blocks.values() for ref in block.tensors.values()}
    assert set(loaded.chain().refs()) == stored


def test_an_adapters_tensors_are_named_too(tmp_path: Path) -> None:
    base = make("llama", tmp_path)
    loaded = Loaded(base)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], use_dora=True)
    adapter = make_adapter(base, config, tmp_path / "adapter")
    model, blocks = adapter_model(loaded, adapter)
    used = set(adapter_chain(loaded, adapter).refs())
    own = [blocks[digest] for hop in model.chain for digest in hop.adapters]
    assert own
    assert all(ref in used for block in own for ref in block.tensors.values())


def test_experts_are_fused_once(tmp_path: Path) -> None:
    loaded = Loaded(make("mixtral", tmp_path))
    for _ in range(2):
        loaded.chain()(prompts(VOCABULARY))
    assert len(loaded.source.made) == 2 * loaded.config["num_hidden_layers"]


def test_dynamic_rotary_scaling_does_not_remember_another_text(tmp_path: Path) -> None:
    chain = Loaded(make("llama-dynamic-rope", tmp_path)).chain()
    short, long = prompts(VOCABULARY, 12), prompts(VOCABULARY, 40)
    before = chain(short)
    chain(long)
    assert torch.equal(chain(short), before)


def test_a_text_past_the_learned_positions_is_refused(tmp_path: Path) -> None:
    chain = Loaded(make("gpt2", tmp_path)).chain()
    assert chain.max_positions == 64
    cache = chain.new_cache()
    chain(prompts(VOCABULARY, 64), None, cache)
    with pytest.raises(UsageError, match=r"65 tokens.*64"):
        chain(prompts(VOCABULARY, 1), None, cache)


def test_a_longrope_text_is_run_anew_where_its_factors_change(tmp_path: Path) -> None:
    folder = make("phi3-longrope", tmp_path)
    chain = Loaded(folder).chain()
    limit = chain.recompute_after
    assert limit == 64
    ids = prompts(VOCABULARY, 60)[:1]
    with pytest.raises(UnservableError, match="64"):
        greedy(chain, ids)
    expected = generate(load(folder), ids)
    cache, step, text = chain.new_cache(), ids, ids
    while text.shape[1] < expected.shape[1]:
        past = cache.get_seq_length()
        if 0 < past <= limit < past + step.shape[1]:
            cache, step = chain.new_cache(), text
        step = chain(step, None, cache)[:, -1].argmax(-1, keepdim=True)
        text = torch.cat([text, step], dim=1)
    assert torch.equal(text, expected)


def test_a_layer_that_is_missing_is_named(tmp_path: Path) -> None:
    loaded = Loaded(make("llama", tmp_path))
    hop = loaded.model.chain[3]
    block = loaded.blocks[hop.block]
    kept = {name: ref for name, ref in block.tensors.items() if "o_proj" not in name}
    broken = Block(block.kind, block.spec, kept)
    chain = [replace(h, block=broken.digest) if h is hop else h for h in loaded.model.chain]
    model = replace(loaded.model, chain=tuple(chain))
    blocks = {**loaded.blocks, broken.digest: broken}
    with pytest.raises(UnservableError, match=r"layers\.1\.self_attn\.o_proj\.weight"):
        RunnableChain(model, blocks, loaded.config, loaded.source)


def test_an_unknown_family_is_refused(tmp_path: Path) -> None:
    loaded = Loaded(make("llama", tmp_path))
    with pytest.raises(UnservableError, match="mamba"):
        RunnableChain(loaded.model, loaded.blocks, {"model_type": "mamba"}, loaded.source)


@pytest.mark.parametrize("change", [{"hidden_act": "nope"}, {"rms_norm_eps": "tiny"}])
def test_a_config_that_transformers_cannot_build_is_refused(
    change: dict[str, object], tmp_path: Path
) -> None:
    loaded = Loaded(make("llama", tmp_path))
    blocks = {
        digest: replace(block, spec={**block.spec, "config": {**block.spec["config"], **change}})
        for digest, block in loaded.blocks.items()
    }
    with pytest.raises(UnservableError, match=r"transformers|expected a number"):
        RunnableChain(loaded.model, blocks, {**loaded.config, **change}, loaded.source)


def test_an_adapter_without_its_base_is_refused() -> None:
    model = Model("adapter", "lora", (), (), wants="acme/base")
    with pytest.raises(UnservableError, match="acme/base"):
        RunnableChain(model, {}, {"model_type": "llama"}, HeldTensors())


def test_an_adapter_type_that_is_not_applied_is_refused_by_name(tmp_path: Path) -> None:
    base = make("llama", tmp_path)
    config = LoHaConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    adapter = make_adapter(base, config, tmp_path / "adapter")
    with pytest.raises(UnservableError, match="loha"):
        adapter_chain(Loaded(base), adapter)
