"""Giving a model's files back, byte for byte, into a folder.

Each file is written beside its place, flushed, and moved there whole. An export that was killed
can be run again: files that are there and right are left, unfinished ones are replaced.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path, PurePosixPath

from blockzoo.errors import DamagedError, UsageError
from blockzoo.progress import Progress, silent
from blockzoo.records import Model, Part, Recipe
from blockzoo.store import durable
from blockzoo.store.objects import Objects

_PARTIAL = ".blockzoo-partial"
_CHUNK = 8 << 20  # bytes
_THREADS = min(8, (os.cpu_count() or 1) + 1)  # one more than cores: some wait for the disk


def export(
    objects: Objects,
    model: Model,
    folder: Path,
    *,
    overwrite: bool = False,
    what: str = "",
    progress: Progress = silent,
) -> list[Path]:
    """Write every original file of a model.

    Parameters
    ----------
    folder : Path
        Made where absent.
    overwrite : bool
        Replace files that are there and differ.

    Returns
    -------
    list of Path

    Raises
    ------
    UsageError
        Where a file that differs is in the way; nothing has been written then.
    DamagedError
        Where an object is missing or damaged.
    """
    targets = {recipe: folder / safe_path(recipe.path) for recipe in model.files}
    there = {recipe for recipe, path in targets.items() if path.exists()}
    right = {recipe for recipe in there if _same(objects, recipe, targets[recipe])}
    if there - right and not overwrite:
        names = ", ".join(sorted(recipe.path for recipe in there - right)[:5])
        raise UsageError(
            f"{folder} already has other files of the same names: {names}",
            hint="name another folder, or replace them with --overwrite",
        )
    done, total = 0, sum(recipe.size for recipe in model.files)
    folders = {folder}
    for recipe, path in targets.items():
        if recipe not in right:
            path.parent.mkdir(parents=True, exist_ok=True)
            folders |= {path.parent}
            partial = path.with_name(path.name + _PARTIAL)
            try:
                for size in _write(objects, recipe, partial):
                    progress(what, done := done + size, total, 0)
                if recipe.executable:
                    partial.chmod(partial.stat().st_mode | 0o111)
                durable.flush_file(partial)
                os.replace(partial, path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
        else:
            progress(what, done := done + recipe.size, total, 0)
    folder.mkdir(parents=True, exist_ok=True)
    for changed in folders:
        durable.flush_folder(changed)
    return list(targets.values())


def content(objects: Objects, part: Part) -> memoryview:
    """A part's bytes, checked.

    Raises
    ------
    DamagedError
        Where the object is missing, damaged or of another size than the recipe says.
    """
    if part.source == "bytes":
        return memoryview(part.literal)
    data = objects.tensor(part.digest)[1] if part.source == "tensor" else objects.file(part.digest)
    _check_size(part, len(data))
    return data


def _check_size(part: Part, size: int) -> None:
    if size != part.size:
        raise DamagedError(f"{part.source} {part.digest[:12]} is not of the size the recipe says")


def _write(objects: Objects, recipe: Recipe, path: Path) -> Iterator[int]:
    """Write a recipe's file, several parts at once, each where it belongs; tells their sizes."""
    with open(path, "wb") as file:
        file.truncate(recipe.size)

    def write(start: int, part: Part) -> int:
        with open(path, "r+b", buffering=0) as file:
            file.seek(start)
            for piece in _pieces(objects, part):
                while piece:
                    piece = piece[os.write(file.fileno(), piece) :]
        return part.size

    starts = accumulate((part.size for part in recipe.parts), initial=0)
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            yield from pool.map(write, starts, recipe.parts)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _pieces(objects: Objects, part: Part) -> Iterator[memoryview]:
    """A part's bytes; those of a packed tensor as they are decoded, and checked at the end."""
    if part.source != "tensor":
        yield content(objects, part)
        return
    info, pieces = objects.stream(part.digest)
    _check_size(part, info.nbytes)
    yield from pieces


def safe_path(path: str) -> PurePosixPath:
    """A recipe's path, which must stay inside the folder it is written to.

    Raises
    ------
    DamagedError
        For absolute paths, ``..``, backslashes, drive letters and the like: no ingest writes
        such a recipe.
    """
    pure = PurePosixPath(path)
    if (
        not pure.parts
        or pure.is_absolute()
        or ".." in pure.parts
        or any(c in path for c in "\\\0")
        or ":" in (path if os.name == "nt" else path[1:2])
        or pure.as_posix() != path
    ):
        raise DamagedError(f"the recipe names an unsafe path: {path!r}")
    return pure


def _same(objects: Objects, recipe: Recipe, path: Path) -> bool:
    """Whether a file holds what the recipe gives."""
    if not path.is_file() or path.stat().st_size != recipe.size:
        return False
    with open(path, "rb") as file:
        for part in recipe.parts:
            data = content(objects, part)
            for start in range(0, part.size, _CHUNK):
                chunk = data[start : start + _CHUNK]
                if file.read(len(chunk)) != chunk:
                    return False
    return True
