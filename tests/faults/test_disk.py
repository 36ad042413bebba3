"""Disks that are full, read-only or slow to tell: a clear error, and a zoo that verifies clean."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockzoo import Zoo
from tests.zoos import checkpoint, hashes, run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_fills_up_leaves_a_clean_zoo(small_disk: Path, tmp_path: Path) -> None:
    first = checkpoint(tmp_path / "first", seed=1, layers=4, width=96)
    large = checkpoint(tmp_path / "large", seed=2, layers=24, width=128)
    zoo = small_disk / "zoo"
    assert run("ingest", first, "--zoo", zoo).returncode == 0
    failed = run("ingest", large, "--zoo", zoo)
    assert failed.returncode == 1
    assert "error:" in failed.stderr and "hint:" in failed.stderr
    assert "Traceback" not in failed.stderr
    opened = Zoo(zoo, create=False)
    assert opened.verify().ok
    assert opened.names() == ["first"]
    opened.gc(older_than=0).execute()
    third = checkpoint(tmp_path / "third", seed=3, layers=4, width=96)
    assert run("ingest", third, "--zoo", zoo).returncode == 0
    opened.export("first", tmp_path / "out")
    assert hashes(tmp_path / "out") == hashes(first)


def test_an_export_to_a_full_disk_can_be_run_again_elsewhere(
    small_disk: Path, tmp_path: Path
) -> None:
    source = checkpoint(tmp_path / "model", seed=1, layers=24, width=128)
    zoo = tmp_path / "zoo"
    assert run("ingest", source, "--zoo", zoo).returncode == 0
    failed = run("export", "model", small_disk / "out", "--zoo", zoo)
    assert failed.returncode == 1
    assert "error:" in failed.stderr and "Traceback" not in failed.stderr
    assert run("export", "model", tmp_path / "out", "--zoo", zoo).returncode == 0
    assert hashes(tmp_path / "out") == hashes(source)


def test_a_read_only_zoo_is_read_but_not_written(small_disk: Path, tmp_path: Path) -> None:
    first = checkpoint(tmp_path / "first", seed=1)
    other = checkpoint(tmp_path / "other", seed=2)
    zoo = small_disk / "zoo"
    assert run("ingest", first, "--zoo", zoo).returncode == 0
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    try:
        refused = run("ingest", other, "--zoo", zoo)
        assert refused.returncode == 1
        assert "error:" in refused.stderr and "Traceback" not in refused.stderr
        assert run("ls", "--zoo", zoo).returncode == 0
        assert run("verify", "--zoo", zoo).returncode == 0
        assert run("export", "first", tmp_path / "out", "--zoo", zoo).returncode == 0
        assert hashes(tmp_path / "out") == hashes(first)
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    from blockzoo.errors import SourceError
    from blockzoo.store.session import Session
    from blockzoo.tensors import TensorInfo

    zoo = Zoo(tmp_path / "zoo")
    data = bytearray(os.urandom(1 << 16))

    class Changing(Session):
        def _stage(self) -> Path:
            data[0] ^= 1  # between hashing and writing
            return super()._stage()

    with Changing(zoo.objects) as session, pytest.raises(SourceError, match="changed"):
        session.tensor(TensorInfo("U8", (1 << 16,)), memoryview(data))
    assert zoo.verify().ok
    assert not list(zoo.objects.all("tensors"))
