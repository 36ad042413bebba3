"""A checkpoint folder's files: which ones there are, and names that must not be let in."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from blockzoo.errors import SourceError

_SKIPPED = frozenset({".git", ".cache", "__pycache__"})
_MAX_NAME_BYTES = 255


def check_relative_name(name: str, *, where: str) -> PurePosixPath:
    """A relative path that stays inside its folder on every system.

    Parameters
    ----------
    name : str
        With ``/`` between its components.
    where : str
        Who uses the name, for the error: ``"model.safetensors.index.json"``.

    Raises
    ------
    SourceError
        For absolute paths, ``..``, empty components, backslashes, drive letters, control
        characters, text with no UTF-8 form and components over 255 bytes.
    """
    parts = name.split("/")
    try:
        too_long = any(len(part.encode("utf-8")) > _MAX_NAME_BYTES for part in parts)
    except UnicodeEncodeError:
        too_long = True
    if (
        too_long
        or any(part in ("", ".", "..") for part in parts)
        or any(char in "\\\x7f" or char < " " for char in name)
        or parts[0][1:2] == ":"
    ):
        raise SourceError(
            f"{where} uses the file name {name[:200]!r}, which is unsafe: "
            "it could leave the folder or not be written again",
            hint="rename the file, or do not trust this checkpoint",
        )
    return PurePosixPath(name)


def list_files(root: Path) -> tuple[list[Path], list[Path]]:
    """Every file under a folder, recursively.

    Parameters
    ----------
    root : Path

    Returns
    -------
    files : list of Path
        Relative to `root`, sorted. Symlinks to files count as files (Hub caches are made of
        them).
    skipped : list of Path
        What is left out: symlinks to folders, and ``.git``, ``.cache`` and ``__pycache__``.

    Raises
    ------
    SourceError
        For an unsafe name, a symlink that leads nowhere, a device or a pipe.
    """
    files: list[Path] = []
    skipped: list[Path] = []
    for relative, mode in _walk(root, PurePosixPath()):
        (files if stat.S_ISREG(mode) else skipped).append(Path(relative))
    return sorted(files), sorted(skipped)


def _walk(root: Path, folder: PurePosixPath) -> Iterator[tuple[PurePosixPath, int]]:
    """Files with their mode, and folders that are not entered with theirs."""
    try:
        with os.scandir(root / folder) as entries:
            found = list(entries)
    except OSError as error:
        raise SourceError(f"cannot list {root / folder}: {error.strerror}") from error
    for entry in found:
        relative = folder / check_relative_name(entry.name, where=str(root / folder))
        try:
            mode = entry.stat().st_mode
        except OSError as error:
            raise SourceError(
                f"cannot read {root / relative}: {error.strerror}",
                hint="a link that leads nowhere: finish the download, or remove the link",
            ) from error
        if stat.S_ISDIR(mode):
            if entry.name in _SKIPPED or entry.is_symlink():
                yield relative, mode
            else:
                yield from _walk(root, relative)
        elif stat.S_ISREG(mode):
            yield relative, mode
        else:
            raise SourceError(
                f"{root / relative} is neither a file nor a folder",
                hint="remove it from the checkpoint's folder",
            )
