"""A zoo of all real models, made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from blockzoo.zoo import Zoo
from tests.runtime.answers import folders

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
