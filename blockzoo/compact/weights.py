"""A compact model's weights as one safetensors file: base and differences put together again.

The file is made when it is asked for; what it begins with (names, dtypes, shapes) is kept as it
is, so the file is the same each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from blockzoo.errors import DamagedError
from blockzoo.execution.packing import unpack
from blockzoo.execution.tensors import TORCH_DTYPES, to_torch
from blockzoo.formats.safetensors import parse_header
from blockzoo.records import Block, Model, Recipe
from blockzoo.store.objects import Objects


def is_weights(recipe: Recipe) -> bool:
    """Whether a file has a checkpoint's weights in it, or tells in which files they are."""
    return recipe.path.endswith(".index.json") or any(
        part.source in ("tensor", "chain") for part in recipe.parts
    )


def chain_bytes(objects: Objects, model: Model, header: bytes) -> Iterator[memoryview]:
    """The bytes behind a header, a tensor at a time.

    Parameters
    ----------
    objects : Objects
    model : Model
        With compact adapters on its hops.
    header : bytes
        What the file begins with.

    Raises
    ------
    DamagedError
        Where the header names a tensor that the chain does not make, or lacks one that it
        changes.
    """
    blocks = {d: objects.block(d) for hop in model.chain for d in (hop.block, *hop.adapters)}
    whole = model.tensors(blocks)
    parts: dict[str, _Part] = {}
    changed: set[str] = set()
    for hop in model.chain:
        for adapter in (blocks[digest] for digest in hop.adapters):
            for local, slot in adapter.spec["replaces"].items():
                whole[f"{hop.prefix}{slot}"] = adapter.tensors[local]
                changed.add(f"{hop.prefix}{slot}")
            for path in adapter.spec["modules"]:
                parts[f"{hop.prefix}{path}.weight"] = _Part(objects, adapter, path)
    entries = parse_header(header)
    if lost := sorted((changed | parts.keys()) - entries.keys() - model.ties.keys()):
        raise DamagedError(f"the file has no tensor {lost[0]}, which the chain changes")
    for name, info in entries.items():
        if name not in whole:
            raise DamagedError(f"the chain makes no tensor {name}, which its file should have")
        tensor = to_torch(*objects.tensor(whole[name].digest))
        if name in parts:
            tensor = tensor.float() + parts[name].difference()
        tensor = tensor.to(TORCH_DTYPES[info.dtype]).contiguous()
        if tuple(tensor.shape) != info.shape:
            raise DamagedError(f"{name} is of another shape than its file should have")
        yield tensor.reshape(-1).view(torch.uint8).numpy().data


@dataclass(frozen=True)
class _Part:
    """What an adapter block keeps of one matrix."""

    objects: Objects
    adapter: Block
    path: str

    def difference(self) -> torch.Tensor:
        """Float32, as the base's tensor lies."""
        facts = self.adapter.spec["modules"][self.path]
        if facts["method"] == "bits":
            codes = unpack(self._read("codes"), facts["bits"], facts["columns"], torch.float32)
            found = codes * self._read("scale").float()[:, None]
        elif f"{self.path}.lora_embedding_A" in self.adapter.tensors:
            a, b = self._read("lora_embedding_A"), self._read("lora_embedding_B")
            found = (b.float() @ a.float()).T
        else:
            found = self._read("lora_B.weight").float() @ self._read("lora_A.weight").float()
        return found.T if facts.get("transposed") else found

    def _read(self, end: str) -> torch.Tensor:
        return to_torch(*self.objects.tensor(self.adapter.tensors[f"{self.path}.{end}"].digest))
