"""A family to serve: a base and tenants of it, one for each way of tuning, and a zoo with them.

The weights are random: what is measured is speed, and it depends on shapes and dtypes only. Each
tenant is made with transformers or PEFT and saved as a user would save it, so that loading it
takes its usual way. Tuned weights are the base's plus noise of a fifth of their size.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import torch

from blockzoo import Zoo

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Shape:
    """A Llama's, with tied embeddings."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    inner: int
    vocabulary: int
    context: int


FULL = Shape(1024, 16, 16, 8, 64, 3584, 24576, 4096)  # 252M parameters
QUICK = Shape(128, 8, 4, 2, 32, 448, 2048, 2048)


@dataclass(frozen=True)
class Tenant:
    """How one tenant is made from the base.

    Parameters
    ----------
    name : str
    method : str
        In words.
    full : callable, optional
        ``(name of a tensor, layers) -> bool``: which tensors a full fine-tune moved.
    adapter : callable, optional
        ``(layers) -> PEFT config``.
    """

    name: str
    method: str
    full: Callable[[str, int], bool] | None = None
    adapter: Callable[[int], Any] | None = None


def _layer(name: str) -> int:
    return int(name.split(".")[2]) if ".layers." in name else -1


def _last(count: int) -> Callable[[str, int], bool]:
    """The last layers and the final norm."""
    return lambda name, layers: name == "model.norm.weight" or _layer(name) >= layers - count


def _lora(rank: int, modules: list[str], dora: bool = False, half: bool = False) -> Any:
    def config(layers: int) -> Any:
        from peft import LoraConfig

        chosen = list(range(layers // 2, layers)) if half else None
        return LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules=modules,
            use_dora=dora,
            layers_to_transform=chosen,
            task_type="CAUSAL_LM",
        )

    return config


def _ia3(layers: int) -> Any:
    from peft import IA3Config

    names = ["k_proj", "v_proj", "down_proj"]
    return IA3Config(target_modules=names, feedforward_modules=names[2:], task_type="CAUSAL_LM")


def _prefix(layers: int) -> Any:
    from peft import PrefixTuningConfig

    return PrefixTuningConfig(num_virtual_tokens=8, task_type="CAUSAL_LM")


TENANTS = {
    tenant.name: tenant
    for tenant in (
        Tenant("base", "the base"),
        Tenant("top3", "full fine-tune of the last three layers", _last(3)),
        Tenant("norms", "norm weights only", lambda name, _: name.endswith("norm.weight")),
        Tenant("lora-all", "LoRA r=16 on all projections", adapter=_lora(16, PROJECTIONS)),
        Tenant("lora-qv", "LoRA r=8 on q, v", adapter=_lora(8, ["q_proj", "v_proj"])),
        Tenant("dora", "DoRA r=8 on q, v", adapter=_lora(8, ["q_proj", "v_proj"], dora=True)),
        Tenant("ia3", "IA3 on k, v, down", adapter=_ia3),
        Tenant("prefix", "prefix tuning, 8 virtual tokens", adapter=_prefix),
        *(
            Tenant(f"lora-{i}", "LoRA r=16 on all projections", adapter=_lora(16, PROJECTIONS))
            for i in range(1, 9)
        ),
        Tenant("top3-b", "full fine-tune of the last three layers", _last(3)),
        Tenant("full", "full fine-tune of every tensor", lambda *_: True),
        *(
            Tenant(
                f"late-{i}",
                "LoRA r=16 on all projections of the second half",
                adapter=_lora(16, PROJECTIONS, half=True),
            )
            for i in range(1, 9)
        ),
    )
}

#: the mixtures that are served
SETS = {
    "methods": ("base", "top3", "norms", "lora-all", "lora-qv", "dora", "ia3", "prefix"),
    "adapters": tuple(f"lora-{i}" for i in range(1, 9)),
    "mixed": ("base", "lora-1", "lora-2", "lora-3", "top3", "top3-b", "lora-4", "norms"),
}
#: tenants with the first half of their layers in common
LATE = tuple(f"late-{i}" for i in range(1, 9))


@dataclass(frozen=True)
class Family:
    """A family on disk.

    Parameters
    ----------
    folder : Path
        Has a folder for each tenant, and the zoo.
    shape : Shape
    """

    folder: Path
    shape: Shape

    @property
    def zoo(self) -> Zoo:
        return Zoo(self.folder / "zoo", create=False)

    def prompts(self, count: int, length: int, seed: object) -> list[list[int]]:
        """Random prompts; equal seeds give equal ones."""
        draw = torch.Generator().manual_seed(crc32(str(seed).encode()))
        size = (count, length)
        ids: list[list[int]] = torch.randint(
            3, self.shape.vocabulary, size, generator=draw
        ).tolist()
        return ids


def make_family(folder: Path, shape: Shape, names: Sequence[str]) -> Family:
    """Make what is missing of the tenants in `folder`, and the zoo.

    A folder of another shape is made anew.
    """
    marker = folder / "shape.json"
    if marker.exists() and json.loads(marker.read_text()) != asdict(shape):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    zoo = Zoo(folder / "zoo")
    have = set(zoo.names())
    for name in ("base", *(name for name in names if name != "base")):
        if name in have:
            continue
        shutil.rmtree(folder / name, ignore_errors=True)
        make_tenant(folder, shape, TENANTS[name])
        zoo.ingest(folder / name, **({"base": "base"} if TENANTS[name].adapter else {}))
    marker.write_text(json.dumps(asdict(shape)))
    return Family(folder, shape)


def make_tenant(
    folder: Path, shape: Shape, tenant: Tenant, dtype: torch.dtype = torch.bfloat16, seed: str = ""
) -> None:
    """Write one tenant's checkpoint; its base lies in ``folder/base`` already."""
    import transformers

    torch.manual_seed(crc32(f"{tenant.name} {seed}".encode()))
    if tenant.name == "base":
        config = transformers.LlamaConfig(
            hidden_size=shape.hidden,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head,
            vocab_size=shape.vocabulary,
            max_position_embeddings=shape.context,
            tie_word_embeddings=True,
            # a layer's update is then about as large at every width
            initializer_range=0.64 / math.sqrt(shape.hidden),
        )
        model = transformers.LlamaForCausalLM(config).to(dtype)
        model.save_pretrained(folder / tenant.name)
        return
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype=dtype)
    with torch.no_grad():
        if tenant.full is not None:
            for name, weight in model.named_parameters():
                if tenant.full(name, shape.layers):
                    size = 0.2 * (weight.float().std() if weight.dim() > 1 else 1)
                    weight += (size * _noise(weight)).to(dtype)
        if tenant.adapter is not None:
            import peft

            model = peft.get_peft_model(
                model, tenant.adapter(shape.layers), autocast_adapter_dtype=False
            )
            for name, weight in _trained(model):
                _train(name, weight)
    model.save_pretrained(folder / tenant.name)


def _trained(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)


def _train(name: str, weight: torch.Tensor) -> None:
    """Stands for training: moves what PEFT begins with."""
    if "lora_B" in name:  # zero at first: the update gets about a fifth of the output's size
        weight += (0.03 * _noise(weight)).to(weight.dtype)
    elif "lora_A" not in name:
        weight += (0.2 * _noise(weight)).to(weight.dtype)


def _noise(weight: torch.Tensor) -> torch.Tensor:
    return torch.randn(weight.shape)
