"""What compact differences cost and save, on ``../shared/family``.

First the frontiers. Each full fine-tune is planned as base and compact differences on its
calibration text; every point of the plan is then measured on its *evaluation* text, beside the
plainest ways of saving as many bytes: the base instead, codes of one, two and four bits rounded to
the nearest with the row's largest value as the last level, and the first 64 singular directions.

Then the whole family, exact and at each grade: bytes in memory, tokens a second, bytes of weights a
step, and every tenant's perplexity on its own domain and on plain text.

    python benchmarks/compact.py [--zoo FOLDER] [--only frontier|family] [--out FILE]

It takes some 40 minutes on one core, most of them planning, and is resumed where it was stopped if
``--zoo`` names a folder.
"""

from __future__ import annotations

import argparse
import json
import pickle
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from blockzoo_runtime import LLM
from family import ADAPTERS, FULL, ROOT, SHARED

from blockzoo.compact.differences import Differences, find_differences
from blockzoo.compact.laying import variant
from blockzoo.compact.plan import CompactPlan
from blockzoo.equivalence.losses import Variant, measure
from blockzoo.equivalence.perplexity import surprise
from blockzoo.execution.tensors import StreamedTensors, to_torch
from blockzoo.execution.texts import read_text
from blockzoo.explore.frontier import frontier
from blockzoo.explore.table import Column, Table
from blockzoo.tensors import TensorRef
from blockzoo.zoo import Zoo

OTHERS = {name: FULL[name] for name in ("base", "shakespeare-norms")}  # nothing to make smaller
COMPACTED = {name: domain for name, domain in FULL.items() if name not in OTHERS}
TENANTS = OTHERS | COMPACTED | ADAPTERS
LEVELS = ("exact", "A", "B", "C")
_NEW = 48  # tokens of a request
_ROUNDS = 5


class Plain:
    """A `TensorSource` that has other values in the place of some tensors."""

    def __init__(self, source: StreamedTensors, values: dict[str, torch.Tensor]) -> None:
        self._source, self._values = source, values

    def tensor(self, ref: TensorRef) -> torch.Tensor:
        found = self._values.get(ref.digest)
        return found if found is not None else self._source.tensor(ref)

    def derived(self, key: str, parts: Sequence[TensorRef], build: Any) -> torch.Tensor:
        return build([self.tensor(part) for part in parts])


def plain(zoo: Zoo, found: Differences) -> dict[str, tuple[int, dict[str, torch.Tensor]]]:
    """For each plain method its bytes and what it makes of the tuned model's matrices."""
    made: dict[str, tuple[int, dict[str, torch.Tensor]]] = {}
    rest = sum(ref.nbytes for some in found.replaced.values() for ref in some.values())
    for method in ("base", "1 bit", "2 bits", "4 bits", "rank 64"):
        size, values = rest, {}
        for matrix in found.matrices:
            base = to_torch(*zoo.tensor(matrix.base.digest)).float()
            off = to_torch(*zoo.tensor(matrix.tuned.digest)).float() - base
            rows, columns = off.shape
            if method == "rank 64":
                u, s, v = torch.linalg.svd(off, full_matrices=False)
                off = (u[:, :64] * s[:64]) @ v[:64]
                size += 2 * 64 * (rows + columns)
            elif method == "base":
                off = torch.zeros_like(off)
            else:
                bits = int(method[0])
                middle = (2**bits - 1) / 2
                scale = off.abs().amax(1, keepdim=True).clamp_min(1e-12) / middle
                if bits == 1:  # by the largest value one bit is far off: its best is the mean
                    scale = 2 * off.abs().mean(1, keepdim=True)
                codes = (off / scale + middle).round().clamp(0, 2**bits - 1)
                off = (codes - middle) * scale
                size += rows * columns * bits // 8 + 2 * rows
            values[matrix.tuned.digest] = base + off
        made[method] = size, values
    return made


def frontiers(zoo: Zoo, texts: Path, plans: dict[str, CompactPlan]) -> list[dict[str, Any]]:
    """Every point of every plan, and the plain methods, on evaluation text."""
    rows = []
    for name, plan in plans.items():
        model = zoo.model(name)
        found = find_differences(zoo, model, zoo.model("base"), (name, "base"))
        methods = plain(zoo, found)
        chains = [
            Variant(zoo.chain(model, Plain(StreamedTensors(zoo.tensor), values)))
            for _, values in methods.values()
        ]
        chains += [variant(zoo, found, point.laid) for point in plan.points]
        text = read_text(texts / f"{COMPACTED[name]}.evaluation.txt")
        documents = text.tokens(zoo.tokenizer(model), 6000)
        losses = measure(zoo.chain(model), chains, documents)
        exact = {"model": name, "method": "exact", **plan.exact.to_json(), "kl": 0.0, "top1": 1.0}
        rows.append(exact)
        labels = [(method, size, size, size, "") for method, (size, _) in methods.items()]
        for point in plan.points:
            size = point.bytes
            labels.append((point.kept, size.stored, size.resident, size.step, point.grade))
        for (method, stored, resident, step, grade), loss in zip(labels, losses, strict=True):
            rows.append(
                {
                    "model": name,
                    "method": method,
                    "plain": method in methods,
                    "stored": stored,
                    "resident": resident,
                    "step": step,
                    "kl": float(f"{loss.kl.mean():.4g}"),
                    "top1": round(1 - float(loss.differs.mean()), 5),
                    "grade": grade,
                }
            )
    return rows


