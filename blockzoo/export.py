"""Giving a model's files back, byte for byte, into a folder.

Each file is written beside its place, and moved there whole when all are flushed. An export that
was killed can be run again: files that are there and right are left, unfinished ones are replaced.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from blockzoo.errors import DamagedError, UsageError
from blockzoo.progress import Progress, silent
from blockzoo.records import Model, Part, Recipe
from blockzoo.store import durable
from blockzoo.store.objects import Objects, open_objects
from blockzoo.team import Team

_PARTIAL = ".blockzoo-partial"
_CHUNK = 8 << 20  # bytes
_RUN = 4 << 20  # bytes of a file that are written in one go


def export(
    objects: Objects,
    model: Model,
    folder: Path,
    *,
    overwrite: bool = False,
    what: str = "",
    team: Team | None = None,
    progress: Progress = silent,
) -> list[Path]:
    """Write every original file of a model.

    Parameters
    ----------
    folder : Path
        Made where absent.
    overwrite : bool
        Replace files that are there and differ.
    team : Team, optional
        Kept over several exports; else there is one for this.

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
    if any(hop.kind == "stitch" for hop in model.chain):
        raise UsageError(
            f"{what or 'the model'} is stitched: no checkpoint format has layers of two models",
            hint="serve it from the zoo (`run`), or export the models that it was made of",
        )
    if team is None:
        with Team(model.nbytes) as own:
            return export(
                objects,
                model,
                folder,
                overwrite=overwrite,
                what=what,
                team=own,
                progress=progress,
            )
    targets = {recipe: folder / safe_path(recipe.path) for recipe in model.files}
    there = {recipe for recipe, path in targets.items() if path.exists()}
    right = {recipe for recipe in there if _same(objects, model, recipe, targets[recipe])}
    if there - right and not overwrite:
        names = ", ".join(sorted(recipe.path for recipe in there - right)[:5])
        raise UsageError(
            f"{folder} already has other files of the same names: {names}",
            hint="name another folder, or replace them with --overwrite",
        )
    total = sum(recipe.size for recipe in model.files)
    done = sum(recipe.size for recipe in right)
    progress(what, done, total, 0)
    partials = {
        path.with_name(path.name + _PARTIAL): path
        for recipe, path in targets.items()
        if recipe not in right
    }
    folders = {folder} | {path.parent for path in partials}
    for needed in folders:
        needed.mkdir(parents=True, exist_ok=True)
    try:
        for recipe, path in targets.items():
            if recipe not in right:
                partial = path.with_name(path.name + _PARTIAL)
                made = any(part.source == "chain" for part in recipe.parts)
                written = (
                    _write_made(objects, model, recipe, partial)
                    if made
                    else _write(objects, recipe, partial, team)
                )
                for size in written:
                    progress(what, done := done + size, total, 0)
                if recipe.executable:
                    partial.chmod(partial.stat().st_mode | 0o111)
        durable.flush_files(list(partials))
        for partial, path in partials.items():
            os.replace(partial, path)
    except BaseException:
        for partial in partials:
            partial.unlink(missing_ok=True)
        raise
    durable.flush_folders(folders)
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
    if part.source == "chain":
        raise DamagedError("a part that is made of a chain has no bytes of its own")
    data = objects.tensor(part.digest)[1] if part.source == "tensor" else objects.file(part.digest)
    _check_size(part, len(data))
    return data


def _check_size(part: Part, size: int) -> None:
    if size != part.size:
        raise DamagedError(f"{part.source} {part.digest[:12]} is not of the size the recipe says")


@dataclass(frozen=True)
class _Run:
    """Neighbouring parts of a recipe's file, and where they begin."""

    zoo: Path
    file: Path
    start: int
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)


def _write(objects: Objects, recipe: Recipe, path: Path, team: Team) -> Iterator[int]:
    """Write a recipe's file, several runs at once, each where it belongs; tells their sizes."""
    with open(path, "wb") as file:
        file.truncate(recipe.size)
    for run, _ in team.map(_write_run, _runs(objects.layout.root, recipe, path)):
        yield run.size


def _write_made(objects: Objects, model: Model, recipe: Recipe, path: Path) -> Iterator[int]:
    """Write a file some of which is made of the model's chain; tells sizes."""
    with open(path, "wb") as file:
        for piece in _all_pieces(objects, model, recipe):
            file.write(piece)
            yield len(piece)


def _all_pieces(objects: Objects, model: Model, recipe: Recipe) -> Iterator[memoryview]:
    """A file's bytes in order, whatever they come from."""
    begin = b""
    for part in recipe.parts:
        if part.source != "chain":
            data = content(objects, part)
            begin += bytes(data) if part.source != "tensor" else b""
            yield data
            continue
        from blockzoo.compact.weights import chain_bytes

        size = 0
        for piece in chain_bytes(objects, model, begin):
            size += len(piece)
            yield piece
        _check_size(part, size)


def _runs(zoo: Path, recipe: Recipe, path: Path) -> list[_Run]:
    runs: list[_Run] = []
    parts: list[Part] = []
    start = end = 0
    for part in recipe.parts:
        parts.append(part)
        end += part.size
        if end - start >= _RUN:
            runs.append(_Run(zoo, path, start, tuple(parts)))
            start, parts = end, []
    return [*runs, _Run(zoo, path, start, tuple(parts))]


def _write_run(run: _Run) -> None:
    objects = open_objects(run.zoo)
    with open(run.file, "r+b", buffering=0) as file:
        file.seek(run.start)
        for part in run.parts:
            for piece in _pieces(objects, part):
                while piece:
                    piece = piece[os.write(file.fileno(), piece) :]


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


def _same(objects: Objects, model: Model, recipe: Recipe, path: Path) -> bool:
    """Whether a file holds what the recipe gives."""
    if not path.is_file() or path.stat().st_size != recipe.size:
        return False
    with open(path, "rb") as file:
        for data in _all_pieces(objects, model, recipe):
            for start in range(0, len(data), _CHUNK):
                chunk = data[start : start + _CHUNK]
                if file.read(len(chunk)) != chunk:
                    return False
    return True
