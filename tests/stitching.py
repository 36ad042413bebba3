"""Two models of different width that compute the same, and text that they foretell.

``wide`` is ``narrow`` in a larger residual stream: its hidden states are those of ``narrow``,
rotated. So an affine map between them is all that a stitch has to find, and noise cannot do its
work.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from blockzoo.zoo import Zoo
from tests.planted import HEADS, WIDTH, make_base, perturb, variant

WIDE = 48
_INTO = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head", "embed_tokens")
_OUT_OF = ("o_proj", "down_proj")


def widen(narrow: Path, folder: Path, seed: int = 4) -> Path:
    """The same function in a residual stream of `WIDE` dimensions."""
    draw = torch.Generator().manual_seed(seed)
    turned = torch.linalg.qr(torch.randn(WIDE, WIDE, generator=draw))[0][:, :WIDTH]

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            module = name.split(".")[-2]
            if module in _INTO:
                tensors[name] = tensor @ turned.T
            elif module in _OUT_OF:
                tensors[name] = turned @ tensor
            else:  # a norm's weight of ones: the mean square is over more dimensions now
                tensors[name] = torch.full((WIDE,), math.sqrt(WIDTH / WIDE))

    variant(narrow, folder, change)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": WIDE, "head_dim": WIDTH // HEADS}
    config["rms_norm_eps"] = config["rms_norm_eps"] * WIDTH / WIDE
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_samples(model: Path, path: Path, seed: int, documents: int = 60) -> Path:
    """Documents that a model wrote itself, one a line."""
    torch.manual_seed(seed)
    writer = LlamaForCausalLM.from_pretrained(model).eval()
    first = torch.randint(1, writer.config.vocab_size, (documents, 1))
    out = writer.generate(
        first, attention_mask=torch.ones_like(first), max_new_tokens=39, do_sample=True,
        top_k=0, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    path.write_text("\n".join(" ".join(f"w{token}" for token in ids) for ids in out.tolist()))
    return path


def make_models(folder: Path) -> dict[str, Path]:
    """``narrow``, ``wide``, and ``tuned``, which is wide but for its last layer."""
    narrow = make_base(folder / "narrow")
    wide = widen(narrow, folder / "wide")
    last = "model.layers.2.mlp"
    tuned = variant(wide, folder / "tuned", lambda t: perturb(t, last, 0.3))
    return {"narrow": narrow, "wide": wide, "tuned": tuned}


def make_texts(narrow: Path, folder: Path) -> dict[str, Path]:
    names = ("fitted", "held", "more")
    return {
        name: write_samples(narrow, folder / f"{name}.txt", seed) for seed, name in enumerate(names)
    }


def rename(folder: Path, old: str, new: str) -> None:
    """Give one word of a tokenizer another name."""
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace(f'"{old}"', f'"{new}"'))


def cut_rows(folder: Path, rows: int) -> None:
    """Leave fewer tokens in the embedding and the head."""
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:rows].contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": rows}))


@pytest.fixture(scope="session")
def stitchable(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of the models and the texts' files, by name."""
    folder = tmp_path_factory.mktemp("stitchable")
    models = make_models(folder)
    return models | make_texts(models["narrow"], folder)


@pytest.fixture
def pair_zoo(stitchable: dict[str, Path], tmp_path: Path) -> Zoo:
    zoo = Zoo(tmp_path / "zoo")
    for name in ("narrow", "wide", "tuned"):
        zoo.ingest(stitchable[name], name=name)
    return zoo
