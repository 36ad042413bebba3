"""Every changed byte is found, what it hurts is named, and repair puts it right."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from blockzoo import Zoo
from blockzoo.errors import DamagedError, NotFoundError, NoZooError
from blockzoo.repair import open_damaged
from tests.zoos import checkpoint, hashes, run


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo of two related models, beside the folders they came from."""
    root = tmp_path_factory.mktemp("good")
    checkpoint(root / "base", seed=1, layers=3)
    checkpoint(root / "tune", seed=1, layers=3, changed=(2,))
    zoo = Zoo(root / "zoo")
    zoo.ingest(root / "base")
    zoo.ingest(root / "tune", "tune:v1")
    zoo.ingest(root / "base", "acme/base")
    return root


def _change_byte(path: Path, dice: random.Random) -> str:
    data = bytearray(path.read_bytes())
    place = dice.randrange(len(data))
    data[place] ^= dice.randrange(1, 256)
    path.chmod(0o644)
    path.write_bytes(data)
    return f"byte {place} of {path}"


def _files(zoo: Path) -> list[Path]:
    """Every file of a zoo but those that may be dropped at any time."""
    droppable = ("tmp", "cache")
    return sorted(
        path
        for path in zoo.rglob("*")
        if path.is_file() and path.relative_to(zoo).parts[0] not in droppable
    )


def test_every_changed_byte_is_found_and_repaired_from_another_zoo(
    good: Path, tmp_path: Path
) -> None:
    """300 single bytes: half anywhere, half spread over the small files, refs and headers."""
    zoo_path = tmp_path / "zoo"
    shutil.copytree(good / "zoo", zoo_path)
    dice = random.Random(300)
    files = _files(zoo_path)
    small = [path for path in files if path.suffix != ".safetensors"]
    for round_ in range(300):
        path = dice.choice(small if round_ % 2 else files)
        what = _change_byte(path, dice)
        if path.name == "zoo.json":
            with pytest.raises(DamagedError):
                Zoo(zoo_path)
            zoo = open_damaged(zoo_path)
        else:
            zoo = Zoo(zoo_path)
            report = zoo.verify()
            assert not report.ok, f"{what} was not found"
            named = {problem.path for problem in report.problems if problem.path}
            assert path in named, f"{what} was blamed on {named}"
        assert zoo.repair(good / "zoo").ok, f"{what} was not repaired"
        assert Zoo(zoo_path).verify().ok
    Zoo(zoo_path).export("base", tmp_path / "out")
    assert hashes(tmp_path / "out") == hashes(good / "base")


def test_damage_is_repaired_from_the_original_folder(good: Path, tmp_path: Path) -> None:
    zoo_path = tmp_path / "zoo"
    shutil.copytree(good / "zoo", zoo_path)
    dice = random.Random(7)
    for _ in range(25):
        path = dice.choice(_files(zoo_path))
        what = _change_byte(path, dice)
        zoo = open_damaged(zoo_path)
        zoo.repair(good / "base")
        assert zoo.repair(good / "tune").ok, f"{what}: {zoo.verify()}"
    for name in ("base", "tune"):
        Zoo(zoo_path).export(name, tmp_path / name)
        assert hashes(tmp_path / name) == hashes(good / name)


def test_missing_objects_of_every_kind_are_restored(good: Path, tmp_path: Path) -> None:
    zoo_path = tmp_path / "zoo"
    for source in (good / "zoo", good / "base"):
        shutil.copytree(good / "zoo", zoo_path)
        for folder in ("tensors", "blocks", "models", "files"):
            shutil.rmtree(zoo_path / folder)
        zoo = Zoo(zoo_path)
        assert not zoo.verify().ok
        report = zoo.repair(source)
        if source.name == "base":
            report = zoo.repair(good / "tune")
        assert report.ok, report
        shutil.rmtree(zoo_path)


def test_verify_names_the_models_that_damage_hurts(good: Path, tmp_path: Path) -> None:
    zoo_path = tmp_path / "zoo"
    shutil.copytree(good / "zoo", zoo_path)
    zoo = Zoo(zoo_path)
    model = zoo.model("tune")
    own = zoo.blocks_of(model)[model.chain[-2].block]
    digest = own.tensors["mlp.up_proj.weight"].digest
    path = zoo.objects.find("tensors", digest)
    assert path
    _change_byte(path, random.Random(1))
    (problem,) = zoo.verify().problems
    assert problem.hurts == ("tune:latest", "tune:v1")
    done = run("verify", "--zoo", zoo_path)
    assert done.returncode == 12
    assert "tune" in done.stdout + done.stderr


def test_a_damaged_name_hides_no_other(good: Path, tmp_path: Path) -> None:
    zoo_path = tmp_path / "zoo"
    shutil.copytree(good / "zoo", zoo_path)
    _change_byte(zoo_path / "refs" / "acme" / "base@000001.json", random.Random(1))
    done = run("ls", "--json", "--zoo", zoo_path)
    assert done.returncode == 12
    listed = {row["name"]: row["kind"] for row in json.loads(done.stdout)}
    assert listed == {"acme/base": "damaged", "base": "model", "tune": "model"}
    assert "acme/base" in done.stderr and "hint:" in done.stderr
    assert "damaged" in repr(Zoo(zoo_path)) and Zoo(zoo_path).models()._repr_html_()
    with pytest.raises(NotFoundError, match="no model is named 'tunes'"):
        Zoo(zoo_path).model("tunes")
    for needs_all in (Zoo(zoo_path).gc, Zoo(zoo_path).stats):
        with pytest.raises(DamagedError, match="the ref 'acme/base' is damaged"):
            needs_all()


