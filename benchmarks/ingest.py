"""How fast a checkpoint goes in and comes out, beside ``cp -r`` with a final sync.

Generates a checkpoint of random bf16 weights (4 GB by default, sharded as transformers would),
then, in one run and in alternating order, times: a plain copy that ends on the disk; an ingest
into a new zoo; an ingest of the same bytes again; an export. Each command is a process of its
own, so start-up is in its time and its peak memory is its own. Peak memory is resident memory
less mapped files (``RssAnon`` + ``RssShmem``), sampled every 20 ms.

    python benchmarks/ingest.py [--gigabytes 4] [--rounds 3] [--folder DIR] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from blake3 import blake3

LAYERS = 28
_LIMITS = {"ingest new / cp": 1.3, "ingest known / cp": 0.5, "peak MB": 400.0}


Values = Callable[[str, tuple[int, ...]], np.ndarray]


def write_checkpoint(folder: Path, nbytes: int, values: Values, layers: int = LAYERS) -> int:
    """Write a Llama-shaped bf16 checkpoint of about `nbytes` bytes, in shards; returns its bytes.

    ``values(name, shape)`` gives each tensor in float32.
    """
    folder.mkdir(parents=True)
    # 2 (layers 10.75 w² + 2 vocabulary w) bytes, solved for a width that is a multiple of 256
    width = max(256, int((nbytes / 2 / (layers * 10.75 + 24)) ** 0.5) // 256 * 256)
    vocabulary, inner = 12 * width, 3 * width - width // 4
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for i in range(layers):
        for name in ("q", "o"):
            shapes[f"model.layers.{i}.self_attn.{name}_proj.weight"] = (width, width)
        for name in ("k", "v"):
            shapes[f"model.layers.{i}.self_attn.{name}_proj.weight"] = (width // 4, width)
        shapes[f"model.layers.{i}.mlp.gate_proj.weight"] = (inner, width)
        shapes[f"model.layers.{i}.mlp.up_proj.weight"] = (inner, width)
        shapes[f"model.layers.{i}.mlp.down_proj.weight"] = (width, inner)
        shapes[f"model.layers.{i}.input_layernorm.weight"] = (width,)
        shapes[f"model.layers.{i}.post_attention_layernorm.weight"] = (width,)
    shapes["model.norm.weight"] = (width,)
    shapes["lm_head.weight"] = (vocabulary, width)
    shards = _shards(shapes, 1 << 30)
    index: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        index |= dict.fromkeys(names, file)
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in names:
            end = offset + 2 * math.prod(shapes[name])
            shape = list(shapes[name])
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / file, "wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                out.write(_to_bf16(values(name, shapes[name])).tobytes())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index}, indent=2)
    )
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 256,
        "head_dim": 64,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    os.sync()
    return sum(path.stat().st_size for path in folder.iterdir())


def _to_bf16(values: np.ndarray) -> np.ndarray:
    """Round float32 to the nearest bf16, as bit patterns."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def _shards(shapes: dict[str, tuple[int, ...]], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        nbytes = 2 * math.prod(shape)
        if shards[-1] and size + nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
    return shards


def timed(command: list[str]) -> tuple[float, float]:
    """Run a command to its end; returns seconds and its peak unmapped memory in MB."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = [0.0]
    watcher = threading.Thread(target=_watch, args=(process, peak))
    watcher.start()
    code = process.wait()
    seconds = time.perf_counter() - began
    watcher.join()
    if code:
        raise SystemExit(f"{' '.join(command)} failed with {code}")
    return seconds, peak[0]


def _watch(process: subprocess.Popen[bytes], peak: list[float]) -> None:
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            return
        lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        used = sum(int(lines.get(key, "0").split()[0]) for key in ("RssAnon", "RssShmem"))
        peak[0] = max(peak[0], used / 1000)
        time.sleep(0.02)


def measure(folder: Path, gigabytes: float, rounds: int) -> dict[str, object]:
    """All rounds on one generated checkpoint; returns the figures."""
    source, zoo, copy, out = (folder / name for name in ("model", "zoo", "copy", "out"))
    random = np.random.default_rng(0)

    def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
        return random.standard_normal(shape, np.float32) * np.float32(0.02)

    size = write_checkpoint(source, int(gigabytes * 1e9), values)
    blockzoo = [sys.executable, "-m", "blockzoo_cli"]
    seconds: dict[str, list[float]] = {}
    peak = 0.0

    def clear() -> None:
        for path in (zoo, copy, out):
            shutil.rmtree(path, ignore_errors=True)
        os.sync()

    subprocess.run(f"cat {source}/* > /dev/null", shell=True, check=True)  # same cache for all
    for _ in range(rounds):
        clear()
        steps = {
            "cp": ["sh", "-c", f"cp -r {source} {copy} && sync"],
            "ingest new": [*blockzoo, "--zoo", str(zoo), "ingest", str(source)],
            "ingest known": [*blockzoo, "--zoo", str(zoo), "ingest", str(source), "--name", "b"],
            "export": [*blockzoo, "--zoo", str(zoo), "export", "model", str(out)],
        }
        for name, command in steps.items():
            took, used = timed(command)
            seconds.setdefault(name, []).append(took)
            peak = max(peak, used if name != "cp" else 0.0)
            if name == "cp":
                shutil.rmtree(copy)
                os.sync()
    clear()
    middle = {name: median(values) for name, values in seconds.items()}
    ratios = {f"{name} / cp": middle[name] / middle["cp"] for name in middle if name != "cp"}
    return {
        "bytes": size,
        "seconds": seconds,
        "median_ratios": ratios,
        "peak MB": peak,
        "blake3 GB/s": _hash_speed(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def _hash_speed() -> float:
    data = bytes(1 << 28)
    began = time.perf_counter()
    blake3(max_threads=blake3.AUTO).update(data).digest()
    return len(data) / (time.perf_counter() - began) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder by default")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        figures = measure(Path(folder), given.gigabytes, given.rounds)
    size = figures["bytes"]
    assert isinstance(size, int)
    print(f"{size / 1e9:.2f} GB of bf16, {figures['machine']}; medians of {given.rounds}\n")
    print(f"{'':14}{'seconds':>9}{'GB/s':>7}{'/ cp':>7}")
    seconds, ratios = figures["seconds"], figures["median_ratios"]
    assert isinstance(seconds, dict) and isinstance(ratios, dict)
    for name, values in seconds.items():
        took = median(values)
        ratio = ratios.get(f"{name} / cp", 1.0)
        print(f"{name:14}{took:9.2f}{size / took / 1e9:7.2f}{ratio:7.2f}")
    print(f"\npeak memory without mapped files: {figures['peak MB']:.0f} MB")
    print(f"BLAKE3 alone: {figures['blake3 GB/s']:.1f} GB/s")
    measured = {**ratios, "peak MB": figures["peak MB"]}
    for name, limit in _LIMITS.items():
        verdict = "ok" if measured[name] <= limit else "OVER"
        print(f"{name}: {measured[name]:.2f} (limit {limit}) {verdict}")
    if given.out:
        given.out.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
