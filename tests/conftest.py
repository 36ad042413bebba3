"""What all tests share: where the real models are, and quiet, offline libraries."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

SHARED = Path(
    os.environ.get("BLOCKZOO_SHARED", Path(__file__).resolve().parents[1].parent / "shared")
)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and texts; the test skips, and says so, where it is absent."""
    if not (SHARED / "family").is_dir():
        pytest.skip(f"needs the real models in {SHARED} (set BLOCKZOO_SHARED)")
    return SHARED


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests for a card are skipped, and say so, where there is none."""
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
