"""Checkpoint folders: which weights count, what else is kept, and what is missing or unsafe."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from blockzoo.errors import SourceError
from blockzoo.formats.checkpoint import open_checkpoint
from blockzoo.formats.hub import fetch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards with their index."""
    place = tmp_path / "model"
    place.mkdir()
    save_file({"a": torch.ones(3)}, place / "model-00001-of-00002.safetensors")
    save_file({"b": torch.ones(4)}, place / "model-00002-of-00002.safetensors")
    index = {
        "weight_map": {f: f"model-0000{i}-of-00002.safetensors" for i, f in ((1, "a"), (2, "b"))}
    }
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    (place / "config.json").write_text("{}")
    return place


def test_shards_are_one_checkpoint(folder: Path) -> None:
    with open_checkpoint(folder) as checkpoint:
        assert sorted(checkpoint.tensors) == ["a", "b"]
        assert len(checkpoint.weights) == 2
        assert [path.name for path in checkpoint.files] == [
            "config.json",
            "model.safetensors.index.json",
        ]


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(SourceError, match="model-00002-of-00002"):
        open_checkpoint(folder)


def test_an_index_that_names_absent_tensors_is_refused(folder: Path) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["phantom"] = "model-00001-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match="phantom"):
        open_checkpoint(folder)


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/passwd", "a/../../b", ""])
def test_an_index_that_leaves_the_folder_is_refused(folder: Path, shard: str) -> None:
    save_file({"a": torch.ones(3)}, folder.parent / "secret.safetensors")
    index = {"weight_map": {"a": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError):
        open_checkpoint(folder)


def test_a_tensor_in_two_shards_is_refused(folder: Path) -> None:
    save_file({"a": torch.ones(3), "b": torch.ones(4)}, folder / "model-00002-of-00002.safetensors")
    with pytest.raises(SourceError, match="'a' is in both"):
        open_checkpoint(folder)


def test_the_hubs_cache_is_read_through_its_links(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in folder.iterdir():
        os.symlink(path, snapshot / path.name)
    os.symlink(tmp_path, snapshot / "loop")  # a folder: not followed
    with open_checkpoint(snapshot) as checkpoint:
        assert sorted(checkpoint.tensors) == ["a", "b"]
        assert [path.name for path in checkpoint.skipped] == ["loop"]


def test_other_pickles_are_kept_as_bytes_and_never_read(folder: Path) -> None:
    (folder / "training_args.bin").write_bytes(b"\x80\x02cos\nsystem\nq\x00.")
    (folder / "optimizer.pt").write_bytes(b"\x80\x02cos\nsystem\nq\x00.")
    with open_checkpoint(folder) as checkpoint:
        names = {path.name for path in checkpoint.files}
        assert {"training_args.bin", "optimizer.pt"} <= names


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": NaN}', "\0", '"x"', "[" * 9999])
def test_a_broken_config_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(SourceError, match=r"config\.json"):
        open_checkpoint(folder)


def test_a_lone_file_is_a_checkpoint(folder: Path) -> None:
    with open_checkpoint(folder / "model-00001-of-00002.safetensors") as checkpoint:
        assert list(checkpoint.tensors) == ["a"]


def test_an_empty_folder_and_an_absent_one_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in ("empty", "absent"):
        with pytest.raises(SourceError) as caught:
            open_checkpoint(tmp_path / place)
        assert caught.value.hint


def test_a_lfs_pointer_is_called_by_its_name(folder: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    (folder / "model-00001-of-00002.safetensors").write_bytes(pointer)
    with pytest.raises(SourceError, match="Git LFS pointer"):
        open_checkpoint(folder)


def test_a_hub_that_cannot_be_reached_is_said_so() -> None:
    with pytest.raises(SourceError, match="the Hub cannot be reached") as caught:
        fetch("nobody/nothing-of-this-name")
    assert caught.value.hint
