"""Forty tiny tenants for `soak`, with the tokens that transformers or PEFT give for each."""

from __future__ import annotations

import gc
import random
from dataclasses import dataclass, field
from pathlib import Path

import torch
from contenders import load, own_files
from tenants import TENANTS, Family, Shape, Tenant, make_tenant

from blockzoo import Zoo

SHAPE = Shape(64, 4, 4, 2, 16, 160, 512, 256)
#: tokens of a longest answer
NEW = 24
#: the tenant whose weights hold NaN
BROKEN = "nan"
_PROMPTS = 6
#: how much likelier the chosen token must be than the next, in logits: rounding decides nothing
_CLEAR = 1e-3
#: what tenants are, in turns
_KINDS = ("full", "lora-all", "full", "top3", "full", "dora", "full", "ia3", "full", "prefix",
          "full", "lora-qv", "norms", "full", "late-1")  # fmt: skip


@dataclass
class Crowd:
    """Tenants in a zoo, and what is right.

    Attributes
    ----------
    zoo : Zoo
    shape : Shape
    prompts : list of list of int
    names : list of str
        Tenants, the broken one too.
    weights : list of float
        How often each is asked, by Zipf's law.
    right : dict
        By model digest and prompt: the tokens.
    variants : dict of str to list of Path
        Checkpoints that are ingested in turns under one name.
    victims : list of str
        Tenants with tensors of their own that may be damaged.
    """

    family: Family
    zoo: Zoo
    shape: Shape
    prompts: list[list[int]]
    names: list[str] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    right: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    variants: dict[str, list[Path]] = field(default_factory=dict)
    victims: list[str] = field(default_factory=list)

    def ingest(self, folder: Path, name: str) -> None:
        """Take a checkpoint in under a name."""
        adapter = (folder / "adapter_config.json").exists()
        self.zoo.ingest(folder, name, **({"base": "base"} if adapter else {}))

    def own_files(self, name: str) -> list[Path]:
        """The zoo's files with tensors that no other tenant has."""
        return own_files(self.family, name)

    @property
    def distinct(self) -> int:
        """Bytes of all tenants' weights, each distinct tensor once, in float32."""
        return self._bytes(self.names)

    def budget(self, tenants: int) -> int:
        """Bytes that hold the weights of so many full fine-tunes, and a quarter more for KV."""
        full = [name for name in self.names if name.startswith("full")][:tenants]
        return int(1.25 * self._bytes(full) * tenants / len(full))

    def _bytes(self, names: list[str]) -> int:
        sizes = {
            ref.digest: 4 * ref.elements
            for name in names
            for block in self.zoo.blocks_of(self.zoo.model(name)).values()
            for ref in block.tensors.values()
        }
        return sum(sizes.values())


def make_crowd(folder: Path, count: int) -> Crowd:
    """Make the tenants, ingest them, and find out what is right."""
    family = Family(folder, SHAPE)
    zoo = Zoo(folder / "zoo")
    draw = random.Random(0)
    prompts = [family.prompts(1, draw.randint(8, 90), f"soak {i}")[0] for i in range(_PROMPTS)]
    crowd = Crowd(family, zoo, SHAPE, prompts)
    kinds = [_KINDS[i % len(_KINDS)] for i in range(count - 2)]
    made = {"base": TENANTS["base"]}
    made |= {f"{kind}-{i}": TENANTS[kind] for i, kind in enumerate(kinds)}
    for number, (name, tenant) in enumerate(made.items()):
        _add(crowd, name, name, tenant)
        if number % 5 == 3:  # has other weights now and then
            _add(crowd, name, f"{name}-anew", tenant)
            crowd.variants[name] = [folder / name, folder / f"{name}-anew"]
    crowd.victims = [n for n in made if n.startswith(("full", "top3")) and n not in crowd.variants]
    make_tenant(folder, SHAPE, Tenant(BROKEN, "", lambda *_: False), torch.float32)
    _break(folder / BROKEN)
    crowd.ingest(folder / BROKEN, BROKEN)
    crowd.names = [*made, BROKEN]
    draw.shuffle(crowd.names)
    crowd.weights = [1 / (k + 5) for k in range(len(crowd.names))]
    return crowd


def _add(crowd: Crowd, name: str, folder: str, tenant: Tenant) -> None:
    """Make, ingest under `name`, and note the right tokens of what `folder` then has."""
    place = crowd.family.folder
    for attempt in range(9):
        own = Tenant(folder, tenant.method, tenant.full, tenant.adapter)
        make_tenant(place, crowd.shape, own, torch.float32, seed=str(attempt))
        found = _answers(crowd, folder)
        if found is not None:
            break
    assert found is not None, folder
    crowd.ingest(place / folder, name)
    digest = crowd.zoo.resolve(name)
    crowd.right |= {(digest, i): tokens for i, tokens in enumerate(found)}


def _answers(crowd: Crowd, folder: str) -> list[list[int]] | None:
    """Greedy tokens for each prompt; None where one of them was nearly another."""
    model = load(crowd.family, folder, torch.float32)
    answers = []
    for prompt in crowd.prompts:
        inputs = torch.tensor([prompt])
        with torch.inference_mode():
            out = model.generate(
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=NEW,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        first, second = torch.stack(out.logits).topk(2).values.unbind(-1)
        if (first - second).min() < _CLEAR:
            return None
        answers.append(out.sequences[0, len(prompt) :].tolist())
    del model
    gc.collect()
    return answers


def _break(folder: Path) -> None:
    """Put NaN into a checkpoint's weights."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
