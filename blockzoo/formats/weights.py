"""Opens a file of weights in whatever format: the content decides, not the file's extension.

A new format is a reader in a file of its own and a line in :func:`open_weights`.
"""

from __future__ import annotations

from pathlib import Path

from blockzoo.errors import SourceError
from blockzoo.formats.mapped import MappedFile
from blockzoo.formats.safetensors import SafetensorsFile
from blockzoo.formats.stored import WeightsFile
from blockzoo.formats.torch_legacy import open_torch_legacy
from blockzoo.formats.torch_zip import open_torch_zip

_TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_LFS_POINTER = b"version https://git-lfs"


def open_weights(path: str | Path) -> WeightsFile:
    """Open a file of weights without reading its tensors' bytes.

    Raises
    ------
    SourceError
        Where the file is damaged, unsafe, or in no known format.
    """
    path = Path(path)
    file = MappedFile(path)
    head = bytes(file.bytes(0, min(file.size, len(_LFS_POINTER))))
    file.close()
    if head == _LFS_POINTER:
        raise SourceError(
            f"{path} is a Git LFS pointer, not the weights themselves",
            hint="run `git lfs pull` in that folder, or fetch the checkpoint with `hf download`",
        )
    if path.suffix == ".safetensors" or head[6:9] == b"\0\0{":
        return SafetensorsFile(path)
    if head[:4] == b"PK\3\4":
        return open_torch_zip(path)
    if head[:1] == b"\x80" or path.suffix in _TORCH_SUFFIXES:
        return open_torch_legacy(path)
    raise SourceError(
        f"{path} is in no format that blockzoo reads (safetensors, torch)",
        hint="convert it with transformers' save_pretrained",
    )
