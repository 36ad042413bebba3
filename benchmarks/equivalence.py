"""How well cheap measures of two blocks foretell what swapping them does.

On ``../shared/family``: for every ordered pair of full models (receiver, donor) and every hop at
which their blocks differ, the donor's block is put into the receiver and the true loss is
measured, KL on evaluation text of the receiver's own domain and of wiki. Beside it stand the
measures that need no swap: distances of weights, and of activations on the *calibration* text.

Printed: Spearman's rank correlation of each measure with the true KL; then, for thresholds on a
measure, the share of the pairs that hold grade B's bounds that it lets through (recall), and the
share of all pairs (what is left to certify).

    python benchmarks/equivalence.py [--quick] [--out FILE]

It takes some 20 minutes on one core, and is resumed where it was stopped; ``--quick`` has the base
as the only donor and half of the text, and takes two.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from family import FULL, ROOT, SHARED
from scipy.stats import spearmanr

from blockzoo.equivalence.grade import GRADES
from blockzoo.equivalence.losses import Variant, measure
from blockzoo.equivalence.swap import find_swaps, swapped
from blockzoo.execution.texts import read_text
from blockzoo.explore.compare import similarity
from blockzoo.explore.table import Column, Table
from blockzoo.zoo import Zoo

#: key in the rows, what it is called, and its thresholds
MEASURES = {
    "sketch": ("weights, largest tensor, from sketches", (0.03, 0.05, 0.1)),
    "distance": ("weights, largest tensor", (0.03, 0.05, 0.1)),
    "mean": ("weights, mean over tensors", (0.03, 0.05, 0.1)),
    "error": ("activations, output error", (0.1, 0.15, 0.2)),
    "error_by_dimension": ("activations, error by dimension", (0.1, 0.15, 0.2)),
    "drift": ("activations, drift of what flows on", (0.02, 0.035, 0.05)),
    "apart": ("activations, 1 − CKA", (0.01, 0.03, 0.1)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tokens", type=int, default=1000, help="of each text")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/equivalence.json")
    given = parser.parse_args()
    tokens = given.tokens // 2 if given.quick else given.tokens
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = json.loads(given.out.read_text()) if given.out.exists() else []
    rows = [row for row in rows if row["tokens"] == tokens]
    with tempfile.TemporaryDirectory() as folder:
        zoo = Zoo(Path(folder) / "zoo")
        for name in FULL:
            zoo.ingest(given.shared / "family" / name, name=name)
        known = {(row["receiver"], row["donor"]) for row in rows}
        for receiver in FULL:
            for donor in ["base"] if given.quick else FULL:
                if receiver == donor or (receiver, donor) in known:
                    continue
                began = time.perf_counter()
                found = compare(zoo, receiver, donor, given.shared / "texts", tokens)
                rows += found
                lines = ",\n".join(json.dumps(row) for row in rows)
                given.out.write_text(f"[\n{lines}\n]\n")
                seconds = time.perf_counter() - began
                print(f"{receiver} ← {donor}: {len(found)} hops in {seconds:.0f} s", flush=True)
    print(correlations(rows))
    print(screens(rows))


def compare(zoo: Zoo, receiver: str, donor: str, texts: Path, tokens: int) -> list[dict[str, Any]]:
    """One row a hop at which the two models' blocks differ and can be swapped."""
    domain = FULL[receiver]
    calibration = texts / f"{domain}.calibration.txt"
    told = similarity(zoo, receiver, donor, calibration, tokens=4 * tokens)
    by_hop = {row["hop"]: row for row in told.table}
    model, other = zoo.model(receiver), zoo.model(donor)
    places = {hop.name: number for number, hop in enumerate(model.chain)}
    theirs = {hop.name: number for number, hop in enumerate(other.chain)}
    hops = [
        name
        for name, row in by_hop.items()
        if row["block"] != row["other"] and row.get("distance") is not None
    ]
    variants = []
    for name in hops:
        swaps = find_swaps(zoo, model, f"{name}={donor}")
        variants.append(Variant.changed_from(places[name], zoo.chain(swapped(model, swaps))))
    tokenizer = zoo.tokenizer(model)
    evaluation = [read_text(texts / f"{name}.evaluation.txt") for name in (domain, "wiki")]
    parts = [text.tokens(tokenizer, tokens) for text in evaluation]
    losses = measure(zoo.chain(model), variants, [ids for part in parts for ids in part])
    rows = []
    for name, loss in zip(hops, losses, strict=True):
        own = loss.documents < len(parts[0])
        row = {"receiver": receiver, "donor": donor, "hop": name, "tokens": tokens}
        row |= {key: by_hop[name].get(key) for key in ("kind", *MEASURES)}
        row["sketch"] = float(told.weights[places[name], len(model.chain) + theirs[name]])
        if by_hop[name]["cka"] is not None:
            row["apart"] = 1 - by_hop[name]["cka"]
        row |= {"kl": float(loss.kl.mean()), "top1": 1 - float(loss.differs.mean())}
        row["worst"] = max(float(loss.kl[own].mean()), float(loss.kl[~own].mean()))
        row["worst_top1"] = 1 - max(
            float(loss.differs[own].mean()), float(loss.differs[~own].mean())
        )
        rows.append(row)
    return rows


def correlations(rows: list[dict[str, Any]]) -> Table:
    """Spearman of each measure with the true KL: all pairs, and by kind of block."""
    kinds = {
        "all": ("embedding", "attention", "mlp", "head"),
        "layers": ("attention", "mlp"),
        "attention": ("attention",),
        "mlp": ("mlp",),
    }
    shown = []
    for key, (title, _) in MEASURES.items():
        row: dict[str, Any] = {"measure": title}
        for kind, among in kinds.items():
            some = [r for r in rows if r["kind"] in among and r.get(key) is not None]
            row[f"{kind}_pairs"] = len(some)
            if len(some) > 2:
                found = spearmanr([r[key] for r in some], [r["kl"] for r in some])
                row[kind] = float(found.statistic)
        shown.append(row)
    columns = [
        Column("measure"),
        *(c for kind in kinds for c in (Column(kind, kind="ratio"), Column(f"{kind}_pairs", "of"))),
    ]
    return Table("Spearman with the true KL of the swap", columns, shown)


def screens(rows: list[dict[str, Any]]) -> Table:
    """What a threshold on a measure lets through."""
    grade = next(grade for grade in GRADES if grade.name == "B")
    good = np.array([r["worst"] <= grade.kl and r["worst_top1"] >= grade.top1 for r in rows])
    shown = []
    for key, (title, thresholds) in MEASURES.items():
        values = np.array([np.nan if r.get(key) is None else r[key] for r in rows])
        for threshold in thresholds:
            through = ~(values > threshold)  # what a measure cannot tell is let through
            shown.append(
                {
                    "measure": title,
                    "threshold": threshold,
                    "recall": float((through & good).sum() / max(good.sum(), 1)),
                    "through": float(through.mean()),
                    "precision": float((through & good).sum() / max(through.sum(), 1)),
                }
            )
    columns = [
        Column("measure"),
        Column("threshold", "at most", kind="ratio"),
        Column("recall", kind="percent"),
        Column("through", "of all pairs", kind="percent"),
        Column("precision", "of these good", kind="percent"),
    ]
    note = f"{good.sum()} of {len(rows)} pairs hold the bounds of B in both texts"
    return Table("screens", columns, shown, note)


if __name__ == "__main__":
    main()
