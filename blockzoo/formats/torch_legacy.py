"""Reads torch's older files (``torch.save`` before 1.6): pickles, then storages, in one run.

Four pickles (a magic number, the protocol's version, facts about the machine, the value), a
fifth with the storages' keys in order, then each storage: 8 bytes for its number of elements,
and its bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blockzoo.errors import SourceError
from blockzoo.formats.mapped import MappedFile
from blockzoo.formats.pickle_reader import MAX_PICKLE_BYTES, Refused, read_pickle, refusal
from blockzoo.formats.torch_globals import TorchPickle, named_tensors
from blockzoo.formats.torch_tensors import TorchFile
from blockzoo.tensors import DTYPE_BITS

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_PREAMBLE_BYTES = 1 << 16


def open_torch_legacy(path: Path) -> TorchFile:
    """Open a torch file of the older kind.

    Raises
    ------
    SourceError
        Where it is none, is damaged or big-endian, or its pickle is unsafe.
    """
    file = MappedFile(path)
    try:
        return _open(file)
    except Refused as error:
        file.close()
        raise refusal(path, error) from error
    except BaseException:
        file.close()
        raise


def _open(file: MappedFile) -> TorchFile:
    content = TorchPickle()
    position = 0

    def following(limit: int) -> Any:
        nonlocal position
        data = file.bytes(position, file.size)
        value, used = read_pickle(data, content.globals(), content.storage, limit=limit)
        position += used
        return value

    magic = following(_PREAMBLE_BYTES)
    if type(magic) is not int or magic != _MAGIC:
        raise Refused("it is a pickle, but not one that torch.save wrote")
    protocol = following(_PREAMBLE_BYTES)
    if type(protocol) is not int or protocol != _PROTOCOL:
        raise Refused(f"it is in a version of torch's format that is not {_PROTOCOL}")
    machine = following(_PREAMBLE_BYTES)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise Refused("it was written on a big-endian machine")
    named = named_tensors(following(MAX_PICKLE_BYTES))
    keys = following(MAX_PICKLE_BYTES)
    starts = _storages(file, position, keys, content)
    return TorchFile(file, content, named, starts)


def _storages(file: MappedFile, position: int, keys: Any, content: TorchPickle) -> dict[str, int]:
    """Where each storage's bytes begin."""
    if not isinstance(keys, list) or not all(isinstance(key, str | int) for key in keys):
        raise Refused("it has no list of its storages")
    starts: dict[str, int] = {}
    for key in map(str, keys):
        if key not in content.storages or key in starts:
            raise Refused(f"its list of storages has {key[:50]!r} twice or for nothing")
        elements = int.from_bytes(file.bytes(position, position + 8), "little", signed=True)
        size = content.storages[key]
        if elements * (DTYPE_BITS[content.dtypes[key]] // 8) != size:
            raise Refused(f"its storage {key[:50]!r} is not as long as its pickle says")
        starts[key] = position + 8
        position += 8 + size
        if position > file.size:
            raise SourceError(
                f"{file.path} is truncated: storage {key[:50]!r} ends at byte {position}, "
                f"the file at {file.size}",
                hint="the download or copy was cut short: fetch the file again",
            )
    missing = [key for key in content.storages if key not in starts]
    if missing:
        raise Refused(f"its storage {missing[0][:50]!r} is not in it")
    return starts
