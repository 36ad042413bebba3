"""Every family: differences laid on the base run, and export, as the model they stand for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from blockzoo.compact.differences import Differences, Matrix, find_differences
from blockzoo.compact.laying import Choice, lay
from blockzoo.compact.options import Option, options_of
from blockzoo.compact.weights import chain_bytes
from blockzoo.equivalence.swap import swapped
from blockzoo.execution.tensors import to_torch
from blockzoo.formats.safetensors import header
from blockzoo.store.session import Session
from blockzoo.zoo import Zoo
from tests.execution import tiny

_IDS = torch.tensor([[3, 9, 4, 1, 7, 12, 5]])


def _tuned(base: Path, folder: Path) -> Path:
    """A copy with every tensor moved by 2%."""
    shutil.copytree(base, folder)
    draw = torch.Generator().manual_seed(4)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        step = torch.randn(tensor.shape, generator=draw)
        tensors[name] = tensor + step * (0.02 * tensor.norm() / step.norm())
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def _choices(zoo: Zoo, found: Differences) -> dict[str, Choice]:
    """All in codes, none of them, all but the first, and by turns: codes, the base's, the tuned."""
    options: dict[Matrix, list[Option]] = {}
    with Session(zoo.objects) as session:
        for matrix in found.matrices:
            tensors = (
                to_torch(*zoo.tensor(matrix.tuned.digest)),
                to_torch(*zoo.tensor(matrix.base.digest)),
            )
            columns = matrix.tuned.shape[0 if matrix.places[-1].transposed else 1]
            options[matrix] = options_of(session, matrix, tensors, torch.eye(columns), (1, 4))
        assert session.commit()
    coded = {m: next(o for o in some if o.name == "4 bits") for m, some in options.items()}
    full = {matrix: some[-1] for matrix, some in options.items()}
    turns = {m: (coded[m], options[m][0], full[m])[number % 3] for number, m in enumerate(options)}
    first = next(iter(options))
    return {"codes": coded, "full": full, "turns": turns, "first": {**coded, first: full[first]}}


@pytest.mark.parametrize("name", sorted(tiny.TINY))
def test_differences_make_the_tuned_model(name: str, tmp_path: Path) -> None:
    base = tiny.make(name, tmp_path)
    zoo = Zoo(tmp_path / "zoo")
    zoo.ingest(base, name="base")
    zoo.ingest(_tuned(base, tmp_path / "tuned"), name="tuned")
    model = zoo.model("tuned")
    found = find_differences(zoo, model, zoo.model("base"), ("tuned", "base"))
    assert found.matrices
    exact = tiny.load(tmp_path / "tuned")(_IDS).logits
    tensors = model.tensors(zoo.blocks_of(model))
    begin = header(tensors)
    for what, choice in _choices(zoo, found).items():
        laid = lay(found, choice)
        with Session(zoo.objects) as session:
            for block in laid.blocks.values():
                session.block(block)
            assert session.commit()
        made = swapped(model, laid.swaps)
        logits = zoo.chain(made)(_IDS, logits_to_keep=0)
        folder = tmp_path / what
        shutil.copytree(base, folder)
        with open(folder / "model.safetensors", "wb") as file:
            file.write(begin)
            file.writelines(chain_bytes(zoo.objects, made, begin))
        assert torch.allclose(tiny.load(folder)(_IDS).logits, logits, atol=2e-3, rtol=1e-3), what
        if what == "full":
            assert not laid.swaps and torch.allclose(logits, exact, atol=1e-4)
