"""A small family to be made compact: a base, full tunes of it, a merged LoRA, and texts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from blockzoo.zoo import Zoo
from tests import planted as models
from tests.planted import one_thread

__all__ = ["family", "files", "one_thread", "zoo"]


def merge_lora(tensors: models.Tensors, rank: int = 2) -> None:
    """Add an update of a low rank to every matrix of the layers."""
    draw = torch.Generator().manual_seed(9)
    for name, tensor in tensors.items():
        if name.startswith("model.layers.") and tensor.ndim == 2:
            rows, columns = tensor.shape
            update = torch.randn(rows, rank, generator=draw) @ torch.randn(
                rank, columns, generator=draw
            )
            tensors[name] = tensor + update * (0.03 * tensor.norm() / update.norm())


def tune(tensors: models.Tensors) -> None:
    """Move every matrix by 2% and every norm a little."""
    models.perturb(tensors, "", 0.02)
    for name, tensor in tensors.items():
        if tensor.ndim == 1:
            tensors[name] = tensor * 1.01


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("family")
    base = models.make_base(folder / "base")
    made = {"base": base, "other": models.make_base(folder / "other", seed=2)}
    made["tuned"] = models.variant(base, folder / "tuned", tune)
    made["merged"] = models.variant(base, folder / "merged", merge_lora)
    made["near"] = models.variant(
        base, folder / "near", lambda t: models.perturb(t, "model.layers.1.", 0.002)
    )
    return made


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("texts")
    names = ["own", "plain", "calibration"]
    return {
        name: models.write_text(folder / f"{name}.txt", seed) for seed, name in enumerate(names)
    }


@pytest.fixture
def zoo(family: dict[str, Path], tmp_path: Path) -> Zoo:
    zoo = Zoo(tmp_path / "zoo")
    for name, path in family.items():
        zoo.ingest(path, name=name)
    return zoo
