"""Compact models in the engine: in one batch with others, each codes' product its own tenant's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from blockzoo_runtime import LLM
from blockzoo_runtime.blocks import nibbles
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from blockzoo.errors import BlockzooError
from blockzoo.execution.packing import WIDTHS, middle, pack, run_length
from blockzoo.explore.view import ModelView
from blockzoo.tensors import TensorRef
from blockzoo.zoo import Zoo
from tests.execution.adapting import make_adapter
from tests.execution.compacting import Way, keep_compact
from tests.execution.tiny import make
from tests.runtime.blocks.stepping import Stepper

COUNT = 12
PROMPTS: tuple[list[int], ...] = ([5, 6, 7], [11, 3, 9, 20, 33, 14, 8, 90, 41], [60], [30] * 70)
MIXED: Mapping[str, Way] = {
    "embed": 4, "layers.0": 1, "layers.1": "lowrank", "layers.2": 2, "layers.3.mlp.up": "full",
    "norm": 1,
}  # fmt: skip
TENANTS = ("base", "one", "lora", "two", "four", "mixed", "exact")


def compact_zoo(folder: Path, base: str) -> Zoo:
    """A base, a LoRA, an exact fine-tune, and compact ones of every width."""
    zoo = Zoo(folder / "zoo")
    source = make(base, folder).rename(folder / "base")
    zoo.ingest(source)
    config = LoraConfig(r=4, target_modules=["up_proj", "q_proj"], task_type="CAUSAL_LM")
    zoo.ingest(make_adapter(source, config, folder / "lora"), base="base")
    tuned = folder / "exact"
    tuned.mkdir()
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] += 0.3
    save_file(tensors, tuned / "model.safetensors", {"format": "pt"})
    (tuned / "config.json").write_bytes((source / "config.json").read_bytes())
    zoo.ingest(tuned)
    for seed, (name, ways) in enumerate({"one": 1, "two": 2, "four": 4, "mixed": MIXED}.items()):
        keep_compact(zoo, "base", name, way_of(ways), seed)
    return zoo


def way_of(ways: Mapping[str, Way] | Way) -> Callable[[str], Way]:
    def way(name: str) -> Way:
        if not isinstance(ways, Mapping):
            return ways
        return next((way for part, way in ways.items() if part in name), "none")

    return way


def alone(zoo: Zoo, name: str, prompt: list[int]) -> list[int]:
    """Greedy tokens of a chain by itself, the whole text anew for each."""
    chain, tokens = zoo.chain(zoo.model(name)), list(prompt)
    while len(tokens) < len(prompt) + COUNT:
        tokens.append(int(chain(torch.tensor([tokens]))[0, -1].argmax()))
        if tokens[-1] == 2:
            break
    return tokens[len(prompt) :]


@pytest.fixture(scope="module", params=["llama", "llama-odd-tied"])
def zoo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return compact_zoo(tmp_path_factory.mktemp("compact"), request.param)


def held(stepper: Stepper) -> int:
    """Bytes of what is in memory, counted tensor by tensor."""
    resident = stepper.resident
    chunks = [chunk for stack in resident.stacks.values() for chunk in stack.chunks]
    stacked = sum(chunk.a.nbytes + chunk.b.nbytes for chunk in chunks)
    return sum(tensor.nbytes for tensor in resident.tensors.values()) + stacked


def test_compact_tenants_answer_in_a_batch_as_they_do_alone(zoo: Zoo) -> None:
    stepper = Stepper(zoo)
    rows = [stepper.row(name, prompt, COUNT, chunk=17) for prompt in PROMPTS for name in TENANTS]
    assert len({row.tenant.lane for row in rows}) == 1
    stepper.run(rows, joins=[i % 5 for i in range(len(rows))])
    for row in rows:
        expected = alone(zoo, row.tenant.digest, row.prompt)
        assert row.tokens[: len(expected)] == expected
    assert len({tuple(row.tokens) for row in rows}) > len(rows) // 2, "differences show"


def test_the_engine_serves_them_by_name(zoo: Zoo) -> None:
    with LLM(zoo, device="cpu", dtype="float32") as llm:
        asked = [(name, PROMPTS[1]) for name in TENANTS]
        out = llm.generate(asked, max_new_tokens=COUNT)
        for (name, prompt), done in zip(asked, out, strict=True):
            assert list(done.token_ids) == alone(zoo, name, prompt), name


def first_logits(stepper: Stepper, chunk: int) -> torch.Tensor:
    rows = [stepper.row(name, PROMPTS[3], 3, chunk=chunk, share=False) for name in TENANTS]
    stepper.run(rows)
    return torch.stack([row.logits[0].float() for row in rows])


@pytest.mark.parametrize("chunk", [9, 100])  # multiplied as nibbles, and unpacked
def test_in_bfloat16_nibbles_are_as_near_as_unpacked_codes(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    exact = first_logits(Stepper(zoo), chunk)
    coded = first_logits(Stepper(zoo, torch.bfloat16), chunk)
    monkeypatch.setattr(nibbles, "is_usable", lambda *_: False)
    unpacked = first_logits(Stepper(zoo, torch.bfloat16), chunk)
    assert (coded - exact).abs().mean() <= 1.5 * (unpacked - exact).abs().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_in_memory_are_those_that_are_counted(zoo: Zoo, dtype: torch.dtype) -> None:
    stepper = Stepper(zoo, dtype)
    for name in TENANTS:
        stepper.row(name, PROMPTS[0], 1)
        assert held(stepper) == stepper.resident.nbytes
    needs = {name: stepper.tenants.get(name).needs for name in TENANTS}
    for own in needs.values():
        assert all(stepper.resident.tensors[key].nbytes == size
                   for key, size in own.nbytes.items() if key not in own.stacked)  # fmt: skip
    extra = {
        name: sum(size for key, size in own.nbytes.items() if key not in needs["base"].nbytes)
        for name, own in needs.items()
    }
    # in few columns one bit takes as many bytes as two
    assert extra["one"] <= extra["two"] < extra["four"] < needs["base"].total


def test_a_step_reads_each_difference_once(zoo: Zoo) -> None:
    read = {}
    for names in (("base",), ("two",), ("four",), ("base", "two", "two", "four")):
        stepper = Stepper(zoo, torch.bfloat16)
        rows = [stepper.row(name, PROMPTS[0], 2) for name in names]
        stepper.step(rows)
        read[names] = stepper.step(rows)
    base, two, four, all_of = read.values()
    more = (two.weight_bytes - base.weight_bytes) + (four.weight_bytes - base.weight_bytes)
    looked_up = 4 * base.weight_bytes / 100  # rows of embeddings
    assert abs(all_of.weight_bytes - base.weight_bytes - more) < looked_up
    assert two.weight_bytes - base.weight_bytes < base.weight_bytes / 2
    assert all_of.separate_bytes == sum(r.separate_bytes for r in (base, two, four))
    assert all_of.weight_bytes < all_of.separate_bytes


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize(("rows", "columns"), [(70, 50), (128, 256), (64, 300)])
def test_nibbles_multiply_as_their_codes_do(bits: int, rows: int, columns: int) -> None:
    if nibbles.layout() is None:
        pytest.skip("torch lays 4-bit weights in a way that is not known here")
    draw = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=draw)
    packed = pack(codes, bits)
    form = nibbles.packed(TensorRef("U8", (rows, run_length(columns, bits)), "0" * 64))
    kept = form.build([packed])
    assert kept.shape == form.info.shape and kept.nbytes == form.info.nbytes
    x = torch.randn(5, columns, generator=draw).bfloat16()
    expected = x.float() @ (codes - middle(bits)).T
    few = nibbles.multiply(nibbles.spread(x, bits, packed.shape[1]), kept, bits)[:, :rows]
    many = x.new_empty(5, rows)
    nibbles.multiply_many(x, kept, bits, columns, many)
    norm = expected.norm()
    assert (few - expected).norm() / norm < 1 / 128
    assert (many - expected).norm() / norm < 1 / 256


def test_other_places_show_compact_models_too(zoo: Zoo) -> None:
    view = zoo["mixed"]
    assert isinstance(view, ModelView)
    assert "adapter" in str(view) and "adapter" in view._repr_html_()
    assert len(zoo.models().rows) == len(zoo.names()) and zoo.blocks().rows and zoo.stats()
    assert zoo.diff("base", "two").rows and zoo.diff("two", "four").rows
    with pytest.raises(BlockzooError, match="two is compact"):
        zoo.similar("two")
    assert "two" not in [row["name"] for row in zoo.similar("base").rows]
    for first, second in (("base", "two"), ("two", "four"), ("exact", "mixed")):
        zoo.similarity(first, second)
    zoo.families()
    parts = [{"model": "two", "layer_range": [0, 2]}, {"model": "base", "layer_range": [2, 4]}]
    recipe = {"slices": [{"sources": [part]} for part in parts], "merge_method": "passthrough"}
    with pytest.raises(BlockzooError, match="two is compact"):
        zoo.assemble(recipe, "assembled")
