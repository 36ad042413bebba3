"""How often certification grants grade B to a swap that does not deserve it.

Pairs are planted, most of them near the bounds of B: a block of a model of ``../shared/family`` is
disturbed (noise on all of its matrices, on one projection, or rounding of one projection's rows to
few levels), with a size chosen so that the true loss is spread evenly, by its logarithm, from an
eighth of the bound to four times it. The truth is measured on text that is used for nothing else,
the calibration texts: a pair that breaks a bound of B there in any domain is not equivalent. Each
is then certified on the evaluation texts as any swap is. Those that are equivalent show that
certification does not merely refuse.

    python benchmarks/false_accepts.py [--pairs 500] [--tokens 3000] [--out FILE]

It goes on until so many pairs are not equivalent. A pair takes some 3 seconds on one core; the run
is resumed where it was stopped, and says so where the code that judges has changed since.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from family import FULL, ROOT, SHARED
from scipy.stats import beta

from blockzoo.equivalence.evidence import Evidence, evaluate
from blockzoo.equivalence.grade import GRADES, bounds, judge
from blockzoo.equivalence.losses import Variant, measure
from blockzoo.equivalence.record import code_version
from blockzoo.execution.tensors import Build, StreamedTensors, TensorSource
from blockzoo.execution.texts import read_text
from blockzoo.tensors import TensorRef
from blockzoo.zoo import Zoo

#: the receiving models, and the domain of each
MODELS = {"small": "novel"} | {
    name: FULL[name] for name in ("sql-full", "math-full", "shakespeare-top3", "sql-then-trec-full")
}
KINDS = ("noise", "one projection", "rounding")
_BATCH = 10  # pairs of one model that are measured together
_B = next(grade for grade in GRADES if grade.name == "B")


class Disturbed:
    """A `TensorSource` with some matrices off by a share of their norm."""

    def __init__(self, source: TensorSource, chosen: Sequence[str], kind: str, seed: int) -> None:
        self._source = source
        self._chosen = set(chosen)
        self._kind = kind
        self._seed = seed
        self.size = 0.02

    def tensor(self, ref: TensorRef) -> torch.Tensor:
        tensor = self._source.tensor(ref)
        if ref.digest not in self._chosen:
            return tensor
        if self._kind == "rounding":
            step = tensor.abs().amax(-1, keepdim=True) * self.size * 3
            return torch.round(tensor / step) * step
        draw = torch.Generator().manual_seed(self._seed)
        noise = torch.randn(tensor.shape, generator=draw)
        return tensor + noise * (self.size * tensor.norm() / noise.norm())

    def derived(self, key: str, parts: Sequence[TensorRef], build: Build) -> torch.Tensor:
        return build([self.tensor(part) for part in parts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=3000, help="of each text")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/false_accepts.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    source = code_version()["source"]
    kept: dict[str, Any] = {"tried": 0, "source": source, "rows": []}
    if given.out.exists():
        kept = json.loads(given.out.read_text())
        if kept["source"] != source:
            print("the pairs so far were judged by other code; remove the file to begin anew")
    rows: list[dict[str, Any]] = kept["rows"]
    with tempfile.TemporaryDirectory() as folder:
        zoo = Zoo(Path(folder) / "zoo")
        trials = {
            name: Trial(zoo, given.shared, name, domain, given.tokens)
            for name, domain in MODELS.items()
        }
        names = list(MODELS)
        while sum(not row["equivalent"] for row in rows) < given.pairs:
            tried = kept["tried"]
            name = names[tried // _BATCH % len(names)]
            rows += trials[name].run(range(tried, tried + _BATCH))
            kept["tried"] = tried + _BATCH
            given.out.write_text(compact(kept))
            print(summary(rows), flush=True)
    print(summary(rows))


class Trial:
    """One receiving model, its texts, and its noise floor on each."""

    def __init__(self, zoo: Zoo, shared: Path, name: str, domain: str, tokens: int) -> None:
        zoo.ingest(shared / "family" / name, name=name)
        self.zoo, self.name = zoo, name
        self.model = zoo.model(name)
        self.chain = zoo.chain(self.model)
        tokenizer = zoo.tokenizer(self.model)
        self.documents: dict[str, list[list[int]]] = {}
        self.domains: dict[str, list[str]] = {}
        for use in ("calibration", "evaluation"):
            parts = {
                d: read_text(shared / "texts" / f"{d}.{use}.txt").tokens(tokenizer, tokens)
                for d in (domain, "wiki")
            }
            self.documents[use] = [ids for part in parts.values() for ids in part]
            self.domains[use] = [d for d, part in parts.items() for _ in part]
        floor = [Variant(zoo.chain(self.model, StreamedTensors(zoo.tensor, torch.bfloat16)))]
        self.floor = {use: self.evidence(floor, use)[0] for use in self.documents}

    def evidence(self, variants: Sequence[Variant], use: str) -> list[Evidence]:
        losses = measure(self.chain, variants, self.documents[use])
        return [evaluate(loss, self.domains[use]) for loss in losses]

    def run(self, seeds: range) -> list[dict[str, Any]]:
        """Plant a disturbance for each seed, measure its true loss, and certify it."""
        planted = [self.plant(seed) for seed in seeds]
        first = self.evidence([variant for variant, _, _ in planted], "calibration")
        for evidence, (_, source, facts) in zip(first, planted, strict=True):
            worst = max(figures.kl for figures in evidence.domains.values())
            # the loss grows with the square of the size
            source.size *= float(np.sqrt(facts["wanted"] / max(worst, 1e-9)))
        variants = [variant for variant, _, _ in planted]
        truths = self.evidence(variants, "calibration")
        found = self.evidence(variants, "evaluation")
        return [
            {
                **facts,
                "size": source.size,
                "equivalent": self.holds(true),
                "kl": max(figures.kl for figures in true.domains.values()),
                "top1": min(figures.top1 for figures in true.domains.values()),
                "verdict": judge([told], self.floor["evaluation"])[0].verdict,
            }
            for (_, source, facts), true, told in zip(planted, truths, found, strict=True)
        ]

    def plant(self, seed: int) -> tuple[Variant, Disturbed, dict[str, Any]]:
        random = np.random.default_rng(seed)
        place = int(random.integers(1, len(self.model.chain) - 1))
        hop = self.model.chain[place]
        tensors = self.zoo.block(hop.block).tensors
        matrices = [ref.digest for ref in tensors.values() if len(ref.shape) == 2]
        kind = KINDS[seed % len(KINDS)]
        if kind != "noise":
            matrices = [matrices[int(random.integers(len(matrices)))]]
        source = Disturbed(StreamedTensors(self.zoo.tensor), matrices, kind, seed)
        wanted = _B.kl * 4 ** float(random.uniform(-1.5, 1))
        facts = {"seed": seed, "model": self.name, "hop": hop.name, "kind": kind, "wanted": wanted}
        return Variant.changed_from(place, self.zoo.chain(self.model, source)), source, facts

    def holds(self, true: Evidence) -> bool:
        """Whether a disturbance turns out to hold the bounds of B where nothing was tuned."""
        for name, figures in true.domains.items():
            kl, top1 = bounds(_B, self.floor["calibration"], name)
            if figures.kl > kl or figures.top1 < top1:
                return False
        return True


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """How many were granted B or better of those that deserve it, and of those that do not."""

    def granted(some: Sequence[dict[str, Any]]) -> str:
        return f"{sum(row['verdict'] in ('A', 'B') for row in some)} of {len(some)}"

    wrong = [row for row in rows if not row["equivalent"]]
    lines = []
    for low, high in pairwise((0.0, 1.0, 1.25, 2.0, np.inf)):
        some = [row for row in wrong if low <= row["kl"] / _B.kl < high]
        lines.append(f"KL {low:g}–{high:g} × the bound: {granted(some)}")
    right = granted([row for row in rows if row["equivalent"]])
    accepted = sum(row["verdict"] in ("A", "B") for row in wrong)
    most = beta.ppf(0.95, accepted + 1, max(len(wrong) - accepted, 1))  # Clopper and Pearson 1934
    return (
        f"not equivalent, but accepted: {granted(wrong)}, a rate of at most {100 * most:.2f}% "
        f"({'; '.join(lines)}); equivalent and accepted: {right}"
    )


def compact(kept: dict[str, Any]) -> str:
    """JSON with a pair a line."""
    rows = ",\n".join(json.dumps(row) for row in kept["rows"])
    head = {name: value for name, value in kept.items() if name != "rows"}
    return f'{json.dumps(head)[:-1]}, "rows": [\n{rows}\n]}}\n'


if __name__ == "__main__":
    main()
