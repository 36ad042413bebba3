"""A small zoo whose models really read: one Llama of transformers and planted variants of it.

The model is random but sharpened: its next-token distributions are far from flat, so that what
a change does to them can be seen. Its tokenizer has the words of the texts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from blockzoo.zoo import Zoo

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


def share_a_huge_dimension(tensors: Tensors, layer: int) -> None:
    """Let one inner neuron of an MLP write to the first dimension, alone and loudly."""
    prefix = f"model.layers.{layer}.mlp."
    draw = torch.Generator().manual_seed(11)
    for name in ("gate_proj", "up_proj"):
        changed = tensors[f"{prefix}{name}.weight"].clone()
        changed[0] = torch.randn(WIDTH, generator=draw) * 0.5
        tensors[f"{prefix}{name}.weight"] = changed
    down = tensors[f"{prefix}down_proj.weight"].clone()
    down[0], down[:, 0], down[0, 0] = 0, 0, 50
    tensors[f"{prefix}down_proj.weight"] = down


def write_text(path: Path, seed: int, documents: int = 60, length: int = 40) -> Path:
    """Documents of random words, one a line."""
    random = np.random.default_rng(seed)
    lines = [" ".join(random.choice(words(), length)) for _ in range(documents)]
    path.write_text("\n".join(lines) + "\n")
    return path


def planted_zoo(folder: Path) -> Zoo:
    """``base`` and what was made of it, each by its name.

    ``near``, ``middling`` and ``far`` have every matrix of their layers moved by 0.2%, 3% and
    50%, ``one`` a single projection by 20%. ``permuted`` has an MLP's neurons in another order.
    ``quiet`` has a head that its output projection ignores, and ``dead`` differs from it in that
    head alone. ``other`` is unrelated; ``loud`` and ``louder`` are base and other with one huge
    dimension in common.
    """
    base = make_base(folder / "base")
    other = make_base(folder / "other", seed=2)
    projection = "model.layers.1.self_attn.v_proj"
    made = {
        "near": variant(base, folder / "near", lambda t: perturb(t, "model.layers.", 0.002)),
        "middling": variant(base, folder / "middling", lambda t: perturb(t, "model.layers.", 0.03)),
        "far": variant(base, folder / "far", lambda t: perturb(t, "model.layers.", 0.5)),
        "one": variant(base, folder / "one", lambda t: perturb(t, projection, 0.2)),
        "permuted": variant(base, folder / "permuted", lambda t: permute(t, 1)),
        "quiet": variant(base, folder / "quiet", lambda t: silence_head(t, 1, 2)),
        "loud": variant(base, folder / "loud", lambda t: share_a_huge_dimension(t, 1)),
        "louder": variant(other, folder / "louder", lambda t: share_a_huge_dimension(t, 1)),
    }
    made["dead"] = variant(made["quiet"], folder / "dead", lambda t: redraw_head(t, 1, 2))
    zoo = Zoo(folder / "zoo")
    for name, path in {"base": base, "other": other, **made}.items():
        zoo.ingest(path, name=name)
    return zoo


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return planted_zoo(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("texts")
    names = ["own", "plain", "calibration"]
    return {name: write_text(folder / f"{name}.txt", seed) for seed, name in enumerate(names)}
