"""Reads torch's zip files (``torch.save`` since 1.6), from the map, without torch.

A zip of stored (not compressed) records: ``archive/data.pkl`` and a record for each storage,
``archive/data/0`` and so on.
"""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

from blockzoo.errors import SourceError
from blockzoo.formats.mapped import MappedFile
from blockzoo.formats.pickle_reader import MAX_PICKLE_BYTES, Refused, read_pickle, refusal
from blockzoo.formats.torch_globals import TorchPickle, named_tensors
from blockzoo.formats.torch_tensors import TorchFile

#: the zip's directory; 70 bytes a record
_MAX_DIRECTORY_BYTES = 16 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_HINT = "the file is damaged or cut short: fetch it again from its source"


def open_torch_zip(path: Path) -> TorchFile:
    """Open a torch zip file.

    Raises
    ------
    SourceError
        Where the zip is damaged, compressed or big-endian, its pickle is unsafe, or its records
        do not fit the pickle.
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
    records = _records(file)
    pickles = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise _fail(file.path, f"it has {len(pickles)} records called data.pkl, not one")
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}constants.pkl" in records:
        raise SourceError(
            f"{file.path} is a TorchScript program, not a state dict: it would run code",
            hint="save the model's state_dict() or use save_pretrained",
        )
    start, end = records.get(f"{prefix}byteorder", (0, 0))
    order = bytes(file.bytes(start, min(end, start + 16)))
    if order not in (b"", b"little"):
        raise _fail(file.path, f"its byte order is {order.decode('ascii', 'replace')!r}")
    start, end = records[pickles[0]]
    if end - start > MAX_PICKLE_BYTES:
        raise _fail(file.path, f"its data.pkl has {end - start} bytes, over {MAX_PICKLE_BYTES}")
    content = TorchPickle()
    value, _ = read_pickle(file.bytes(start, end), content.globals(), content.storage)
    named = named_tensors(value)
    starts: dict[str, int] = {}
    for key, size in content.storages.items():
        record = records.get(f"{prefix}data/{key}")
        if record is None:
            raise _fail(file.path, f"its storage {key[:50]!r} is not in it")
        if (length := record[1] - record[0]) != size:
            raise _fail(
                file.path, f"its storage {key[:50]!r} has {length} bytes, its pickle says {size}"
            )
        starts[key] = record[0]
    return TorchFile(file, content, named, starts)


def _records(file: MappedFile) -> dict[str, tuple[int, int]]:
    """Where each record's bytes lie in the file: start and end."""
    try:
        with zipfile.ZipFile(_BoundedReader(file)) as archive:
            entries = archive.infolist()
    except (
        zipfile.BadZipFile,
        struct.error,
        ValueError,
        IndexError,
        NotImplementedError,
        RuntimeError,
        OSError,
        EOFError,
        OverflowError,
    ) as error:
        raise _fail(file.path, f"its zip directory cannot be read ({str(error)[:200]})") from error
    records: dict[str, tuple[int, int]] = {}
    position = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        name = entry.filename
        label = f"record {name[:100]!r}"
        if name in records:
            raise _fail(file.path, f"{label} is there twice")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise _fail(file.path, f"{label} is compressed or encrypted, which torch never does")
        header = file.bytes(entry.header_offset, entry.header_offset + _LOCAL_HEADER.size)
        if entry.header_offset < position or len(header) < _LOCAL_HEADER.size:
            raise _fail(file.path, f"{label} lies outside the file or over another")
        magic, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        start = entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        position = start + entry.file_size
        if magic != b"PK\3\4" or entry.compress_size != entry.file_size or position > file.size:
            raise _fail(file.path, f"{label} does not lie where the directory says")
        records[name] = (start, position)
    return records


class _BoundedReader(io.RawIOBase):
    """The mapped file for :mod:`zipfile`, which reads as much as a lying directory tells it to."""

    def __init__(self, file: MappedFile) -> None:
        self._file = file
        self._position = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        if base + offset < 0:
            raise OSError("before the start of the file")
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        end = self._file.size if size is None or size < 0 else self._position + size
        data = self._file.bytes(self._position, min(end, self._file.size))
        if len(data) > _MAX_DIRECTORY_BYTES:
            raise ValueError(f"it has more than {_MAX_DIRECTORY_BYTES} bytes")
        self._position += len(data)
        return bytes(data)


def _fail(path: Path, why: str) -> SourceError:
    return SourceError(f"{path} is not a valid torch file: {why}", hint=_HINT)
