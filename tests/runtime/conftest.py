"""A zoo of all real models, made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from blockzoo.zoo import Zoo
from tests.runtime.answers import COUNT, IDS, PROMPTS, answer, folders, reference

torch.set_num_threads(1)  # small models: threads would only wait for each other


@pytest.fixture(scope="session")
def real_zoo(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """All of ``family`` and ``checkpoints``. Tests must not change it."""
    zoo = Zoo(tmp_path_factory.mktemp("runtime") / "zoo")
    for folder in folders(shared):
        zoo.ingest(folder)
    return zoo


@pytest.fixture(scope="session")
def tokenizer(shared: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared / "family" / "base")


@pytest.fixture(scope="session")
def expected(shared: Path, tokenizer: Any) -> dict[tuple[str, int], tuple[Any, list[int]]]:
    """Prompt and float32 tokens of transformers and PEFT by name and number, each by itself."""
    found: dict[tuple[str, int], tuple[Any, list[int]]] = {}
    for folder in folders(shared):
        model = reference(folder)
        has_text = folder.parent.name == "family"
        for number, prompt in enumerate(PROMPTS if has_text else IDS):
            ids = tokenizer(prompt)["input_ids"] if has_text else prompt
            found[folder.name, number] = prompt, answer(model, ids, COUNT)
    return found
