"""A checkpoint as it lies in a folder: its weights, its config and its other files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from blockzoo.errors import SourceError
from blockzoo.formats.folder import check_relative_name, list_files
from blockzoo.formats.index import check_promises, other_weights, weights_to_load
from blockzoo.formats.jsonfile import read_object
from blockzoo.formats.stored import StoredTensor, WeightsFile
from blockzoo.formats.weights import open_weights


@dataclass
class Checkpoint:
    """An open checkpoint; close it, or use it as a context manager.

    Attributes
    ----------
    path : Path
        The folder; for a lone weights file, the folder that holds it.
    kind : {"model", "adapter"}
        An adapter has an ``adapter_config.json``.
    config : dict
        ``config.json`` or ``adapter_config.json``; empty where there is none.
    weights : list of WeightsFile
        The files that transformers (PEFT, for an adapter) would load.
    other_weights : list of WeightsFile
        Weights that lie beside them in another format; no part of the model, but kept.
    files : list of Path
        Every other file, relative to `path`, sorted.
    tensors : dict of str to StoredTensor
        All tensors of `weights` by name.
    skipped : list of Path
        What is left out of the folder: symlinks to folders, ``.git`` and caches.
    notes : list of str
        Sentences about what is unusual: weights that are kept only as plain bytes, folders
        that are left out.
    """

    path: Path
    kind: Literal["model", "adapter"]
    config: dict[str, Any]
    weights: list[WeightsFile] = field(default_factory=list)
    other_weights: list[WeightsFile] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    skipped: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raise SourceError where a file of weights has changed since it was opened."""
        for file in [*self.weights, *self.other_weights]:
            file.check()

    def close(self) -> None:
        """Let go of all files; bytes already handed out stay valid until they are dropped."""
        for file in [*self.weights, *self.other_weights]:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint folder, or a lone file of weights, without reading tensors' bytes.

    Parameters
    ----------
    path : str or Path
        A folder as ``save_pretrained`` writes it or as the Hub's cache holds it (symlinks to
        files are followed), or one ``.safetensors`` or torch file.

    Raises
    ------
    SourceError
        Where it is not there, incomplete, damaged or unsafe.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise SourceError(
            f"there is nothing at {path}",
            hint="give a checkpoint's folder, a .safetensors file, or a Hub id such as org/name",
        )
    check_relative_name(path.name, where=str(path.parent))
    checkpoint = Checkpoint(path.parent, "model", {})
    checkpoint.weights.append(open_weights(path))
    _gather(checkpoint)
    return checkpoint


def _open_folder(root: Path) -> Checkpoint:
    files, skipped = list_files(root)
    names = [file.as_posix() for file in files]
    present = frozenset(names)
    adapter = "adapter_config.json" in present
    config_name = "adapter_config.json" if adapter else "config.json"
    config = read_object(root / config_name, what="config") if config_name in present else {}
    chosen = weights_to_load(root, present, adapter=adapter)
    checkpoint = Checkpoint(root, "adapter" if adapter else "model", config, skipped=skipped)
    try:
        for name in chosen.names:
            checkpoint.weights.append(open_weights(root / name))
        _gather(checkpoint)
        check_promises(root, chosen, checkpoint.tensors)
        kept = set(chosen.names)
        for name in other_weights(names, kept):
            try:
                checkpoint.other_weights.append(open_weights(root / name))
                kept.add(name)
            except SourceError as error:
                checkpoint.notes.append(f"{name} is kept as plain bytes: {error.message}")
    except BaseException:
        checkpoint.close()
        raise
    checkpoint.files = [file for file in files if file.as_posix() not in kept]
    checkpoint.notes += [
        f"{folder} is a link to a folder, and is not kept"
        for folder in skipped
        if (root / folder).is_symlink()
    ]
    return checkpoint


def _gather(checkpoint: Checkpoint) -> None:
    """Fill in the tensors of all shards by name; a name in two shards is an error."""
    owner: dict[str, Path] = {}
    for file in checkpoint.weights:
        for tensor in file.tensors:
            if tensor.name in owner:
                raise SourceError(
                    f"tensor {tensor.name[:200]!r} is in both {owner[tensor.name].name} and "
                    f"{file.path.name} of {checkpoint.path}",
                    hint="shards of different saves are mixed: fetch or save them again together",
                )
            owner[tensor.name] = file.path
            checkpoint.tensors[tensor.name] = tensor
