"""Opens a file of weights, whatever its format.

The content decides, not the file's extension: a safetensors file called ``.bin`` is read as
what it is.
"""

from __future__ import annotations

from pathlib import Path

from blockzoo.formats.safetensors import SafetensorsFile
from blockzoo.formats.stored import WeightsFile


def open_weights(path: str | Path) -> WeightsFile:
    """Open a file of weights without reading its tensors' bytes.

    Raises
    ------
    SourceError
        Where the file is damaged, unsafe, or in no known format.
    """
    return SafetensorsFile(Path(path))
