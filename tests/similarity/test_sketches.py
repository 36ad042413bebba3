"""Kept sketches survive loss, damage and company; near-copies are found from them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from blockzoo.similarity.neighbours import Neighbours, nearest, pairs
from blockzoo.similarity.sketch import SIZE, distance
from blockzoo.similarity.sketches import Bucket, Sketches
from blockzoo.similarity.weights import compare
from blockzoo.store.reach import reach, roots
from blockzoo.tensors import TensorRef
from blockzoo.zoo import Zoo
from tests.zoos import ROOT, checkpoint


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    zoo = Zoo(tmp_path / "zoo")
    zoo.ingest(checkpoint(tmp_path / "base"), name="base")
    zoo.ingest(checkpoint(tmp_path / "tuned", changed=(1, 2)), name="tuned")
    zoo.ingest(checkpoint(tmp_path / "other", seed=5), name="other")
    return zoo


def tensors(zoo: Zoo) -> list[TensorRef]:
    blocks = reach(zoo.objects, roots(zoo.refs)).blocks.values()
    return list({r.digest: r for block in blocks for r in block.tensors.values()}.values())


def segments(zoo: Zoo) -> list[Path]:
    return sorted((zoo.path / "cache" / "sketches").rglob("*.sketches"))


def test_sketches_are_made_once_and_kept(zoo: Zoo) -> None:
    refs = tensors(zoo)
    assert Sketches(zoo.objects).build(refs) == len(refs)
    again = Sketches(zoo.objects)
    assert again.missing(refs) == [] and again.build(refs) == 0
    found = again.get(refs[0])
    assert found is not None and found.values.shape == (SIZE,)


def test_what_is_lost_or_damaged_is_made_again(zoo: Zoo) -> None:
    refs = tensors(zoo)
    sketches = Sketches(zoo.objects)
    expected = {b.name: b.values.copy() for b in sketches.buckets(refs)}
    files = segments(zoo)
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-100])
    changed = bytearray(files[2].read_bytes())
    changed[5000] ^= 1
    files[2].write_bytes(changed)
    files[0].with_name("empty.sketches").write_bytes(b"")
    assert len(sketches.missing(refs)) == len(refs)
    for bucket in sketches.buckets(refs):
        np.testing.assert_array_equal(bucket.values, expected[bucket.name])
    assert sketches.missing(refs) == []


def test_many_small_segments_become_one(zoo: Zoo) -> None:
    refs = [ref for ref in tensors(zoo) if ref.shape == (64, 64)]
    sketches = Sketches(zoo.objects)
    for ref in refs:
        sketches.build([ref])
    assert 1 <= len(segments(zoo)) < 16 < len(refs)
    assert sketches.missing(refs) == []


def test_several_processes_sketch_one_zoo(zoo: Zoo) -> None:
    refs = tensors(zoo)
    code = (
        "import sys; from tests.similarity.test_sketches import *; zoo = Zoo(sys.argv[1]);"
        "[Sketches(zoo.objects).build([r]) for r in sorted(tensors(zoo), key=lambda r: r.digest)]"
    )
    command = [sys.executable, "-c", code, str(zoo.path)]
    running = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    assert [process.wait(timeout=120) for process in running] == [0, 0, 0]
    sketches = Sketches(zoo.objects)
    missing = sketches.missing(refs)
    assert len(missing) <= 2  # a reader that met a join may have seen less; nothing is wrong
    assert sum(len(bucket) for bucket in sketches.buckets(refs)) == len(refs)


def test_a_disk_that_takes_nothing_does_not_matter(zoo: Zoo) -> None:
    (zoo.path / "cache").mkdir(exist_ok=True)
    (zoo.path / "cache" / "sketches").write_text("in the way")
    refs = tensors(zoo)
    assert sum(len(bucket) for bucket in Sketches(zoo.objects).buckets(refs)) == len(refs)


def test_near_copies_pair_with_their_origin(zoo: Zoo) -> None:
    refs = tensors(zoo)
    found = list(pairs(Sketches(zoo.objects), refs))
    base, tuned = zoo.blocks_of(zoo.model("base")), zoo.blocks_of(zoo.model("tuned"))
    expected = set()
    for hop, other in zip(zoo.model("base").chain, zoo.model("tuned").chain, strict=True):
        for name, ref in base[hop.block].tensors.items():
            if ref.digest != tuned[other.block].tensors[name].digest:
                expected.add((ref.digest, tuned[other.block].tensors[name].digest))
    both = {(p.first.digest, p.second.digest) for p in found}
    assert expected and expected <= both and {(b, a) for a, b in expected} <= both
    for pair in found:
        if len(pair.first.shape) > 1:
            tensor = zoo.objects.tensor
            truth = compare(tensor(pair.first.digest), tensor(pair.second.digest))
            assert truth is not None and abs(pair.distance / truth.relative - 1) < 0.15


def test_a_grown_embedding_is_near_its_origin(shared: Path, tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    for name in ("base", "chat-added-tokens"):
        zoo.ingest(shared / "family" / name)
    found = [p for p in pairs(Sketches(zoo.objects), tensors(zoo)) if p.first.shape == (4098, 256)]
    assert [p.second.shape for p in found] == [(4096, 256)]
    assert found[0].distance < 0.1


def made(values: np.ndarray) -> Bucket:
    refs = [TensorRef("F32", (64, 64), f"{i:064x}") for i in range(len(values))]
    norms = np.linalg.norm(values.astype(np.float64), axis=1)
    return Bucket("float-n-64", refs, values.astype(np.float32), norms)


def search(values: np.ndarray) -> Neighbours:
    bucket = made(values)
    return nearest(bucket.values, bucket.norms)


def test_the_search_finds_what_an_exact_one_does() -> None:
    """In clusters large enough for cells: each tensor's parent is among its neighbours."""
    random = np.random.default_rng(3)
    draw = random.standard_normal((3, SIZE)) / np.sqrt(SIZE)
    first = np.repeat(draw, 500, axis=0)
    first[3:] += 0.01 * random.standard_normal((1497, SIZE)) / np.sqrt(SIZE)
    children = first[:1000] + 0.004 * random.standard_normal((1000, SIZE)) / np.sqrt(SIZE)
    bucket = made(np.concatenate([first, children]))
    found = nearest(bucket.values, bucket.norms)
    assert np.mean(found.numbers[1500:, 0] == np.arange(1000)) > 0.97
    for i in random.choice(2500, 40, replace=False).tolist():
        j = found.numbers[i, 0]
        assert found.distances[i, 0] == pytest.approx(
            distance(bucket.sketch(i), bucket.sketch(j)), rel=0.01
        )
        assert i not in found.numbers[i]


def test_what_is_far_or_no_number_has_no_neighbours() -> None:
    random = np.random.default_rng(4)
    values = random.standard_normal((50, SIZE))
    values[7] = np.inf
    values[8] = values[9] = 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        found = search(values)
    assert (found.numbers == -1).all() and np.isinf(found.distances).all()


def test_scale_does_not_hide_a_neighbour() -> None:
    random = np.random.default_rng(5)
    values = random.standard_normal((4, SIZE))
    values[1], values[3] = 1.3 * values[0], 1e-3 * values[2]
    found = search(values)
    assert found.numbers[:, 0].tolist() == [1, 0, -1, -1]
