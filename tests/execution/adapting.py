"""Adapters made with PEFT, and their chains straight from the folders it saves."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model

from blockzoo.execution.chain import RunnableChain
from blockzoo.execution.executor import Executors
from blockzoo.partition import partition_adapter
from blockzoo.records import Model

from .running import Loaded, read_config, read_tensors
from .tiny import load


def make_adapter(base: Path, config: PeftConfig, folder: Path) -> Path:
    """Put an adapter with random weights, none of them zero, on a base and save it."""
    torch.manual_seed(2)
    model = get_peft_model(load(base), deepcopy(config))  # which it completes
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


def load_adapter(base: Path, adapter: Path) -> Any:
    """PEFT's model of a base and an adapter, in float32."""
    return PeftModel.from_pretrained(load(base), adapter).eval()


def adapter_model(base: Loaded, adapter: Path) -> tuple[Model, dict[str, Any]]:
    """The adapter's model record on its base, and every block of its chain."""
    config = read_config(adapter, "adapter_config.json")
    file = adapter / "adapter_model.safetensors"
    refs = {name: base.source.add(tensor) for name, tensor in read_tensors(file)}
    parts = partition_adapter(config, refs, base.model.chain, base.blocks)
    model = Model(
        "adapter", parts.family, parts.hops, (), base.model.ties, base.model.digest, "base"
    )
    return model, {**base.blocks, **parts.blocks}


def adapter_chain(base: Loaded, adapter: Path, executors: Executors | None = None) -> RunnableChain:
    model, blocks = adapter_model(base, adapter)
    return RunnableChain(
        model,
        blocks,
        base.config,
        base.source,
        executors=Executors() if executors is None else executors,
    )
