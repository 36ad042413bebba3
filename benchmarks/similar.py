"""The search for near-copies at 10, 100, 1,000 and 10,000 models' worth of tensors.

Sketches are generated as those of real models would be: a linear sketch of independent changes
is normal, so a tensor's sketch is its base's plus noise of the change's relative size. One model
in a hundred is a base, unrelated to all others; of the rest, four in five are fine-tunes of a
base and one in five is a fine-tune of such a fine-tune; changes are between 0.1% and 4%. A model
has the 74 tensors of an 8-layer Llama like ``../shared/family``'s in their three buckets.

Printed for each count: seconds and peak memory of the search (above what the sketches take), the
share of tensors whose true parent is the nearest one found, and among the eight found; beside it,
scikit-learn's exact search of everything with everything, where that takes less than a minute.
Then the same for the family tree of the models: seconds, and the share of models with
the true parent in the tree, and with it as their parent (a guess of direction, too).
Then the speed of sketching on one core and what it is of the speed of copying the same bytes.

    python benchmarks/similar.py [--models 10 100 1000 10000] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from blockzoo.similarity.direction import directed, shortest_trees
from blockzoo.similarity.kinship import kinships
from blockzoo.similarity.lineage import UNRELATED
from blockzoo.similarity.neighbours import nearest
from blockzoo.similarity.sketch import SIZE, sketch
from blockzoo.similarity.sketches import Bucket
from blockzoo.tensors import TensorInfo, TensorRef

#: tensors of one model by bucket: matrices with 256 columns, with 768, norms
BUCKETS = {"float-n-256": 49, "float-n-768": 8, "float-256": 17}
BASES = 100  # models to a base
EXACT_UP_TO = 100


def models(count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Each model's parent (−1: a base), and the relative size of its change."""
    parents = np.full(count, -1)
    bases = max(1, count // BASES)
    for i in range(bases, count):
        second = i > bases and random.random() < 0.2
        parents[i] = random.integers(bases, i) if second else random.integers(bases)
        if second:  # never deeper than a grandchild
            while parents[i] >= bases and parents[parents[i]] >= bases:
                parents[i] = parents[parents[i]]
    return parents, np.exp(random.uniform(np.log(0.001), np.log(0.04), count))


def generate(name: str, tensors: int, parents: np.ndarray, sizes: np.ndarray) -> Bucket:
    """One bucket's sketches, model after model."""
    random = np.random.default_rng(len(name))
    scale = np.float32(1 / np.sqrt(SIZE))
    values = np.empty((len(parents), tensors, SIZE), np.float32)
    for i, parent in enumerate(parents):
        random.standard_normal(out=values[i], dtype=np.float32)
        values[i] *= scale if parent < 0 else scale * np.float32(sizes[i])
        if parent >= 0:
            values[i] += values[parent]
    values = values.reshape(-1, SIZE)
    refs = [TensorRef("BF16", (256, 256), digest(name, i)) for i in range(len(values))]
    return Bucket(name, refs, values, np.ones(len(values)))


def digest(bucket: str, number: int) -> str:
    return f"{list(BUCKETS).index(bucket):04x}{number:060x}"


class Generated:
    """What `kinships` asks of `Sketches`, one bucket in memory at a time."""

    def __init__(self, parents: np.ndarray, sizes: np.ndarray) -> None:
        self.parents, self.sizes = parents, sizes
        self.seconds = 0.0  # of generating

    def buckets(self, refs: object, progress: object = None) -> Iterator[Bucket]:
        for name, tensors in BUCKETS.items():
            began = time.perf_counter()
            bucket = generate(name, tensors, self.parents, self.sizes)
            self.seconds += time.perf_counter() - began
            yield bucket


class Peak:
    """The most memory that the process took inside a ``with``, above what it had before."""

    def __enter__(self) -> Peak:
        self.megabytes, self._before, self._ends = 0.0, _resident(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ends.wait(0.02):
            self.megabytes = max(self.megabytes, _resident() - self._before)


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def search(count: int) -> dict[str, float]:
    """All buckets of so many models; returns the figures."""
    parents, sizes = models(count, np.random.default_rng(count))
    figures = {"models": count, "tensors": 0, "seconds": 0.0, "exact": 0.0, "peak MB": 0.0}
    first = among = asked = 0
    for name, tensors in BUCKETS.items():
        bucket = generate(name, tensors, parents, sizes)
        with Peak() as peak:
            began = time.perf_counter()
            found = nearest(bucket.values, bucket.norms)
            figures["seconds"] += time.perf_counter() - began
        figures["peak MB"] = max(figures["peak MB"], peak.megabytes)
        if count <= EXACT_UP_TO:
            figures["exact"] += exact(bucket)
        children = np.flatnonzero(np.repeat(parents, tensors) >= 0)
        origin = parents[children // tensors] * tensors + children % tensors
        hits = found.numbers[children] == origin[:, None]
        first, among = first + int(hits[:, 0].sum()), among + int(hits.any(axis=1).sum())
        asked += len(children)
        figures["tensors"] += len(bucket)
    figures["nearest"], figures["among 8"] = first / asked, among / asked
    return figures


def tree(count: int) -> dict[str, float]:
    """The family tree of so many models; returns the figures."""
    parents, sizes = models(count, np.random.default_rng(count))
    own = {
        f"{model:08}": {
            f"{name}.{number}": (
                f"layers.{number % 8}",
                TensorRef("BF16", (256, 256), digest(name, model * tensors + number)),
            )
            for name, tensors in BUCKETS.items()
            for number in range(tensors)
        }
        for model in range(count)
    }
    sketches = Generated(parents, sizes)
    began = time.perf_counter()
    kin = kinships(sketches, own, UNRELATED)  # type: ignore[arg-type]
    trees = shortest_trees(kin)
    weights, since = dict.fromkeys(own, 1), dict.fromkeys(own, 0.0)
    edges = [edge for found in trees for edge in directed(found, own, weights, since)]
    seconds = time.perf_counter() - began - sketches.seconds
    joined = {frozenset((int(pair.first), int(pair.second))) for _, pair, _ in edges}
    pointed = {
        (int(up), int(pair.second if up == pair.first else pair.first)) for up, pair, _ in edges
    }
    true = [(int(up), child) for child, up in enumerate(parents) if up >= 0]
    return {
        "models": count,
        "seconds": seconds,
        "joined": sum(frozenset(pair) in joined for pair in true) / len(true),
        "pointed": sum(pair in pointed for pair in true) / len(true),
    }


def exact(bucket: Bucket) -> float:
    """Seconds of scikit-learn's search of all with all."""
    began = time.perf_counter()
    index = NearestNeighbors(n_neighbors=min(9, len(bucket)), algorithm="brute")
    index.fit(bucket.values).kneighbors(bucket.values)
    return time.perf_counter() - began


def speeds() -> dict[str, tuple[float, float]]:
    """GB/s of sketching by dtype, and of copying the same bytes; the best of five."""
    values = np.random.default_rng(0).standard_normal((4096, 8192), np.float32)
    kinds = {
        "BF16": (values.view(np.uint32) >> 16).astype("<u2"),
        "F16": values.astype("<f2"),
        "F32": values,
    }
    found = {}
    for dtype, array in kinds.items():
        info, data, target = TensorInfo(dtype, array.shape), memoryview(array), array.copy()
        took, copied = [], []
        for _ in range(5):
            began = time.perf_counter()
            sketch(info, data)
            took.append(time.perf_counter() - began)
            began = time.perf_counter()
            np.copyto(target, array)
            copied.append(time.perf_counter() - began)
        found[dtype] = array.nbytes / min(took) / 1e9, array.nbytes / min(copied) / 1e9
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=int, nargs="+", default=[10, 100, 1000, 10000])
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    given = parser.parse_args(arguments)
    threadpool_limits(1)  # figures are for one core
    print("models  tensors  seconds  ms/model  exact s  peak MB  parent nearest  among 8")
    rows = []
    for count in given.models:
        row = search(count)
        rows.append(row)
        exactly = f"{row['exact']:8.2f}" if row["exact"] else "       –"
        print(
            f"{count:6}{row['tensors']:9}{row['seconds']:9.2f}"
            f"{1000 * row['seconds'] / count:10.2f} {exactly}{row['peak MB']:9.0f}"
            f"{100 * row['nearest']:15.1f}%{100 * row['among 8']:8.1f}%",
            flush=True,
        )
    print("\nmodels  tree s  ms/model  joined to parent  below parent")
    trees = []
    for count in given.models:
        row = tree(count)
        trees.append(row)
        print(
            f"{count:6}{row['seconds']:8.2f}{1000 * row['seconds'] / count:10.2f}"
            f"{100 * row['joined']:17.1f}%{100 * row['pointed']:13.1f}%",
            flush=True,
        )
    sketching = speeds()
    print("\nsketching, one core")
    for dtype, (speed, copying) in sketching.items():
        print(f"{dtype:5}{speed:6.2f} GB/s, {100 * speed / copying:.0f}% of memcpy")
    if given.out:
        figures = {"search": rows, "tree": trees, "sketching GB/s and memcpy GB/s": sketching}
        given.out.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
