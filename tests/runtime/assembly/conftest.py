"""A zoo with certified chains, made once and copied for tests that change it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from blockzoo_runtime import LLM

from blockzoo.zoo import Zoo
from tests.planted import make_base, perturb, variant, write_text


@pytest.fixture(scope="session")
def made_zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts, and a zoo of a base and near-copies of it.

    ``near`` and ``close`` have certificates for all layers of the base in place of their own,
    ``plain`` has one that names no text of its own domain, ``far``'s was rejected.
    """
    folder = tmp_path_factory.mktemp("assembly")
    base = make_base(folder / "base")
    sizes = {"near": 0.002, "close": 0.003, "plain": 0.002, "far": 0.5}
    texts = {name: write_text(folder / f"{name}.txt", seed) for seed, name in enumerate("ab")}
    zoo = Zoo(folder / "zoo")
    zoo.ingest(base, name="base")
    for seed, (name, size) in enumerate(sizes.items()):
        change = partial(perturb, prefix="model.layers.", size=size, seed=seed)
        made = variant(base, folder / name, change)
        zoo.ingest(made, name=name)
        own = texts["b"] if name != "plain" else None
        zoo.certify(name, "layers.*=base", [texts["a"]], own=own)
    return folder


@pytest.fixture
def zoo(made_zoo: Path, tmp_path: Path) -> Zoo:
    """A copy that may be changed."""
    shutil.copytree(made_zoo / "zoo", tmp_path / "zoo")
    return Zoo(tmp_path / "zoo")


@pytest.fixture
def open_llm(zoo: Zoo) -> Iterator[Callable[..., LLM]]:
    opened = []

    def make(**options: Any) -> LLM:
        opened.append(LLM(zoo, **options))
        return opened[-1]

    yield make
    for llm in opened:
        llm.close()
