"""A zoo of planted variants, made once; and texts to certify on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from blockzoo.zoo import Zoo
from tests.equivalence import models


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """``base`` and ``near``, ``middling``, ``far``, ``permuted``, ``quiet``, ``dead``, ``other``.

    ``quiet`` has a head that its output projection ignores, ``dead`` differs from it in that
    head alone. ``small`` has another width.
    """
    folder = tmp_path_factory.mktemp("planted")
    base = models.make_base(folder / "base")
    make = {
        "near": lambda t: models.perturb(t, "model.layers.", 0.002),
        "middling": lambda t: models.perturb(t, "model.layers.", 0.03),
        "far": lambda t: models.perturb(t, "model.layers.", 0.5),
        "permuted": lambda t: models.permute(t, 1),
        "quiet": lambda t: models.silence_head(t, 1, 2),
    }
    folders = {name: models.variant(base, folder / name, how) for name, how in make.items()}
    folders["dead"] = models.variant(
        folders["quiet"], folder / "dead", lambda t: models.redraw_head(t, 1, 2)
    )
    folders["other"] = models.make_base(folder / "other", seed=2)
    zoo = Zoo(folder / "zoo")
    for name, path in {"base": base, **folders}.items():
        zoo.ingest(path, name=name)
    return zoo


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("texts")
    return {
        name: models.write_text(folder / f"{name}.txt", seed)
        for seed, name in enumerate(["own", "plain", "calibration"])
    }
