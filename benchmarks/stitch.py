"""A small base's first layers, a stitch, a large base's last ones: what such a chain is worth.

On ``../shared/family``: ``small`` (width 160, 6 layers) and ``base`` (width 256, 8 layers), which
share a tokenizer and no weights. One stitch is fitted for three positions on the calibration
texts of all domains, its three controls in the same way; perplexity is measured on the
evaluation texts, beside both models'. Then the same stitch, unchanged, stands at the other
positions. Last, the stitched chain is served in one batch with both models, and its greedy
tokens are compared with those of the chain run by itself.

    python benchmarks/stitch.py [--steps N] [--tokens N] [--out FILE]

It takes five minutes of one core, most of it for the controls.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from blockzoo_runtime import LLM
from family import ROOT, SHARED

from blockzoo.equivalence.stitch_fit import Settings
from blockzoo.zoo import Zoo

#: after so many layers of small, before which layer of base; the first is where controls stand
POSITIONS = ((3, 4), (2, 3), (4, 5))
PROMPTS = ("The prince looked at her and said that he", "Question: What is", "SELECT")
NEW_TOKENS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--steps", type=int, default=200, help="of distillation")
    parser.add_argument("--tokens", type=int, default=2000, help="of each evaluation text")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/stitch.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    texts = given.shared / "texts"
    calibration = sorted(texts.glob("*.calibration.txt"))
    evaluation = sorted(texts.glob("*.evaluation.txt"))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        zoo = Zoo(Path(folder) / "zoo")
        for name in ("small", "base"):
            zoo.ingest(given.shared / "family" / name, name=name)
        names = [f"small{i}-base{j}" for i, j in POSITIONS]
        for number, (i, j) in enumerate(POSITIONS):
            how: dict[str, Any] = {"using": names[0]}
            if not number:
                how = {"also": POSITIONS[1:], "settings": Settings(steps=given.steps)}
            done = zoo.stitch(
                f"small@{i}", f"base@{j}", names[number], calibration=calibration,
                text=evaluation, tokens=given.tokens, **how,
            )  # fmt: skip
            print(done, flush=True)
            row = done.to_json()
            record = row.pop("record")
            together = record["evidence"]["together"]
            row |= {key: together[key] for key in ("kl", "kl_high", "top1", "top1_low")}
            row |= {"grade": record["judgement"]["verdict"], "tokens": together["tokens"]}
            rows.append(row)
        rows += [served(zoo, names)]
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def served(zoo: Zoo, names: list[str]) -> dict[str, Any]:
    """All chains and both models in one batch, against each stitched chain by itself."""
    requests = [(name, prompt) for prompt in PROMPTS for name in (*names, "base", "small")]
    llm = LLM(zoo, device="cpu", dtype="float32")
    began = time.perf_counter()
    out = llm.generate(requests, max_new_tokens=NEW_TOKENS)
    seconds = time.perf_counter() - began
    same = 0
    stitched = [(r, done) for r, done in zip(requests, out, strict=True) if r[0] in names]
    for (name, prompt), done in stitched:
        model = zoo.model(name)
        chain, ids = zoo.chain(model), list(zoo.tokenizer(model)(prompt)["input_ids"])
        first = len(ids)
        while len(ids) - first < len(done.token_ids):
            ids.append(int(chain(torch.tensor([ids]))[0, -1].argmax()))
        same += ids[first:] == list(done.token_ids)
    separate = sum(
        ref.elements * 4
        for name in (*names, "base", "small")
        for ref in {r for b in zoo.blocks_of(zoo.model(name)).values() for r in b.tensors.values()}
    )
    row = {"what": "served", "requests": len(requests), "seconds": seconds}
    row |= {"stitched": len(stitched), "same_tokens": same}
    row |= {"resident_bytes": llm.nbytes, "separate_bytes": separate}
    print(
        f"served: {same} of {len(stitched)} stitched answers have the chain's own tokens; "
        f"{llm.nbytes / 1e6:.1f} MB resident, {separate / 1e6:.1f} MB separately"
    )
    return row


if __name__ == "__main__":
    main()