def draw(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """A picture for each model."""
    for name in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == name and row["kl"] > 0]
        ours = [row for row in mine if not row["plain"]]
        series = {
            what: [(row[key], row["kl"]) for row in ours]
            for what, key in (("stored", "stored"), ("in memory", "resident"), ("a step", "step"))
        }
        series["plain methods"] = [(r["stored"], r["kl"]) for r in mine if r["plain"]
                                   and r["method"] != "base"]  # fmt: skip
        marked = [(row["resident"], row["kl"], row["grade"]) for row in ours if row["grade"]]
        drawing = frontier(f"{name}: mean KL on evaluation text by bytes", series, marked)
        drawing.save(folder / f"compact-{name}.svg")


def level(zoo: Zoo, grade: str, plans: dict[str, CompactPlan], folder: Path) -> Path:
    """A copy of the zoo in which every plan is executed at a grade."""
    path = folder / f"at-{grade}"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(zoo.path, path)
    copy = Zoo(path)
    if grade != "exact":
        for plan in plans.values():
            chosen = replace(plan, zoo=copy, wanted=grade)
            if chosen.chosen is not None:
                chosen.execute()
            else:
                print(f"{plan.name}: nothing is certified {grade}, and it stays exact")
    return path


def family(paths: dict[str, Path], texts: Path) -> dict[str, Any]:
    """The whole family at each level: memory, speed in turns, perplexities."""
    speed: dict[str, dict[str, list[float]]] = {}
    found: dict[str, Any] = {}
    llms = {grade: LLM(path, dtype="bfloat16", device="cpu") for grade, path in paths.items()}
    prompts = {name: _prompt(texts, domain) for name, domain in TENANTS.items()}
    batches = {
        "all tenants": list(TENANTS),
        "full fine-tunes": list(COMPACTED),
        "alone": ["math-full"],
    }
    for grade, llm in llms.items():
        for name in TENANTS:
            llm.load(name)
        found[grade] = {"resident": llm.stats().resident_bytes, "steps": {}}
    for _ in range(_ROUNDS):
        for what, names in batches.items():
            for grade, llm in llms.items():
                seconds, read = _step(llm, names, prompts)
                speed.setdefault(grade, {}).setdefault(what, []).append(seconds)
                # a prompt that waited for a step makes the last one smaller
                found[grade]["steps"][what] = max(found[grade]["steps"].get(what, 0), read)
    for grade, llm in llms.items():
        times = {what: statistics.median(each) for what, each in speed[grade].items()}
        found[grade]["step_seconds"] = times
        found[grade]["tokens_per_second"] = {
            what: len(batches[what]) / seconds for what, seconds in times.items()
        }
        llm.close()
    for grade, path in paths.items():
        found[grade]["perplexity"] = perplexities(Zoo(path), texts)
    return found


def _prompt(texts: Path, domain: str) -> str:
    return read_text(texts / f"{domain}.evaluation.txt").documents[0][:120]


def _step(llm: LLM, names: Sequence[str], prompts: dict[str, str]) -> tuple[float, int]:
    """Seconds and bytes of weights of a step that gives each tenant a token."""
    llm.stats(reset=True)
    asked = [(name, prompts[name]) for name in names]
    llm.generate(asked, max_new_tokens=_NEW, ignore_eos=True)
    told = llm.stats()
    assert told.last is not None and told.step_seconds.p50 is not None
    return told.step_seconds.p50, told.last.weight_bytes


def perplexities(zoo: Zoo, texts: Path) -> dict[str, dict[str, float]]:
    """Each tenant's on its domain and on plain text, in float32."""
    found = {}
    for name, domain in TENANTS.items():
        model = zoo.model(name)
        chain, tokenizer = zoo.chain(model), zoo.tokenizer(model)
        found[name] = {
            what: surprise(chain, text.tokens(tokenizer, 5000)).perplexity()
            for what, text in (
                ("own", read_text(texts / f"{domain}.evaluation.txt")),
                ("wiki", read_text(texts / "wiki.evaluation.txt")),
            )
        }
    return found


