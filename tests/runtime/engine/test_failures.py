"""What goes wrong with one model or request happens to it alone; the others go on."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blockzoo_runtime import LLM, Completion, Failed

from blockzoo.errors import BlockzooError, DamagedError, UnservableError, UsageError
from blockzoo.zoo import Zoo
from tests.planted import make_base
from tests.runtime.answers import COUNT, PROMPTS
from tests.runtime.engine.serving import Expected, until


@pytest.fixture
def family(shared: Path, tmp_path: Path) -> Zoo:
    """A small zoo of one's own: the base, a full fine-tune, a LoRA."""
    zoo = Zoo(tmp_path / "zoo")
    for name in ("base", "math-full", "code-lora-qv"):
        zoo.ingest(shared / "family" / name)
    return zoo


def test_a_replaced_model_is_served_fresh_while_the_old_one_finishes(
    family: Zoo, shared: Path, open_llm: Callable[..., LLM], expected: Expected
) -> None:
    llm = open_llm(family)
    old = llm.stream(("base", PROMPTS[0]), max_new_tokens=COUNT)
    first = next(old)
    family.ingest(shared / "family" / "shakespeare-top3", name="base")
    [new] = llm.generate([("base", PROMPTS[0])], max_new_tokens=COUNT)
    tokens = [*first.token_ids, *(t for piece in old for t in piece.token_ids)]
    assert tokens == expected["base", 0][1]
    assert list(new.token_ids) == expected["shakespeare-top3", 0][1]
    until(lambda: llm.nbytes == llm.memory()[0]["bytes"])  # nothing of the old is left


def test_a_damaged_tensor_fails_its_own_models_requests_only(
    family: Zoo, open_llm: Callable[..., LLM], expected: Expected
) -> None:
    own = {
        ref.digest
        for block in family.blocks_of(family.model("math-full")).values()
        for ref in block.tensors.values()
    }
    for block in family.blocks_of(family.model("base")).values():
        own -= {ref.digest for ref in block.tensors.values()}
    victim = sorted(own)[0]
    [path] = [p for p in (Path(family.path) / "tensors").rglob(f"{victim}*") if p.is_file()]
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-9] ^= 0x55
    path.write_bytes(data)
    llm = open_llm(family)
    names = ("base", "math-full", "code-lora-qv")
    asked = [(name, expected[name, n][0]) for n in range(4) for name in names]
    out = llm.generate(asked, max_new_tokens=COUNT, on_error="return")
    for (name, _), n, result in zip(asked, [n for n in range(4) for _ in names], out, strict=True):
        if name == "math-full":
            assert isinstance(result, Failed) and isinstance(result.error, DamagedError)
            assert result.error.message.startswith("math-full: ")
        else:
            assert list(result.token_ids) == expected[name, n][1]
    with pytest.raises(DamagedError, match="math-full"):
        llm.generate([("base", "def"), ("math-full", "def")])


def test_weights_that_give_no_numbers_fail_their_own_requests_only(
    shared: Path, family: Zoo, tmp_path: Path, open_llm: Callable[..., LLM], expected: Expected
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "broken"
    shutil.copytree(shared / "family" / "base", folder)
    path = folder / "model.safetensors"
    path.chmod(0o644)
    tensors = load_file(path)
    tensors["model.layers.2.mlp.down_proj.weight"][3, 4] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    family.ingest(folder)
    llm = open_llm(family)
    asked = [("base", PROMPTS[0]), ("broken", PROMPTS[0]), ("code-lora-qv", PROMPTS[1])]
    base, broken, code = llm.generate(asked, max_new_tokens=COUNT, on_error="return")
    assert list(base.token_ids) == expected["base", 0][1]
    assert list(code.token_ids) == expected["code-lora-qv", 1][1]
    assert isinstance(broken, Failed) and isinstance(broken.error, UnservableError)
    assert broken.error.message == "broken: its logits are not numbers (NaN or infinite)"
    with pytest.raises(UnservableError, match="broken: its logits"):
        list(llm.stream(("broken", PROMPTS[0])))
    with pytest.raises(UnservableError, match="broken: its logits"):
        llm.score([("broken", PROMPTS[0])])


def test_a_row_that_cannot_be_computed_fails_alone(
    open_llm: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch, expected: Expected
) -> None:
    llm = open_llm()
    step = llm._engine._runner.step

    def failing(works: Any) -> Any:
        if any(len(work.slots) > 40 for work in works):
            raise RuntimeError("a kernel broke")
        return step(works)

    monkeypatch.setattr(llm._engine._runner, "step", failing)
    bad, good = llm.generate(
        [("base", [5] * 60), ("base", PROMPTS[3])], max_new_tokens=COUNT, on_error="return"
    )
    assert isinstance(bad, Failed) and "a kernel broke" in bad.error.message
    assert list(good.token_ids) == expected["base", 3][1]


def test_a_closed_engine_fails_what_runs_and_takes_nothing(real_zoo: Zoo) -> None:
    with LLM(real_zoo, device="cpu", dtype="float32") as llm:
        stream = llm.stream(("base", "The"), max_new_tokens=900, ignore_eos=True)
        next(stream)
    with pytest.raises(BlockzooError, match="closed"):
        list(stream)
    with pytest.raises(UsageError, match="closed"):
        llm.generate([("base", "The")])
    assert not any(t.name == "blockzoo-engine" and t is llm._engine._thread
                   for t in threading.enumerate())  # fmt: skip


@pytest.mark.parametrize("asked", [(), 5, "base", ("base",), ("base", "The", "end"), (5, "The")])
def test_what_is_no_request_fails_alone(open_llm: Callable[..., LLM], asked: Any) -> None:
    llm = open_llm()
    bad, good = llm.generate([asked, ("base", "The")], max_new_tokens=2, on_error="return")
    assert isinstance(bad, Failed) and "a request is (name, prompt)" in bad.error.message
    assert isinstance(good, Completion)


@pytest.mark.parametrize("prompt", ["half a character \ud800", None, 7, [{"content": "\ud800"}]])
def test_what_no_tokenizer_takes_fails_alone(open_llm: Callable[..., LLM], prompt: Any) -> None:
    llm = open_llm()
    bad, good = llm.generate([("base", prompt), ("base", "The")], max_new_tokens=2,
                             on_error="return")  # fmt: skip
    assert isinstance(bad, Failed) and isinstance(bad.error, UsageError)
    assert bad.error.message.startswith("base: ")
    assert isinstance(good, Completion)


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"bad_words_ids": 5}', '{"repetition_penalty": "x"}']
)
def test_generation_settings_that_cannot_be_read_fail_their_own_model_only(
    tmp_path: Path, open_llm: Callable[..., LLM], text: str
) -> None:
    zoo = Zoo(tmp_path / "zoo")
    folder = make_base(tmp_path / "base")
    zoo.ingest(folder, name="base")
    (folder / "generation_config.json").write_text(text)
    zoo.ingest(folder, name="odd")
    bad, good = open_llm(zoo).generate([("odd", [5]), ("base", [5])], max_new_tokens=2,
                                       on_error="return")  # fmt: skip
    assert isinstance(bad, Failed) and isinstance(bad.error, UnservableError)
    assert bad.error.message.startswith("odd: its generation_config.json cannot be applied")
    assert isinstance(good, Completion)
