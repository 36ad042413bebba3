"""The front door: what it takes, gives, refuses."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from blockzoo_runtime import LLM, Request, Sampling

from blockzoo.errors import BlockzooError, NotFoundError, UnservableError, UsageError
from blockzoo.zoo import Zoo
from tests.runtime.answers import PROMPTS, answer, reference


@pytest.fixture(scope="module")
def llm(real_zoo: Zoo) -> LLM:
    return LLM(real_zoo, device="cpu", dtype="float32")


def test_results_come_in_the_order_of_the_requests(llm: LLM) -> None:
    names = ["sql-full", "base", "sql-full", "code-lora-qv", "base"]
    asked = [(name, PROMPTS[i % 4]) for i, name in enumerate(names)]
    out = llm.generate(asked, max_new_tokens=4)
    assert [o.model for o in out] == names
    for request, completion in zip(asked, out, strict=True):
        assert llm.generate([request], max_new_tokens=4)[0] == completion


def test_a_completion_says_what_served_it(llm: LLM, tokenizer: Any) -> None:
    [out] = llm.generate([("code-lora-qv", "def f(")], max_new_tokens=8, logprobs=True)
    model = llm.zoo.model("code-lora-qv")
    assert out.digest == model.digest
    assert set(out.chain) == {d for hop in model.chain for d in (hop.block, *hop.adapters)}
    assert out.prompt_tokens == len(tokenizer("def f(")["input_ids"])
    assert out.text == tokenizer.decode(out.token_ids, skip_special_tokens=True)
    assert out.finish_reason == "length"
    assert out.logprobs is not None and len(out.logprobs) == 8
    assert all(math.isfinite(p) and p <= 0 for p in out.logprobs)
    json.dumps(out.to_json())


def test_ids_and_text_are_the_same_prompt(llm: LLM, tokenizer: Any) -> None:
    ids = tokenizer(PROMPTS[0])["input_ids"]
    text, tokens = llm.generate([("base", PROMPTS[0]), ("base", ids)], max_new_tokens=8)
    assert text == tokens


def test_a_stream_is_the_completion_in_pieces(llm: LLM) -> None:
    request = ("novel-lora-merged", "The prince")
    pieces = list(llm.stream(request, max_new_tokens=40))
    [whole] = llm.generate([request], max_new_tokens=40)
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [t for piece in pieces for t in piece.token_ids] == list(whole.token_ids)
    assert [piece.completion for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].completion == whole


def test_text_ends_before_a_stop_string(llm: LLM) -> None:
    request = ("trec-prefix", "Question: What is")
    [free] = llm.generate([request], max_new_tokens=32)
    stop = free.text[10:14]
    [out] = llm.generate([request], max_new_tokens=32, stop=["never comes", stop])
    assert out.text == free.text[: free.text.index(stop)]
    assert out.finish_reason == "stop"
    assert out.token_ids == free.token_ids[: len(out.token_ids)]
    assert len(out.token_ids) < len(free.token_ids)
    pieces = list(llm.stream(request, max_new_tokens=32, stop=stop))
    assert "".join(piece.text for piece in pieces) == out.text  # nothing was given too early


def test_the_end_token_ends_and_can_be_ignored(llm: LLM) -> None:
    request = ("capp-gpt", [1, 5, 9, 30])
    [out] = llm.generate([request], max_new_tokens=40)
    assert out.finish_reason == "stop"
    assert out.token_ids[-1] == 51 and 51 not in out.token_ids[:-1]
    [on] = llm.generate([request], max_new_tokens=40, ignore_eos=True)
    assert on.finish_reason == "length"
    assert len(on.token_ids) == 40 and on.token_ids[: len(out.token_ids)] == out.token_ids


def test_rows_that_end_early_leave_the_others_as_they_are(llm: LLM) -> None:
    prompts = [[1, 5, 9, 30], [7], [3, 3, 3, 8, 9, 1], [12, 40]]
    together = llm.generate([("capp-gpt", p) for p in prompts], max_new_tokens=30)
    alone = [llm.generate([("capp-gpt", p)], max_new_tokens=30)[0] for p in prompts]
    assert len({len(o.token_ids) for o in together}) > 1
    assert together == alone


def test_seeds_belong_to_requests_not_to_batches(llm: LLM) -> None:
    def asked(seed: int) -> Request:
        return Request(
            "base", PROMPTS[0], Sampling(max_new_tokens=12, temperature=1.5, top_k=50, seed=seed)
        )

    first, second, again = llm.generate([asked(1), asked(2), asked(1)])
    assert first.token_ids == again.token_ids != second.token_ids
    assert llm.generate([("base", PROMPTS[2]), asked(2)], max_new_tokens=3)[1] == second
    free = Request("base", PROMPTS[0], Sampling(max_new_tokens=12, temperature=1.5))
    assert len({out.token_ids for out in llm.generate([free] * 3)}) > 1


def test_a_wrong_request_stops_the_call_before_anything_runs(real_zoo: Zoo) -> None:
    llm = LLM(real_zoo, device="cpu")
    good = ("base", "hello")
    with pytest.raises(NotFoundError, match="nobody"):
        llm.generate([good, ("nobody", "hello")])
    with pytest.raises(UsageError, match="stories260k: it has no tokenizer"):
        llm.generate([good, ("stories260k", "hello")])
    with pytest.raises(UsageError, match=r"base: token id 4096 .* 4,096"):
        llm.generate([good, ("base", [4096])])
    with pytest.raises(UsageError, match=r"base: 1000 .* and 25 .* context of 1024") as caught:
        llm.generate([good, ("base", [5] * 1000)], max_new_tokens=25)
    assert caught.value.hint == "ask for at most 24 new tokens"
    with pytest.raises(UsageError, match="context of 1024") as caught:
        llm.generate([("base", [5] * 1024)])
    assert caught.value.hint == "shorten the prompt"
    with pytest.raises(UsageError, match="base: it has no chat template"):
        llm.generate([("base", [{"role": "user", "content": "hi"}])])
    with pytest.raises(UsageError, match="empty"):
        llm.generate([("base", "")])
    with pytest.raises(UsageError, match="stop strings need a tokenizer"):
        llm.generate([("stories260k", [1])], stop="x")
    with pytest.raises(UsageError, match="no sampling value max_tokens"):
        llm.generate([good], max_tokens=3)
    with pytest.raises(UsageError, match=r"top_p is 1\.5"):
        llm.generate([good], top_p=1.5)
    with pytest.raises(UsageError, match="a request is"):
        llm.generate(["hello"])  # type: ignore[list-item]
    assert llm.nbytes == 0


@pytest.mark.parametrize(
    "values", [{"device": "moon"}, {"dtype": "int8"}, {"memory": "lots"}, {"max_batch": 0}]
)
def test_settings_that_do_not_exist_are_refused(real_zoo: Zoo, values: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        LLM(real_zoo, **values)


def test_a_completion_ends_with_the_context_where_nobody_says(llm: LLM) -> None:
    near, far = llm.generate([("base", [5] * 1015), ("base", [5] * 3)], ignore_eos=True)
    assert len(near.token_ids) == 9 and len(far.token_ids) == 128


def test_what_cannot_be_run_exactly_is_refused_by_name(shared: Path, tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    zoo.ingest(shared / "family" / "small" / "model.safetensors", name="bare")
    with pytest.raises(UnservableError, match="bare: "):
        LLM(zoo).generate([("bare", [1])])


def test_a_detached_adapter_is_refused_by_name(shared: Path, tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    zoo.ingest(shared / "adapters" / "gpt2-legal", detached=True)
    with pytest.raises(UnservableError, match=r"gpt2-legal: .*base model"):
        LLM(zoo).generate([("gpt2-legal", [1])])


def test_messages_go_through_the_chat_template(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "chat"
    shutil.copytree(shared / "family" / "chat-added-tokens", folder)
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    zoo = Zoo(tmp_path / "zoo")
    zoo.ingest(folder)
    llm = LLM(zoo, dtype="float32")
    messages = [{"role": "user", "content": "How many are 2 and 3?"}]
    text = "<|user|>How many are 2 and 3?<|assistant|>"
    chat, plain = llm.generate([("chat", messages), ("chat", text)], max_new_tokens=8)
    assert chat.token_ids == plain.token_ids
    # with the tokenizer's own special tokens text has at least as many
    assert chat.prompt_tokens <= plain.prompt_tokens


def test_a_name_ingested_again_is_served_fresh(shared: Path, tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    zoo.ingest(shared / "family" / "base", name="mine")
    llm = LLM(zoo, dtype="float32")
    [before] = llm.generate([("mine", PROMPTS[0])], max_new_tokens=12)
    held = llm.nbytes
    zoo.ingest(shared / "family" / "math-full", name="mine")
    [after] = llm.generate([("mine", PROMPTS[0])], max_new_tokens=12)
    assert after.digest == zoo.resolve("mine") != before.digest
    assert after.token_ids != before.token_ids
    assert llm.nbytes == held  # what nobody asks for any more was let go


def test_what_the_generation_config_does_to_logits_is_done(
    shared: Path, tmp_path: Path, tokenizer: Any
) -> None:
    folder = tmp_path / "careful"
    shutil.copytree(shared / "family" / "base", folder)
    path = folder / "generation_config.json"
    path.chmod(0o644)
    settings = {
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 3,
        "bad_words_ids": [[289], [5, 6]],
        "suppress_tokens": [13, 14],
        "temperature": 0.5,
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    zoo = Zoo(tmp_path / "zoo")
    zoo.ingest(folder)
    zoo.ingest(shared / "family" / "base")
    llm = LLM(zoo, dtype="float32")
    model = reference(folder)
    out = llm.generate([("careful", p) for p in PROMPTS], max_new_tokens=24)
    for prompt, completion in zip(PROMPTS, out, strict=True):
        ids = tokenizer(prompt)["input_ids"]
        assert list(completion.token_ids) == answer(model, ids, 24)
    assert out[0].token_ids != llm.generate([("base", PROMPTS[0])], max_new_tokens=24)[0].token_ids

    path.write_text(json.dumps({"forced_eos_token_id": 2}))
    zoo.ingest(folder)
    with pytest.raises(UnservableError, match=r"careful: .*forced_eos_token_id"):
        llm.generate([("careful", "hi")])


def test_a_tokenizer_runs_no_code_of_the_checkpoint(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sly"
    shutil.copytree(shared / "family" / "small", folder)
    (folder / "tokenizer_config.json").chmod(0o644)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Sly", "auto_map": {"AutoTokenizer": ["sly.Sly", None]}})
    )
    ran = tmp_path / "ran"
    (folder / "sly.py").write_text(f"open({str(ran)!r}, 'w')\nclass Sly: pass\n")
    zoo = Zoo(tmp_path / "zoo")
    zoo.ingest(folder)
    with contextlib.suppress(BlockzooError):  # it may also be read without the code
        LLM(zoo).generate([("sly", "hello")], max_new_tokens=1)
    assert not ran.exists()


def test_the_runtime_imports_no_training_or_terminal_libraries(real_zoo: Zoo) -> None:
    code = (
        "import sys; from blockzoo_runtime import LLM\n"
        f"out = LLM({str(real_zoo.path)!r}).generate([('code-lora-qv', 'def')], max_new_tokens=2)\n"
        "assert len(out[0].token_ids) == 2\n"
        "print([m for m in ('sklearn', 'peft', 'click', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
