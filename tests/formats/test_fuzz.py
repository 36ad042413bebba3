"""Mutated files and configs: 2,000 cases end well or with the clear error, in bounded memory."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockzoo import Zoo
from blockzoo.errors import BlockzooError
from blockzoo.formats.checkpoint import open_checkpoint
from tests.zoos import checkpoint

_MEMORY = 64 << 20  # bytes a reader may take at most

CASES = settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safetensors.torch import load_file

    root = tmp_path_factory.mktemp("good")
    weights = load_file(checkpoint(root / "safetensors", layers=1, width=8) / "model.safetensors")
    for name, new in (("zip", True), ("legacy", False)):
        shutil.copytree(root / "safetensors", root / name)
        (root / name / "model.safetensors").unlink()
        torch.save(weights, root / name / "pytorch_model.bin", _use_new_zipfile_serialization=new)
    return root


def _read(folder: Path) -> None:
    """Open, read everything, ingest; only the clear error may come out."""
    tracemalloc.start()
    try:
        with open_checkpoint(folder) as opened:
            for stored in opened.tensors.values():
                bytes(stored.data)
    except BlockzooError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < _MEMORY


def _mutate(data: bytes, seed: int, reach: int) -> bytes:
    """Change, cut, repeat or insert a few bytes, most near the front, where the headers are."""
    dice = random.Random(seed)
    changed = bytearray(data)
    for _ in range(dice.randrange(1, 6)):
        end = min(len(changed), reach) if dice.random() < 0.8 else len(changed)
        at = dice.randrange(max(1, end))
        kind = dice.randrange(6)
        if kind == 0 and changed:
            changed[at % len(changed)] = dice.randrange(256)
        elif kind == 1 and changed:
            changed[at % len(changed)] ^= 1 << dice.randrange(8)
        elif kind == 2:
            del changed[at : at + dice.randrange(1, 40)]
        elif kind == 3:
            changed[at:at] = dice.randbytes(dice.randrange(1, 12))
        elif kind == 4:
            changed[at : at + 8] = (1 << dice.randrange(64)).to_bytes(8, "little")
        else:
            changed[at : at + 2] = dice.choice([b"99999999", b"-1", b"[", b"{", b'"', b"null"])
    return bytes(changed)


@pytest.mark.parametrize(
    ("kind", "file", "reach"),
    [
        ("safetensors", "model.safetensors", 1500),
        ("safetensors", "config.json", 1 << 20),
        ("zip", "pytorch_model.bin", 2500),
        ("legacy", "pytorch_model.bin", 2500),
    ],
)
def test_mutated_files_end_with_the_clear_error(
    good: Path, kind: str, file: str, reach: int
) -> None:
    @CASES
    @given(seed=st.integers(0, 1 << 32))
    def check(seed: int) -> None:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "model"
            shutil.copytree(good / kind, folder)
            path = folder / file
            path.write_bytes(_mutate(path.read_bytes(), seed, reach))
            _read(folder)

    check()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3)
    ),
    max_leaves=6,
)


def test_any_config_at_all_ends_well_or_with_the_clear_error(good: Path) -> None:
    """Values of a real config replaced by anything, up to a whole ingest."""
    config = json.loads((good / "safetensors" / "config.json").read_text())

    @CASES
    @given(st.dictionaries(st.sampled_from([*sorted(config), "quantization_config"]), JSON))
    def check(changes: dict[str, object]) -> None:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "model"
            shutil.copytree(good / "safetensors", folder)
            (folder / "config.json").write_text(json.dumps(config | changes))
            zoo = Zoo(Path(place) / "zoo")
            with suppress(BlockzooError):
                zoo.ingest(folder)
                zoo.why_not_served(zoo.model("model"))

    check()