def test_a_damaged_object_is_never_read_as_if_it_were_sound(good: Path, tmp_path: Path) -> None:
    zoo_path = tmp_path / "zoo"
    shutil.copytree(good / "zoo", zoo_path)
    for path in (zoo_path / "tensors").rglob("*.safetensors"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.chmod(0o644)
        path.write_bytes(data)
    with pytest.raises(DamagedError, match="its bytes were changed"):
        Zoo(zoo_path).export("base", tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()
    done = run("export", "base", tmp_path / "out2", "--zoo", zoo_path)
    assert done.returncode == 12
    assert "hint:" in done.stderr


def test_an_ingest_heals_an_object_of_the_wrong_length(good: Path, tmp_path: Path) -> None:
    zoo_path = tmp_path / "zoo"
    shutil.copytree(good / "zoo", zoo_path)
    path = next((zoo_path / "tensors").rglob("*.safetensors"))
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    zoo = Zoo(zoo_path)
    zoo.ingest(good / "base")
    zoo.ingest(good / "tune")
    assert zoo.verify().ok


def test_repair_of_an_old_entry_moves_no_name(good: Path, tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    zoo.ingest(good / "base")
    newest = zoo.ingest(good / "tune", "base").digest
    entry = next((zoo.path / "refs").glob("base@000001.json"))
    data = bytearray(entry.read_bytes())
    data[-3] ^= 1
    entry.chmod(0o644)
    entry.write_bytes(data)
    assert not zoo.verify().ok
    assert zoo.repair(good / "base").ok
    assert zoo.resolve("base") == newest
    assert zoo.history("base")["digest"][-1] == newest


def test_repair_of_the_newest_entry_keeps_the_tags_before_it(good: Path, tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    first = zoo.ingest(good / "base", "bot:v1").digest
    newest = zoo.ingest(good / "tune", "bot").digest
    entry = next((zoo.path / "refs").glob("bot@000002.json"))
    entry.write_bytes(entry.read_bytes()[:-1] + b" ")
    assert zoo.repair(good / "tune").ok
    assert (zoo.resolve("bot"), zoo.resolve("bot:v1")) == (newest, first)


def test_there_is_always_a_zoo_json_while_it_is_repaired(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo_path = tmp_path / "zoo"
    shutil.copytree(good / "zoo", zoo_path)
    (zoo_path / "zoo.json").write_bytes(b"{}")

    def die(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("blockzoo.store.durable.flush_file", die)
        with pytest.raises(KeyboardInterrupt):
            open_damaged(zoo_path)
    assert (zoo_path / "zoo.json").exists()
    assert open_damaged(zoo_path).verify().ok
    (zoo_path / "zoo.json").write_bytes(b"{}")
    (zoo_path / "mine.txt").write_text("of another program")
    with pytest.raises(NoZooError):
        open_damaged(zoo_path)


def test_repair_from_a_zoo_that_means_another_model_moves_no_name(
    good: Path, tmp_path: Path
) -> None:
    zoo, other = Zoo(tmp_path / "zoo"), Zoo(tmp_path / "other")
    zoo.ingest(good / "base", "bot")
    other.ingest(good / "tune", "bot")
    entry = next((zoo.path / "refs").glob("bot@*.json"))
    data = bytearray(entry.read_bytes())
    data[-4] ^= 1
    entry.write_bytes(data)
    assert not zoo.repair(other.path).ok
    assert entry.read_bytes() == data
    assert not zoo.repair(good / "tune").ok
    assert zoo.repair(good / "base").ok
    assert zoo.resolve("bot") == Zoo(good / "zoo").resolve("base")


def test_a_damaged_adapter_does_not_keep_a_base_out(shared: Path, tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    zoo.ingest(shared / "family" / "code-lora-qv", "adapter", detached=True)
    path = zoo.objects.find("models", zoo.resolve("adapter"))
    assert path
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    done = Zoo(zoo.path).ingest(shared / "family" / "base")
    assert done.attached == ()
    assert "damaged" in done.notes[0]
    assert zoo.resolve("base") == done.digest


def test_a_file_exchanged_after_it_was_checked_is_checked_again(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    zoo.ingest(checkpoint(tmp_path / "model"))
    block = next(iter(zoo.blocks_of(zoo.model("model")).values()))
    ref = next(iter(block.tensors.values()))
    zoo.tensor(ref.digest)
    path = zoo.objects.find("tensors", ref.digest)
    assert path is not None
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    staged = path.with_name("staged")
    staged.write_bytes(data)
    staged.replace(path)
    with pytest.raises(DamagedError, match="changed"):
        zoo.tensor(ref.digest)