def show(found: dict[str, Any]) -> None:
    """Tables."""
    exact = found["exact"]
    rows = []
    for grade, data in found.items():
        row = {"level": grade, "resident": data["resident"]}
        row["less"] = 1 - data["resident"] / exact["resident"]
        for what, key in (("all tenants", "all"), ("full fine-tunes", "full"), ("alone", "one")):
            row[f"{key}_step"] = int(data["steps"][what])
            row[f"{key}_reads"] = exact["steps"][what] / data["steps"][what]
            row[f"{key}_speed"] = data["tokens_per_second"][what]
            row[f"{key}_faster"] = exact["step_seconds"][what] / data["step_seconds"][what]
        apart = {
            what: max(
                abs(data["perplexity"][n][what] / exact["perplexity"][n][what] - 1) for n in TENANTS
            )
            for what in ("own", "wiki")
        }
        rows.append(row | apart)
    columns = (
        Column("level"),
        Column("resident", "in memory", kind="bytes"),
        Column("less", kind="percent"),
        Column("full_step", "full: a step", kind="bytes"),
        Column("full_reads", "times fewer", kind="float"),
        Column("full_speed", "tokens/s", kind="float"),
        Column("full_faster", "times faster", kind="float"),
        Column("all_step", "all: a step", kind="bytes"),
        Column("all_speed", "tokens/s", kind="float"),
        Column("all_faster", "times faster", kind="float"),
        Column("one_faster", "math-full alone: times faster", kind="float"),
        Column("own", "perplexity off, own", kind="percent"),
        Column("wiki", "wiki", kind="percent"),
    )
    print(Table("the family", columns, rows))
    names = [
        {"tenant": name}
        | {
            f"{grade} {what}": round(data["perplexity"][name][what], 2)
            for what in ("own", "wiki")
            for grade, data in found.items()
        }
        for name in TENANTS
    ]
    keys = [f"{grade} {what}" for what in ("own", "wiki") for grade in found]
    print(Table("perplexity", (Column("tenant"), *(Column(k, kind="float") for k in keys)), names))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--zoo", type=Path)
    parser.add_argument("--only", choices=["frontier", "family"])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/compact.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        work = given.zoo or Path(folder)
        zoo = ready(work / "zoo", given.shared / "family")
        texts = given.shared / "texts"
        plans = make_plans(zoo, texts, work / "plans")
        if given.only != "family":
            data["frontier"] = frontiers(zoo, texts, plans)
            draw(data["frontier"], ROOT / "docs/pictures")
        if given.only != "frontier":
            paths = {grade: level(zoo, grade, plans, work) for grade in LEVELS}
            data["family"] = family(paths, texts)
            show(data["family"])
    lines = ",\n".join(json.dumps(row) for row in data.get("frontier", []))
    rest = json.dumps(data.get("family", {}), indent=1)
    given.out.write_text(f'{{"frontier": [\n{lines}\n],\n"family": {rest}}}\n')
    columns = (
        Column("model"),
        Column("method"),
        Column("stored", kind="bytes"),
        Column("resident", "in memory", kind="bytes"),
        Column("step", "a step", kind="bytes"),
        Column("kl", "mean KL", kind="ratio"),
        Column("top1", "top-1", kind="percent"),
        Column("grade", "certified"),
    )
    print(Table("on evaluation text", columns, data.get("frontier", [])).to_text())


def ready(path: Path, source: Path) -> Zoo:
    """The family in a zoo."""
    zoo = Zoo(path)
    if "trec-prefix" not in zoo.names():
        zoo.ingest_all([source / name for name in FULL])
        for name in ADAPTERS:
            zoo.ingest(source / name, name=name, base="base")
    return zoo


def make_plans(zoo: Zoo, texts: Path, folder: Path) -> dict[str, CompactPlan]:
    """A plan for each full fine-tune, down to grade C."""
    folder.mkdir(exist_ok=True)
    plans = {}
    for name, domain in COMPACTED.items():
        began = time.perf_counter()
        kept = folder / f"{name}.pickle"
        if kept.exists():
            plans[name] = replace(pickle.loads(kept.read_bytes()), zoo=zoo)
            continue
        domains = dict.fromkeys((domain, "wiki"))
        plans[name] = zoo.compact(
            name,
            [texts / f"{each}.calibration.txt" for each in domains],
            [texts / f"{each}.evaluation.txt" for each in domains],
            own=texts / f"{domain}.evaluation.txt",
            base="base",
            grade="C",
            tokens=10_000,
        )
        kept.write_bytes(pickle.dumps(replace(plans[name], zoo=None)))  # type: ignore[arg-type]
        print(plans[name].table().to_text())
        print(f"planned in {time.perf_counter() - began:.0f} s", flush=True)
    return plans


if __name__ == "__main__":
    main()
