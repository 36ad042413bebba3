"""Tensors in memory: each once, within the budget, and gone when nobody needs them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from blockzoo_runtime import LLM
from blockzoo_runtime.blocks.needs import Needs
from blockzoo_runtime.blocks.resident import ResidentTensors, parse_bytes
from blockzoo_runtime.kv.memory import Memory

from blockzoo.errors import UsageError
from blockzoo.tensors import TensorInfo, TensorRef
from blockzoo.zoo import Zoo
from tests.runtime.answers import PROMPTS, answer, reference

FAMILY = (
    "base", "math-full", "sql-full", "sql-then-trec-full", "shakespeare-top3",
    "shakespeare-norms", "novel-lora-merged", "chat-added-tokens", "code-lora-qv",
    "sentiment-lora-all", "trec-dora", "sentiment-ia3", "trec-prefix", "small",
)  # fmt: skip


def distinct_bytes(zoo: Zoo, names: tuple[str, ...]) -> int:
    sizes = {
        ref.digest: ref.nbytes
        for name in names
        for block in zoo.blocks_of(zoo.model(name)).values()
        for ref in block.tensors.values()
    }
    return sum(sizes.values())


def test_all_tenants_together_hold_each_distinct_tensor_once(real_zoo: Zoo) -> None:
    llm = LLM(real_zoo, device="cpu")
    llm.generate([(name, "def") for name in FAMILY], max_new_tokens=1)
    assert llm.nbytes <= 1.01 * distinct_bytes(real_zoo, FAMILY)
    one_by_one = sum(distinct_bytes(real_zoo, (name,)) for name in FAMILY)
    assert llm.nbytes < 0.6 * one_by_one
    table = llm.memory()
    assert set(table["model"]) == set(FAMILY)
    for used, resident in zip(table["bytes"], table["resident_bytes"], strict=True):
        assert 0.99 * used < resident <= used  # DoRA's magnitudes are resident as derived scales
    assert repr(table) in repr(llm)


def test_a_tensor_of_the_compute_dtype_is_not_copied(real_zoo: Zoo) -> None:
    block = real_zoo.blocks_of(real_zoo.model("base"))
    ref = max((r for b in block.values() for r in b.tensors.values()), key=lambda r: r.nbytes)
    mapped = real_zoo.tensor(ref.digest)
    resident = ResidentTensors(lambda digest: mapped, torch.device("cpu"), Memory(None))
    for dtype in (torch.bfloat16, torch.float32):
        needs = Needs(dtype)
        needs.use(ref)
        resident.load(str(dtype), needs)
    tensor = resident.source(torch.bfloat16).tensor(ref)
    assert tensor.data_ptr() == np.frombuffer(mapped[1], np.uint8).ctypes.data
    wide = resident.source(torch.float32).tensor(ref)
    assert torch.equal(wide, tensor.float())
    assert resident.nbytes == tensor.nbytes + wide.nbytes


def test_a_budget_is_kept_and_changes_no_answer(real_zoo: Zoo) -> None:
    requests = [(name, PROMPTS[0]) for name in ("base", "math-full", "trec-dora", "sql-full")]
    free = LLM(real_zoo, device="cpu")
    tight = LLM(real_zoo, device="cpu", memory="15MB")
    expected = free.generate(requests, max_new_tokens=4)
    assert free.nbytes > 40e6
    for _ in range(2):
        assert tight.generate(requests, max_new_tokens=4) == expected
        assert tight.nbytes <= 15e6


def test_two_streams_at_once_share_a_budget_for_one(real_zoo: Zoo) -> None:
    tight = LLM(real_zoo, device="cpu", memory="15MB")
    names = ("math-full", "sql-full")
    expected = [tight.generate([(n, PROMPTS[0])], max_new_tokens=5)[0] for n in names]
    streams = [tight.stream((n, PROMPTS[0]), max_new_tokens=5) for n in names]
    last = list(zip(*streams, strict=True))[-1]
    assert [piece.completion for piece in last] == expected
    assert tight.nbytes <= 15e6


def test_a_budget_too_small_for_one_chain_is_told(real_zoo: Zoo) -> None:
    llm = LLM(real_zoo, device="cpu", memory="10 MB")
    with pytest.raises(UsageError, match=r"13\.7 MB .* 10\.0 MB"):
        llm.generate([("base", "hello")])


def test_the_least_recently_used_tenant_goes_first() -> None:
    info = TensorInfo("F32", (4,))
    resident = ResidentTensors(
        lambda digest: (info, memoryview(bytes(16))), torch.device("cpu"), Memory(32)
    )
    for digest in "abac":
        needs = Needs(torch.float32)
        needs.use(TensorRef("F32", (4,), digest))
        resident.load(f"tenant {digest}", needs)
    assert ("a", torch.float32) in resident and ("c", torch.float32) in resident
    assert ("b", torch.float32) not in resident
    assert resident.nbytes == 32


def test_fused_experts_are_resident_once_and_not_beside_their_parts(tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, eos_token_id=None,
        bos_token_id=None,
    )  # fmt: skip
    MixtralForCausalLM(config).eval().save_pretrained(tmp_path / "moe")
    zoo = Zoo(tmp_path / "zoo")
    zoo.ingest(tmp_path / "moe")
    prompts = [[1, 2, 3], [9, 8, 7, 6, 5], [4]]
    size = distinct_bytes(zoo, ("moe",))
    for llm in (LLM(zoo, device="cpu"), LLM(zoo, device="cpu", memory=size + 20_000)):
        out = llm.generate([("moe", p) for p in prompts], max_new_tokens=8)
        model = reference(tmp_path / "moe")
        assert [list(o.token_ids) for o in out] == [answer(model, p, 8) for p in prompts]
        assert llm.nbytes <= 1.01 * size


@pytest.mark.parametrize(
    ("text", "count"),
    [("8GiB", 8 << 30), ("1.5 MB", 1_500_000), ("64k", 64_000), (12, 12), ("7", 7), (None, None)],
)
def test_amounts_of_memory_are_read(text: str | int | None, count: int | None) -> None:
    assert parse_bytes(text) == count
