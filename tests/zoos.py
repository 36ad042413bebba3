"""Small checkpoints and a running zoo for tests of the store: real files, real processes."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], dtype: str = "F32") -> None:
    """Write tensors as float32 or, rounded towards zero, as BF16, as the library would."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset, data = 0, b""
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array, "<f4")
        if dtype == "BF16":
            raw = (raw.view("<u4") >> 16).astype("<u2")
        end = offset + raw.nbytes
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
        data += raw.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    layers: int = 4,
    width: int = 64,
    changed: Sequence[int] = (),
    moved: float = 0.0,
    dtype: str = "F32",
) -> Path:
    """A small Llama's folder; the layers in `changed` differ from those of the same seed.

    With `moved`, every matrix differs a little, by that share of its size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed).standard_normal
    tensors = {"model.embed_tokens.weight": draw((96, width))}
    for i in range(layers):
        prefix = f"model.layers.{i}."
        shift = 0.01 * (seed + 1) if i in changed else 0.0
        for part in ("q", "k", "v", "o"):
            tensors[f"{prefix}self_attn.{part}_proj.weight"] = draw((width, width)) + shift
        for part, shape in (
            ("gate", (2 * width, width)),
            ("up", (2 * width, width)),
            ("down", (width, 2 * width)),
        ):
            tensors[f"{prefix}mlp.{part}_proj.weight"] = draw(shape) + shift
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = np.ones(width) + shift
    tensors["model.norm.weight"] = np.ones(width)
    if moved:
        step = np.random.default_rng(round(1e6 * moved)).standard_normal
        tensors = {name: t + moved * step(t.shape) for name, t in tensors.items()}
    write_safetensors(folder / "model.safetensors", tensors, dtype)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 96,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "tokenizer.json").write_text(json.dumps({"words": [f"word{i}" for i in range(900)]}))
    return folder


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, by relative path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def start(*arguments: object, code: str | None = None) -> subprocess.Popen[str]:
    """Start ``blockzoo ARGUMENTS…``, or Python code, in a process of its own."""
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "blockzoo_cli"]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``blockzoo ARGUMENTS…`` to its end."""
    process = start(*arguments)
    out, error = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)
