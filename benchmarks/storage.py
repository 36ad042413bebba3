"""Many fine-tunes on disk: blockzoo beside what a user would take today, in one run.

Baselines, by name: ``folders`` (``cp -r`` and a sync), ``tar+zstd`` (one archive, ``zstd -3 -T0``),
``restic`` (its default compression, and ``--compression max``), ``borg`` (``zstd,3``), ``zipnn``
(each weights file by itself, all cores). Ours: ``blockzoo`` (exact only), ``blockzoo fast`` and
``blockzoo small`` (with ``dedupe``). What is not installed is left out, and said so.

Data: the eight full models of ``../shared/family`` where it is there, and generated families:
a base of random bf16 weights (normal, a scale per row) and fine-tunes of it, in which every
weight moved by 0.1%, 1% or 3% of its tensor's norm, and one that moved only in its last quarter.

Each step is a process of its own and ends with a sync. Peak memory is the sum over the
processes of a step of resident memory less mapped files.

    python benchmarks/storage.py [--gigabytes 3] [--only NAME…] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
from family import FULL, SHARED

MOVED = {"moved 0.1%": 0.001, "moved 1%": 0.01, "moved 3%": 0.03}


@dataclass
class Figures:
    """One system on one family of models; bytes, seconds, MB."""

    system: str
    stored: int
    saving: float
    ingest: float
    restore: float
    peak: float


@dataclass(frozen=True)
class System:
    """How a system takes a family in and gives it back; shell commands.

    ``{source}`` is the folder of models, ``{store}`` the system's own, ``{out}`` where to.
    """

    name: str
    needs: str
    ingest: str
    restore: str
    environment: tuple[tuple[str, str], ...] = ()


PYTHON = sys.executable
OURS = f"{PYTHON} -m blockzoo_cli --zoo {{store}}/zoo"
EXPORT = f"{OURS} export $(ls {{source}}) {{out}} > /dev/null"
INGEST = f"{OURS} ingest {{source}}/* > /dev/null"
_RESTIC = (("RESTIC_PASSWORD", "x"), ("RESTIC_REPOSITORY", "{store}/r"))
_BORG = (("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes"), ("BORG_BASE_DIR", "{store}/b"))
_ZIPNN = f"{PYTHON} {Path(__file__).resolve()} --zipnn"
SYSTEMS = (
    System("folders", "cp", "cp -r {source}/. {store}", "cp -r {store}/. {out}"),
    System(
        "tar+zstd",
        "zstd",
        "tar -C {source} -cf - . | zstd -q -3 -T0 -o {store}/all.tar.zst",
        "zstd -q -dc {store}/all.tar.zst | tar -C {out} -xf -",
    ),
    *(
        System(
            name,
            "restic",
            f"restic -q init && cd {{source}} && restic -q --compression {level} backup .",
            "restic -q restore latest --target {out}",
            (*_RESTIC, ("RESTIC_CACHE_DIR", "{store}-cache")),
        )
        for name, level in (("restic", "auto"), ("restic max", "max"))
    ),
    System(
        "borg",
        "borg",
        "borg init -e none {store}/r && cd {source} && borg create -C zstd,3 {store}/r::a .",
        "cd {out} && borg extract {store}/r::a",
        _BORG,
    ),
    System(
        "zipnn",
        "zipnn",
        f"{_ZIPNN} compress {{source}} {{store}}",
        f"{_ZIPNN} restore {{store}} {{out}}",
    ),
    System("blockzoo", "blockzoo", INGEST, EXPORT),
    *(
        System(
            f"blockzoo {level}",
            "blockzoo",
            f"{OURS} ingest --dedupe --level {level} {{source}}/* > /dev/null",
            EXPORT,
        )
        for level in ("fast", "small")
    ),
)


def generate(folder: Path, nbytes: int, moved: float) -> None:
    """A family of five: a base, three fine-tunes in which every weight moved, one partly moved."""
    from ingest import write_checkpoint

    def scaled(index: int) -> Callable[[str, tuple[int, ...]], np.ndarray]:
        def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
            base = _draw(f"base {name}", shape)
            late = ".layers." in name and int(name.split(".")[2]) >= 21
            if index == 0 or (index == 4 and not late):
                return base
            return base + moved * _draw(f"tune {index} {name}", shape)

        return values

    for index in range(5):
        write_checkpoint(folder / f"model{index}", nbytes // 5, scaled(index))


def _draw(seed: str, shape: tuple[int, ...]) -> np.ndarray:
    random = np.random.default_rng(list(seed.encode()))
    values = random.standard_normal(shape, np.float32)
    if len(shape) == 1:
        return 1 + 0.05 * values
    scale = 0.02 * np.exp(0.3 * random.standard_normal((shape[0], 1), np.float32))
    return np.asarray(values * scale, np.float32)


def run(command: str, system: System, places: dict[str, str]) -> tuple[float, float]:
    """Run a step to its end and sync; returns seconds and peak unmapped memory in MB."""
    environment = os.environ | {key: value.format(**places) for key, value in system.environment}
    began = time.perf_counter()
    process = subprocess.Popen(
        ["sh", "-c", f"set -e; {command.format(**places)}; sync"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    peak = [0.0]
    watcher = threading.Thread(target=_watch, args=(process, peak))
    watcher.start()
    _, error = process.communicate()
    seconds = time.perf_counter() - began
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{system.name}: {command.format(**places)}\n{error}")
    return seconds, peak[0]


def _watch(process: subprocess.Popen[str], peak: list[float]) -> None:
    while process.poll() is None:
        used = 0.0
        try:
            for one in psutil.Process(process.pid).children(recursive=True):
                status = Path(f"/proc/{one.pid}/status").read_text()
                lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
                used += sum(int(lines.get(k, "0").split()[0]) for k in ("RssAnon", "RssShmem"))
        except (OSError, psutil.Error):
            continue
        peak[0] = max(peak[0], used / 1000)
        time.sleep(0.03)


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def measure(system: System, source: Path, work: Path) -> Figures:
    """One system, from models to store to models again; the result is compared byte for byte."""
    # folders of its own: where thousands of files were deleted a moment ago, some file systems
    # make new ones slowly, and the next system would pay for it
    place = work / system.name.replace(" ", "-")
    store, out = place / "store", place / "out"
    for path in (store, out):
        path.mkdir(parents=True)
    places = {"source": str(source), "store": str(store), "out": str(out)}
    took, peak = run(system.ingest, system, places)
    stored = size(store)
    back, again = run(system.restore, system, places)
    subprocess.run(["diff", "-r", str(source), str(out)], check=True)
    return Figures(system.name, stored, 1 - stored / size(source), took, back, max(peak, again))


def zipnn(verb: str, source: Path, target: Path) -> None:
    """Each safetensors file through ZipNN (bf16, all cores), every other file as it is."""
    from zipnn import ZipNN

    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        coder = ZipNN(bytearray_dtype="bfloat16", threads=os.cpu_count() or 1)
        if verb == "compress" and path.suffix == ".safetensors":
            place.with_name(place.name + ".znn").write_bytes(coder.compress(path.read_bytes()))
        elif path.suffix == ".znn":
            place.with_suffix("").write_bytes(coder.decompress(path.read_bytes()))
        else:
            shutil.copyfile(path, place)


def show(title: str, rows: list[Figures], total: int) -> None:
    """Print one family's table."""
    print(f"\n{title}: {total / 1e6:,.0f} MB")
    head = f"{'':16}{'stored MB':>10}{'saving':>8}{'ingest s':>10}{'restore s':>10}{'peak MB':>9}"
    print(head)
    for row in rows:
        print(
            f"{row.system:16}{row.stored / 1e6:10,.1f}{row.saving:8.1%}{row.ingest:10.1f}"
            f"{row.restore:10.1f}{row.peak:9,.0f}"
        )
    others = [row for row in rows if not row.system.startswith("blockzoo")]
    backups = [row for row in rows if row.system.split()[0] in ("restic", "borg")]
    best = max(row.saving for row in others)
    for row in rows:
        if row.system in ("blockzoo fast", "blockzoo small"):
            line = f"{row.system}: {100 * (row.saving - best):+.1f} points beside the best other"
            if backups:
                ingest = row.ingest / min(other.ingest for other in backups)
                restore = row.restore / min(other.restore for other in backups)
                line += f"; ingest {ingest:.2f}, restore {restore:.2f} of the faster backup's time"
            print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--gigabytes", type=float, default=3.0, help="of generated models in all")
    parser.add_argument("--only", nargs="*", help="these families only")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder by default")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    parser.add_argument("--zipnn", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.zipnn:
        verb, source, target = given.zipnn
        return zipnn(verb, Path(source), Path(target))
    systems = [s for s in SYSTEMS if _there(s.needs)]
    for missing in sorted({s.needs for s in SYSTEMS} - {s.needs for s in systems}):
        print(f"not measured: {missing} is not installed")
    figures: dict[str, object] = {}
    for title in ("family", *MOVED):
        if given.only and title not in given.only:
            continue
        with tempfile.TemporaryDirectory(dir=given.folder) as work_:
            work = Path(work_)
            source = work / "models"
            if title == "family":
                if not SHARED.is_dir():
                    print(f"not measured: {SHARED} is not there")
                    continue
                for name in FULL:
                    shutil.copytree(SHARED / "family" / name, source / name)
            else:
                generate(source, int(given.gigabytes * 1e9 / len(MOVED)), MOVED[title])
            rows = [measure(system, source, work) for system in systems]
            show(title, rows, size(source))
            figures[title] = [asdict(row) for row in rows]
    if given.out:
        given.out.write_text(json.dumps(figures, indent=2))
    return None


def _there(needs: str) -> bool:
    if needs in ("zipnn", "blockzoo"):
        import importlib.util

        return importlib.util.find_spec(needs) is not None
    return shutil.which(needs) is not None


if __name__ == "__main__":
    main()
