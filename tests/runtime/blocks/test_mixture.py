"""Any mixture of tenants in one batch: each row gets the tokens and logits it gets alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from blockzoo_runtime.blocks.profile import BlockProfile, Profile, spec_key
from blockzoo_runtime.blocks.runner import Runner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockzoo.zoo import Zoo
from tests.execution.adapting import load_adapter, make_adapter
from tests.execution.test_adapters import CASES
from tests.execution.tiny import TINY, load, make
from tests.runtime.answers import IDS, PROMPTS, folders, reference
from tests.runtime.blocks.stepping import Row, Stepper

COUNT = 12
TOLERANCE = 1e-4

#: DoRA on an embedding and the like are compared at these logits' scale
TINY_PROMPTS = ([5, 6, 7], [11, 3, 9, 20, 33, 14, 8, 90, 41, 2, 6, 77], [60], [30, 31, 32, 33])


def answers(model: Any, prompt: list[int], count: int) -> tuple[list[int], torch.Tensor]:
    """What transformers' or PEFT's ``generate`` gives: tokens, and logits (count, V)."""
    ids = torch.tensor([prompt])
    with torch.no_grad():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
            return_dict_in_generate=True,
            output_logits=True,
        )
    return out.sequences[0, len(prompt) :].tolist(), torch.cat(out.logits)


def assert_equal(row: Row, model: Any) -> None:
    tokens, logits = answers(model, row.prompt, row.count)
    mine = torch.stack(row.logits)
    assert row.tokens == tokens
    scale = max(1.0, float(logits.abs().max()) / 20)
    assert (mine - logits[:, : mine.shape[1]]).abs().max() < TOLERANCE * scale


def test_all_models_of_the_family_and_others_in_one_batch(
    real_zoo: Zoo, shared: Path, tokenizer: Any
) -> None:
    stepper = Stepper(real_zoo)
    draw = random.Random(3)
    rows, models = [], {}
    for folder in folders(shared):
        name = folder.name
        models[name] = reference(folder)
        for i in (0, 1):
            known = folder.parent.name == "family"
            prompt = tokenizer(PROMPTS[i]).input_ids if known else list(IDS[i])
            rows.append(stepper.row(name, prompt, COUNT, chunk=draw.choice((1, 3, 99))))
    draw.shuffle(rows)
    stepper.run(rows, [draw.randrange(8) for _ in rows])
    names = {row.tenant.digest: name for row in rows for name in models
             if stepper.tenants.get(name) is row.tenant}  # fmt: skip
    for row in rows:
        assert_equal(row, models[names[row.tenant.digest]])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Zoo, dict[str, Any]]:
    """Every family's tiny model, and every adapter type on its base."""
    root = tmp_path_factory.mktemp("tiny")
    zoo = Zoo(root / "zoo")
    models = {}
    for name in TINY:
        folder = make(name, root)
        zoo.ingest(folder)
        models[name] = load(folder)
    for name, (base, config) in CASES.items():
        adapter = make_adapter(root / base, config, root / f"{name}-adapter")
        zoo.ingest(adapter, name=f"tuned/{name}", base=base)
        models[f"tuned/{name}"] = load_adapter(root / base, adapter)
    return zoo, models


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_family_and_every_adapter_type_in_one_batch(tiny: tuple[Zoo, Any]) -> None:
    zoo, models = tiny
    stepper = Stepper(zoo)
    rows = {}
    for i, name in enumerate(models):
        rows[name] = [stepper.row(name, TINY_PROMPTS[(i + k) % 4], COUNT, (2, 99)[k])
                      for k in range(2)]  # fmt: skip
    stepper.run([row for each in rows.values() for row in each])
    for name, each in rows.items():
        for row in each:
            assert_equal(row, models[name])


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_mixtures(tiny: tuple[Zoo, Any], data: st.DataObject) -> None:
    zoo, models = tiny
    stepper = Stepper(zoo)
    llama = [name for name in models if name == "llama" or CASES.get(name[6:], "?")[0] == "llama"]
    others = st.sampled_from(sorted(models))
    names = data.draw(st.lists(st.one_of(st.sampled_from(llama), others), min_size=2, max_size=7))
    rows, joins = [], []
    for name in names:
        prompt = data.draw(st.lists(st.integers(3, 96), min_size=1, max_size=20))
        rows.append(stepper.row(name, prompt, 6, data.draw(st.sampled_from((1, 2, 7, 99)))))
        joins.append(data.draw(st.integers(0, 4)))
    stepper.run(rows, joins)
    for name, row in zip(names, rows, strict=True):
        assert_equal(row, models[name])


def test_batches_cut_to_what_suits_a_kind_of_block(tiny: tuple[Zoo, Any]) -> None:
    zoo, models = tiny
    stepper = Stepper(zoo)
    blocks = [block for name in ("llama", "mixtral")
              for block in zoo.blocks_of(zoo.model(name)).values()
              if block.kind in ("mlp", "moe")]  # fmt: skip
    cut = {
        (key := spec_key(block.kind, block.spec)): BlockProfile(
            block.kind, key, "", 1, 1, 1, (1, 4, 512), (1.0, 1.0, 1000.0)
        )
        for block in blocks
    }
    assert {profile.knee for profile in cut.values()} == {4}
    profile = Profile("here", "float32", cut)
    stepper.runner = Runner(stepper.resident, stepper.kv, lambda dtype: profile)
    names = ("llama", "tuned/lora", "tuned/ia3", "tuned/dora", "mixtral")
    rows = {name: stepper.row(name, TINY_PROMPTS[1], 4) for name in names}
    stepper.run(list(rows.values()))
    for name, row in rows.items():
        assert_equal(row, models[name])


def test_what_pages_held_before_is_never_heard(tiny: tuple[Zoo, Any]) -> None:
    zoo, models = tiny
    stepper = Stepper(zoo)
    for name in ("tuned/prefix", "tuned/prompt", "llama"):
        first = stepper.row(name, [5, 6], 1, share=False)
        for group in range(len(first.tenant.layout.groups)):  # as memory may be that is new
            pool = stepper.kv.pool(first.tenant.layout, group)
            pool.keys.fill_(float("nan"))
            pool.values.fill_(float("nan"))
        rows = [stepper.row(name, [5], 4, chunk, share=False) for chunk in (1, 3, 99)]
        assert all(stepper.kv.extend(row.pages, len(row.slots)) for row in rows)
        for group in range(len(first.tenant.layout.groups)):
            pool = stepper.kv.pool(first.tenant.layout, group)
            pool.keys.fill_(float("nan"))
            pool.values.fill_(float("nan"))
        stepper.run(rows)
        for row in rows:
            assert_equal(row, models[name])
