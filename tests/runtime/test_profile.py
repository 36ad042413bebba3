"""What each kind of block costs on this device, measured, kept and found again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from blockzoo_runtime.blocks.measuring import measure
from blockzoo_runtime.blocks.profile import BlockProfile, Profile, load_profile, store_profile

from blockzoo.errors import NotFoundError, UnservableError
from blockzoo.zoo import Zoo
from tests.zoos import checkpoint

CPU = torch.device("cpu")
SIZES = (1, 2, 8)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    folder = tmp_path_factory.mktemp("profile")
    zoo = Zoo(folder / "zoo")
    zoo.ingest(checkpoint(folder / "base"))
    zoo.ingest(checkpoint(folder / "tuned", changed=(2, 3)))
    zoo.ingest(checkpoint(folder / "wide", width=128, layers=2))
    return zoo


def made(sizes: tuple[int, ...], seconds: tuple[float, ...], spec: str = "s") -> BlockProfile:
    return BlockProfile("mlp", spec, "layers.0.mlp", 1, 1000, 500, sizes, seconds)


def test_every_kind_of_block_is_measured_once_for_all_that_share_its_spec(zoo: Zoo) -> None:
    profile = measure(zoo, ["base", "tuned", "wide"], CPU, torch.float32, sizes=SIZES)
    kinds = [(b.kind, b.hops) for b in profile.blocks.values()]
    small, wide = kinds[: len(kinds) // 2], kinds[len(kinds) // 2 :]
    assert small == [("embedding", 2), ("attention", 8), ("mlp", 8), ("head", 2)]
    assert wide == [("embedding", 1), ("attention", 2), ("mlp", 2), ("head", 1)]
    for name in ("base", "wide"):
        for block in zoo.blocks_of(zoo.model(name)).values():
            found = profile.of(block.kind, block.spec)
            assert found is not None and found.sizes == SIZES and min(found.seconds) > 0
            assert profile.knee(block.kind, block.spec) == found.knee
            if block.kind == "mlp":
                assert found.nbytes == block.nbytes
                assert found.flops == 2 * sum(ref.elements for ref in block.tensors.values()
                                              if len(ref.shape) == 2)  # fmt: skip


def test_bytes_are_those_of_the_compute_dtype(zoo: Zoo) -> None:
    double, single = (
        measure(zoo, ["base"], CPU, dtype, sizes=(1,)) for dtype in (torch.float64, torch.float32)
    )
    for a, b in zip(double.blocks.values(), single.blocks.values(), strict=True):
        assert a.nbytes == 2 * b.nbytes and a.spec == b.spec


def test_a_profile_is_found_by_device_and_dtype_only(zoo: Zoo) -> None:
    profile = measure(zoo, ["base"], CPU, torch.float32, sizes=SIZES)
    path = store_profile(zoo, profile)
    assert path.is_relative_to(zoo.path / "cache")
    assert load_profile(zoo, CPU, torch.float32) == profile
    assert load_profile(zoo, CPU, torch.bfloat16) is None
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        from blockzoo_runtime.blocks.profile import device_name

        device_name.cache_clear()
        assert load_profile(zoo, CPU, torch.float32) is None
    finally:
        torch.set_num_threads(threads)
        device_name.cache_clear()


def test_what_was_measured_before_stays(zoo: Zoo) -> None:
    base = measure(zoo, ["base"], CPU, torch.float32, sizes=SIZES)
    wide = measure(zoo, ["wide"], CPU, torch.float32, sizes=SIZES)
    store_profile(zoo, base)
    store_profile(zoo, wide)
    kept = load_profile(zoo, CPU, torch.float32)
    assert kept is not None and kept.blocks == {**base.blocks, **wide.blocks}


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b'{"format": 1, "blocks": 3}'])
def test_a_damaged_profile_is_as_none(damage: bytes, zoo: Zoo) -> None:
    profile = measure(zoo, ["base"], CPU, torch.float32, sizes=(1,))
    path = store_profile(zoo, profile)
    path.write_bytes(damage)
    assert load_profile(zoo, CPU, torch.float32) is None
    store_profile(zoo, profile)
    assert load_profile(zoo, CPU, torch.float32) == profile


def test_the_knee_is_the_smallest_batch_near_the_best_rate() -> None:
    sizes = (1, 2, 4, 8)
    assert made(sizes, (1.0, 1.0, 1.0, 1.7)).knee == 8
    assert made(sizes, (1.0, 1.0, 1.0, 2.0)).knee == 4
    assert made(sizes, (1.0, 1.0, 1.0, 1.8)).knee == 4
    assert made(sizes, (1.0, 2.0, 4.0, 8.0)).knee == 1


def test_latencies_between_measured_sizes_are_on_a_line() -> None:
    block = made((2, 4, 8), (1.0, 2.0, 3.0))
    assert [block.latency(n) for n in (1, 2, 3, 4, 6, 8, 16)] == [1, 1, 1.5, 2, 2.5, 3, 6]


def test_a_profile_lives_through_json(tmp_path: Path) -> None:
    profile = Profile("cpu", "float32", {"s": made((1, 2), (0.1, 0.2))})
    data = profile.to_json()
    assert data["blocks"][0]["knee"] == 1
    assert Profile.from_json(data) == profile
    assert profile.table()["knee"] == [1]


def test_models_that_cannot_be_run_are_told(zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        measure(zoo, ["bse"], CPU, torch.float32)
    odd = checkpoint(tmp_path / "odd")
    config = (odd / "config.json").read_text()
    (odd / "config.json").write_text(config.replace('"llama"', '"lama"'))
    other = Zoo(tmp_path / "zoo")
    other.ingest(odd)
    with pytest.raises(UnservableError, match="odd"):
        measure(other, ["odd"], CPU, torch.float32)
