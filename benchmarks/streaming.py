"""How much memory it takes to compare two models of 4 GB each.

Generates two checkpoints of Llama's shape (bf16, 44 layers of width 2,048; the second differs
from the first by 2% in every second layer), a shard at a time, and takes them into a zoo. Then,
each in a process of its own: both compared by sketches (``blockzoo similar A B``), block by block
by weights (``zoo.similarity(a, b)``), and by activations on a text (``zoo.similarity(a, b,
text)``); and one swap certified. Told of each: the most resident memory (``ru_maxrss``), and of
it the most that was the process's own (``RssAnon`` + ``RssShmem``) and the most that was mapped
files (``RssFile``: libraries and the zoo's tensors, which the kernel may drop at any time), both
sampled every 10 ms. Tokenizer and texts are those of ``../shared``.

    python benchmarks/streaming.py [--gigabytes 4.2] [--only STEP …] [--folder DIR] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from ingest import write_checkpoint

LAYERS = 44
LIMIT = 1.0  # GB
_MOVED = 0.02  # by which the second model's tensors differ, of their norm
_CHOSEN = 12_000  # characters of the calibration text, 2,600 tokens
_CERTIFIED = 1200  # tokens
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")

_BY_WEIGHTS = "print(blockzoo.Zoo({zoo!r}).similarity('first', 'second'))"
_BY_ACTIVATIONS = "print(blockzoo.Zoo({zoo!r}).similarity('first', 'second', {choosing!r}))"


def values(name: str, shape: tuple[int, ...], *, moved: bool) -> np.ndarray:
    """A tensor of the first model, or of the second where `moved`."""
    key = zlib.crc32(name.encode())
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    found = np.random.default_rng(key).standard_normal(shape, np.float32)
    parts = name.split(".")
    if moved and parts[1] == "layers" and int(parts[2]) % 2:
        noise = np.random.default_rng([key, 1]).standard_normal(shape, np.float32)
        noise *= np.float32(_MOVED)
        found += noise
    found *= np.float32(0.02)
    return found


def watched(command: list[str]) -> dict[str, float]:
    """Run a command to its end: its seconds, and its peaks of memory in GB."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peaks = {"own": 0.0, "mapped": 0.0}
    watcher = threading.Thread(target=_watch, args=(process.pid, peaks))
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {process.returncode}")
    resident = usage.ru_maxrss * 1024 / 1e9
    return {"seconds": time.perf_counter() - began, "resident": resident, **peaks}


def _watch(process: int, peaks: dict[str, float]) -> None:
    while True:
        try:
            status = Path(f"/proc/{process}/status").read_text()
        except OSError:
            return
        lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        if "RssAnon" not in lines:  # it has ended
            return
        own, shared, mapped = (
            int(lines[key].split()[0]) * 1024 / 1e9 for key in ("RssAnon", "RssShmem", "RssFile")
        )
        peaks["own"] = max(peaks["own"], own + shared)
        peaks["mapped"] = max(peaks["mapped"], mapped)
        time.sleep(0.01)


def prepare(folder: Path, shared: Path, gigabytes: float) -> tuple[int, dict[str, Any]]:
    """Both models in a zoo; the bytes of one, and what taking them in took."""
    figures = {}
    size = 0
    for name in ("first", "second"):
        source = folder / name
        moved = name == "second"
        size = write_checkpoint(
            source, int(gigabytes * 1e9), lambda n, s, m=moved: values(n, s, moved=m), LAYERS
        )
        for file in _TOKENIZER:
            if (shared / "family/base" / file).exists():
                shutil.copy(shared / "family/base" / file, source)
        command = [sys.executable, "-m", "blockzoo_cli", "--zoo", str(folder / "zoo")]
        figures[f"ingest {name}"] = watched([*command, "ingest", str(source), "--name", name])
        print(line(f"ingest {name}", figures[f"ingest {name}"]), flush=True)
        shutil.rmtree(source)
    return size, figures


def line(name: str, taken: dict[str, float]) -> str:
    return (
        f"{name:24}{taken['seconds']:9.1f}{taken['resident']:10.2f}"
        f"{taken['own']:8.2f}{taken['mapped']:9.2f}"
    )


def steps(folder: Path, shared: Path, python: list[str]) -> dict[str, list[str]]:
    zoo, texts = str(folder / "zoo"), shared / "texts"
    choosing = str(folder / "choosing.txt")
    Path(choosing).write_text((texts / "wiki.calibration.txt").read_text()[:_CHOSEN])
    cli = [*python, "-m", "blockzoo_cli", "--zoo", zoo]
    swap = ["certify", "second", "--swap", "layers.41.mlp=first", "--tokens", str(_CERTIFIED)]
    swap += ["--text", str(texts / "wiki.evaluation.txt")]
    given = {"zoo": zoo, "choosing": choosing}
    return {
        "similar, sketches": [*cli, "similar", "first", "second"],
        "similarity, weights": [*python, "-c", f"import blockzoo; {_BY_WEIGHTS.format(**given)}"],
        "similarity, activations": [
            *python,
            "-c",
            f"import blockzoo; {_BY_ACTIVATIONS.format(**given)}",
        ],
        # it exits with 1 where the grade is not reached, which is no failure here
        "certify one swap": ["sh", "-c", 'exec "$@" || true', "sh", *cli, *swap, "--grade", "C"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("--shared", type=Path, default=root.parent / "shared")
    parser.add_argument("--gigabytes", type=float, default=4.2)
    parser.add_argument("--only", nargs="*", help="these steps")
    parser.add_argument("--folder", type=Path, help="keep the models here, and find them here")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    given = parser.parse_args()
    print(f"{'':24}{'seconds':>9}{'resident':>10}{'own':>8}{'mapped':>9}   (peaks in GB)")
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        kept = folder / "figures.json"
        if kept.exists():
            figures = json.loads(kept.read_text())
        else:
            size, taken = prepare(folder, given.shared, given.gigabytes)
            figures = {"bytes": size, "steps": taken}
            kept.write_text(json.dumps(figures))
        for name, command in steps(folder, given.shared, [sys.executable]).items():
            if given.only is None or any(name.startswith(wanted) for wanted in given.only):
                figures["steps"][name] = taken = watched(command)
                kept.write_text(json.dumps(figures))
                print(line(name, taken), "" if taken["resident"] <= LIMIT else "OVER", flush=True)
    print(f"{figures['bytes'] / 1e9:.2f} GB a model; wanted: at most {LIMIT} GB resident")
    if given.out:
        figures |= {"layers": LAYERS, "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
        rows = [{"step": name, **taken} for name, taken in figures.pop("steps").items()]
        told = json.dumps(figures)[1:-1]
        lines = ",\n".join(json.dumps(row) for row in rows)
        given.out.write_text(f'{{{told}, "steps": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
