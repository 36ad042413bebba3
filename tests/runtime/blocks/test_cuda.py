"""On a CUDA device: the same answers, by its own attention kernel, and nothing to wait for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from blockzoo_runtime import LLM
from blockzoo_runtime.blocks import transfer
from blockzoo_runtime.blocks.runner import Work
from blockzoo_runtime.blocks.transfer import Transfer
from blockzoo_runtime.kv import packed

from blockzoo.zoo import Zoo
from tests.execution.tiny import TINY, load, make
from tests.runtime.answers import COUNT, PROMPTS
from tests.runtime.blocks.stepping import Row, Stepper
from tests.runtime.blocks.test_mixture import TINY_PROMPTS, answers
from tests.runtime.test_compact import PROMPTS as COMPACT_PROMPTS
from tests.runtime.test_compact import TENANTS, compact_zoo

pytestmark = pytest.mark.gpu

#: tenants that part in full weights, adapters and more; no virtual tokens
NAMES = ("base", "shakespeare-top3", "code-lora-qv", "trec-dora", "sentiment-ia3", "math-full")
PROMPT = [(17 * i) % 4000 + 5 for i in range(45)]


@pytest.fixture
def cuda() -> Iterator[torch.device]:
    exact = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield torch.device("cuda", torch.cuda.current_device())
    torch.backends.cuda.matmul.allow_tf32 = exact


def test_every_tenant_gives_the_tokens_of_transformers(
    cuda: torch.device,
    real_zoo: Zoo,
    expected: dict[tuple[str, int], tuple[Any, list[int]]],
) -> None:
    with LLM(real_zoo, device=cuda, dtype="float32") as llm:
        keys = list(expected)
        asked = [(name, expected[name, n][0]) for name, n in keys]
        out = llm.generate(asked, max_new_tokens=COUNT)
    same = [list(completion.token_ids) == expected[key][1]
            for key, completion in zip(keys, out, strict=True)]  # fmt: skip
    # sums are taken in another order than on a CPU: a tie may go the other way
    assert sum(same) >= 0.99 * len(same), [k for k, ok in zip(keys, same, strict=True) if not ok]


def test_every_family_has_the_logits_of_transformers(cuda: torch.device, tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    models = {}
    for name in TINY:
        folder = make(name, tmp_path)
        zoo.ingest(folder)
        models[name] = load(folder)
    stepper = Stepper(zoo, device=cuda)
    rows = {name: stepper.row(name, TINY_PROMPTS[1], 4, chunk=5) for name in models}
    stepper.run(list(rows.values()))
    for name, row in rows.items():
        _, right = answers(models[name], row.prompt, 4)
        mine = torch.stack(row.logits)
        assert (mine[0] - right[0, : mine.shape[1]]).abs().max() < 1e-3, name


def test_compact_models_give_the_tokens_of_a_cpu(cuda: torch.device, tmp_path: Path) -> None:
    zoo = compact_zoo(tmp_path, "llama")
    asked = [(name, prompt) for name in TENANTS for prompt in COMPACT_PROMPTS]
    answers = []
    for device in ("cpu", cuda):
        with LLM(zoo, device=device, dtype="float32") as llm:
            answers.append([out.token_ids for out in llm.generate(asked, max_new_tokens=COUNT)])
    same = [a == b for a, b in zip(*answers, strict=True)]
    assert sum(same) >= 0.99 * len(same)


def first_logits(stepper: Stepper) -> torch.Tensor:
    """Logits after a prompt given in chunks, beside rows that are decoded already."""
    rows = [stepper.row(name, PROMPT[:20], 6) for name in NAMES]
    stepper.step(rows)
    late = [stepper.row(name, PROMPT, 1, chunk=17) for name in NAMES]
    for _ in range(3):
        stepper.step([*rows, *late])
    return torch.stack([row.logits[0][:4096] for row in (*rows, *late)])


def test_the_attention_kernel_gives_what_padded_rows_get(
    cuda: torch.device, real_zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = first_logits(Stepper(real_zoo))
    calls = 0
    attend = packed.Packed.attend

    def counted(*args: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return attend(*args)

    monkeypatch.setattr(packed.Packed, "attend", counted)
    by_kernel = first_logits(Stepper(real_zoo, torch.bfloat16, cuda))
    assert calls
    monkeypatch.setattr(packed, "is_usable", lambda *_: False)
    padded = first_logits(Stepper(real_zoo, torch.bfloat16, cuda))
    error = (by_kernel - exact).abs().mean()
    assert error <= 1.5 * (padded - exact).abs().mean()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_decode_step_waits_for_nothing(
    cuda: torch.device, real_zoo: Zoo, dtype: torch.dtype
) -> None:
    stepper = Stepper(real_zoo, dtype, cuda)
    rows = [stepper.row(name, PROMPT[: 10 + i], 8) for i, name in enumerate(NAMES)]
    stepper.step(rows)
    stepper.step(rows)
    works = [work(stepper, row) for row in rows]
    torch.cuda.set_sync_debug_mode("error")
    try:
        logits, _ = stepper.runner.step(works)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(logits.of(i).isfinite().any() for i in range(len(rows)))


def work(stepper: Stepper, row: Row) -> Work:
    end = len(row.slots)
    assert stepper.kv.extend(row.pages, end)
    return Work(row.tenant, row.pages, row.slots, end)


@pytest.mark.parametrize("count", [0, 1, 1000, transfer._PIECE // 4, 5 * transfer._PIECE // 8])
def test_a_tensor_of_any_size_arrives_whole(cuda: torch.device, count: int) -> None:
    bring = Transfer(cuda)
    tensor = torch.randn(count, 1)
    for dtype in (torch.float32, torch.bfloat16):
        assert bring(tensor, dtype).cpu().equal(tensor.to(dtype))
    whole = torch.arange(count)
    assert bring(whole, torch.bfloat16).cpu().equal(whole)
    assert bring(torch.tensor(2.5), torch.float32).item() == 2.5


def test_tenants_brought_in_beside_steps_are_whole(cuda: torch.device, real_zoo: Zoo) -> None:
    with LLM(real_zoo, device=cuda, dtype="float32") as llm:
        names = [name for name in NAMES for _ in range(2)]
        alone = {name: llm.generate([(name, PROMPTS[0])], max_new_tokens=8)[0] for name in NAMES}
    with LLM(real_zoo, device=cuda, dtype="float32") as llm:
        out = llm.generate([(name, PROMPTS[0]) for name in names], max_new_tokens=8)
    for name, completion in zip(names, out, strict=True):
        assert completion.token_ids == alone[name].token_ids
