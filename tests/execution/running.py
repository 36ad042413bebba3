"""Chains straight from folders of safetensors, without a zoo, and transformers' answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from blockzoo.execution.chain import RunnableChain
from blockzoo.execution.executor import Executors
from blockzoo.execution.tensors import TORCH_DTYPES
from blockzoo.partition import partition
from blockzoo.records import Block, Model
from blockzoo.tensors import TensorInfo, TensorRef, tensor_digest

NEW_TOKENS = 32


class HeldTensors:
    """A `TensorSource` that holds float32 tensors in a dictionary."""

    def __init__(self) -> None:
        self._held: dict[str, torch.Tensor] = {}
        self.made: dict[str, torch.Tensor] = {}

    def add(self, tensor: torch.Tensor) -> TensorRef:
        names = {dtype: name for name, dtype in TORCH_DTYPES.items()}
        info = TensorInfo(names[tensor.dtype], tuple(tensor.shape))
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        digest = tensor_digest(info, data)
        self._held[digest] = tensor.float() if tensor.is_floating_point() else tensor
        return TensorRef(info.dtype, info.shape, digest)

    def tensor(self, ref: TensorRef) -> torch.Tensor:
        return self._held[ref.digest]

    def derived(
        self,
        key: str,
        parts: Sequence[TensorRef],
        build: Callable[[Sequence[torch.Tensor]], torch.Tensor],
    ) -> torch.Tensor:
        if key not in self.made:
            self.made[key] = build([self.tensor(part) for part in parts])
        return self.made[key]


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / name).read_text())
    return config


def read_tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 (a file is not a mapping)
            yield name, file.get_tensor(name)


class Loaded:
    """A model folder as records, its tensors held."""

    def __init__(self, folder: Path) -> None:
        self.source = HeldTensors()
        self.config = read_config(folder)
        refs = {n: self.source.add(t) for n, t in read_tensors(folder / "model.safetensors")}
        parts = partition(self.config, refs)
        self.blocks: Mapping[str, Block] = parts.blocks
        self.model = Model("model", parts.family, parts.hops, (), parts.ties)

    def chain(self, executors: Executors | None = None) -> RunnableChain:
        return RunnableChain(
            self.model,
            self.blocks,
            self.config,
            self.source,
            executors=Executors() if executors is None else executors,
        )


def greedy(
    chain: RunnableChain, ids: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """The tokens, then `NEW_TOKENS` more of the highest logit, with a cache."""
    cache = chain.new_cache()
    step = ids
    for _ in range(NEW_TOKENS):
        step = chain(step, mask, cache)[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, step], dim=1)
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return ids


def generate(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """The same by transformers' ``generate``, which stops at no token."""
    tokens: torch.Tensor = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids) if mask is None else mask,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        num_beams=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    return tokens


def prompts(vocabulary: int, length: int = 9) -> torch.Tensor:
    """Four prompts of random tokens, (4, length)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, vocabulary, (4, length), generator=generator)


def left_padding(ids: torch.Tensor) -> torch.Tensor:
    """A mask with padding of several lengths on the left, and one row without."""
    mask = torch.ones_like(ids)
    for row, padding in enumerate((4, 0, 2, 7)):
        mask[row, :padding] = 0
    return mask


def assert_parity(chain: RunnableChain, reference: Any, ids: torch.Tensor) -> None:
    """Logits within 1e-4; the same greedy tokens, padded on the left or not."""
    mask = left_padding(ids)
    with torch.no_grad():
        expected = reference(input_ids=ids).logits
    assert expected.std() > 1e-3, "a model that says nothing proves nothing"
    expected = expected[:, -ids.shape[1] :]  # without virtual tokens
    torch.testing.assert_close(chain(ids, logits_to_keep=0), expected, atol=1e-4, rtol=0)
    assert torch.equal(greedy(chain, ids), generate(reference, ids))
    assert torch.equal(greedy(chain, ids, mask), generate(reference, ids, mask))
