"""A small zoo whose models really read: one Llama of transformers and planted variants of it.

The model is random but sharpened: its next-token distributions are far from flat, so that what
a change does to them can be seen. Its tokenizer has the words of the texts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

WIDTH, HEADS, LAYERS, INNER, WORDS = 32, 4, 3, 64, 120

Tensors = dict[str, torch.Tensor]


def make_base(folder: Path, seed: int = 1) -> Path:
    """A Llama with a word tokenizer."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        initializer_range=0.15,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    model.save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate(words())}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w0"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))
    return folder


def words() -> list[str]:
    return [f"w{number}" for number in range(WORDS)]


def variant(base: Path, folder: Path, change: Callable[[Tensors], None]) -> Path:
    """A copy of a model's folder with its tensors changed."""
    shutil.copytree(base, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def perturb(tensors: Tensors, prefix: str, size: float, seed: int = 7) -> None:
    """Move every matrix below a prefix by a share of its Frobenius norm."""
    draw = torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        if name.startswith(prefix) and tensor.ndim == 2:
            step = torch.randn(tensor.shape, generator=draw)
            tensors[name] = tensor + step * (size * tensor.norm() / step.norm())


def permute(tensors: Tensors, layer: int, seed: int = 3) -> None:
    """Reorder an MLP's inner neurons: other weights, the same function."""
    prefix = f"model.layers.{layer}.mlp."
    order = torch.randperm(INNER, generator=torch.Generator().manual_seed(seed))
    for name in ("gate_proj", "up_proj"):
        tensors[f"{prefix}{name}.weight"] = tensors[f"{prefix}{name}.weight"][order]
    tensors[f"{prefix}down_proj.weight"] = tensors[f"{prefix}down_proj.weight"][:, order]


def silence_head(tensors: Tensors, layer: int, head: int) -> None:
    """Let the output projection ignore one head."""
    width = WIDTH // HEADS
    out = tensors[f"model.layers.{layer}.self_attn.o_proj.weight"].clone()
    out[:, head * width : (head + 1) * width] = 0
    tensors[f"model.layers.{layer}.self_attn.o_proj.weight"] = out


def redraw_head(tensors: Tensors, layer: int, head: int, seed: int = 5) -> None:
    """Other queries, keys and values for one head."""
    width = WIDTH // HEADS
    draw = torch.Generator().manual_seed(seed)
    for name in ("q_proj", "k_proj", "v_proj"):
        full = f"model.layers.{layer}.self_attn.{name}.weight"
        changed = tensors[full].clone()
        changed[head * width : (head + 1) * width] = (
            torch.randn((width, WIDTH), generator=draw) * changed.std()
        )
        tensors[full] = changed


def write_text(path: Path, seed: int, documents: int = 60, length: int = 40) -> Path:
    """Documents of random words, one a line."""
    random = np.random.default_rng(seed)
    lines = [" ".join(random.choice(words(), length)) for _ in range(documents)]
    path.write_text("\n".join(lines) + "\n")
    return path


def figures(record: Mapping[str, object], *path: str) -> float:
    """A number deep in JSON."""
    value: object = record
    for key in path:
        assert isinstance(value, Mapping)
        value = value[key]
    assert isinstance(value, (int, float))
    return float(value)
