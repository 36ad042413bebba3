"""Runs of the real command line in processes of their own, and a small zoo for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.zoos import checkpoint

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def blockzoo(tmp_path: Path) -> Run:
    """``blockzoo("ls", "-q")`` in an empty folder; keywords: code, input, and variables."""

    def run(
        *arguments: object, code: int = 0, given: str = "", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("BLOCKZOO")}
        done = subprocess.run(
            [sys.executable, "-m", "blockzoo_cli", *map(str, arguments)],
            cwd=tmp_path,
            env=environment | {"OMP_NUM_THREADS": "1"} | variables,
            input=given,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, done.stderr + done.stdout
        return done

    return run


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    """Three small models: a base, one with two layers changed, and an unrelated one."""
    folder = tmp_path / "models"
    return {
        "base": checkpoint(folder / "base"),
        "tuned": checkpoint(folder / "tuned", changed=(2, 3)),
        "other": checkpoint(folder / "other", seed=9),
    }


@pytest.fixture
def filled(blockzoo: Run, sources: dict[str, Path]) -> Run:
    """`blockzoo` with the three models in its zoo."""
    blockzoo("ingest", *sources.values())
    return blockzoo


def parsed(done: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(done.stdout)
