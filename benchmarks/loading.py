"""How long a model takes from the zoo to its first token, by how it is kept.

A generated base and a fine-tune of it in which every weight moved by 1% (bf16; 400 MB each by
default). The fine-tune is loaded, and one token generated from a short prompt, each time in a
process of its own and timed inside it, imports left out: by transformers' ``from_pretrained``
from the original folder; by the runtime from the zoo with raw tensors, with deltas at level
``fast``, and at level ``small``. The files are in the page cache for all.

    python benchmarks/loading.py [--megabytes 400] [--rounds 3] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from ingest import write_checkpoint
from storage import _draw

from blockzoo import Zoo

_TRANSFORMERS = """
import sys, time, torch, transformers
from transformers import AutoModelForCausalLM, GenerationConfig
import transformers.models.llama.modeling_llama
ids = torch.tensor([[5, 6, 7, 8]])
began = time.perf_counter()
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
loaded = time.perf_counter() - began
with torch.inference_mode():
    model(ids).logits[:, -1].argmax()
print(loaded, time.perf_counter() - began)
"""
_RUNTIME = """
import sys, time, torch
import transformers.models.llama.modeling_llama
from blockzoo_runtime import LLM
import blockzoo.codecs.delta, blockzoo.execution.chain
began = time.perf_counter()
llm = LLM(sys.argv[1])
llm.generate([("tune", [5, 6, 7, 8])], max_new_tokens=1)
print(0.0, time.perf_counter() - began)
"""


def timed(code: str, argument: Path) -> float:
    """Seconds to the first token, told by the process itself."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(argument)], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--megabytes", type=float, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        nbytes = int(given.megabytes * 1e6)
        size = write_checkpoint(folder / "base", nbytes, lambda n, s: _draw(f"base {n}", s))
        write_checkpoint(
            folder / "tune",
            nbytes,
            lambda n, s: _draw(f"base {n}", s) + 0.01 * _draw(f"tune {n}", s),
        )
        zoo = Zoo(folder / "zoo")
        for name in ("base", "tune"):
            zoo.ingest(folder / name)
        seconds = {"from_pretrained": [], "raw": [], "fast": [], "small": []}
        kept = {"from_pretrained": size, "raw": size}
        for level in ("raw", "fast", "small"):
            if level != "raw":
                zoo.dedupe(level=level).execute()
                model = zoo.model("tune")
                digests = {
                    ref.digest for b in zoo.blocks_of(model).values() for ref in b.tensors.values()
                }
                files = filter(None, (zoo.objects.find("tensors", d) for d in digests))
                kept[level] = sum(path.stat().st_size for path in files)
            for _ in range(given.rounds):
                if level == "raw":
                    seconds["from_pretrained"].append(timed(_TRANSFORMERS, folder / "tune"))
                seconds[level].append(timed(_RUNTIME, zoo.path))
            if level != "raw":
                zoo.undo_dedupe().execute()
    middle = {name: median(values) for name, values in seconds.items()}
    print(f"{size / 1e6:.0f} MB of bf16; medians of {given.rounds}\n")
    print(f"{'':18}{'kept MB':>9}{'seconds':>9}{'/ raw':>8}{'/ from_pretrained':>19}")
    for name, took in middle.items():
        print(
            f"{name:18}{kept[name] / 1e6:9.1f}{took:9.2f}{took / middle['raw']:8.2f}"
            f"{took / middle['from_pretrained']:19.2f}"
        )
    if given.out:
        given.out.write_text(
            json.dumps({"bytes": size, "kept": kept, "seconds": seconds}, indent=2)
        )


if __name__ == "__main__":
    main()
