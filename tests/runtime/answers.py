"""The real models, prompts for them, and transformers' and PEFT's own answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

PROMPTS = (
    "Question: What is",
    "def forward(self, x):\n        return",
    "The prince looked at her and said that he",
    "SELECT",
)
#: tokens in each expected answer
COUNT = 32
IDS = ([1, 5, 9], [30, 2, 7, 41, 11, 3, 9], [17], [4, 4, 8, 15, 16])


def folders(shared: Path) -> list[Path]:
    """Every model and adapter that can be run, full models first."""
    found = [p for part in ("family", "checkpoints") for p in (shared / part).iterdir()]
    found = [p for p in found if p.is_dir()]
    return sorted(found, key=lambda p: ((p / "adapter_config.json").exists(), p.name))


def reference(folder: Path, base: Path | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """The model as transformers, or PEFT, loads it."""
    from transformers import AutoModelForCausalLM

    config = folder / "adapter_config.json"
    if not config.exists():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    from peft import PeftModel

    named = json.loads(config.read_text())["base_model_name_or_path"]
    model = AutoModelForCausalLM.from_pretrained(base or folder.parent / named, dtype=dtype)
    return PeftModel.from_pretrained(model, folder).eval()


def answer(model: Any, prompt: list[int], count: int, **settings: Any) -> list[int]:
    """The greedy tokens that transformers' ``generate`` gives for one prompt by itself."""
    ids = torch.tensor([prompt])
    with torch.no_grad():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            **settings,
        )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens
