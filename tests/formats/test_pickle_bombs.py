"""Small pickles made to take much time or memory: refused at once."""

from __future__ import annotations

import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from blockzoo.errors import SourceError
from blockzoo.formats.weights import open_weights

_SECONDS = 2.0
_BYTES = 32 << 20


def _sizes_of_a_long_text() -> bytes:
    """A megabyte of text, turned into a ``torch.Size`` a hundred times."""
    text = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"q\x01"
    name = b"0ctorch\nSize\nq\x020"
    return b"\x80\x02]" + text + name + b"h\x02h\x01\x85Ra" * 100 + b"."


def _storage_size_of_nested_lists() -> bytes:
    """Lists that hold the one before twice, 40 deep: printing the last takes for ever."""
    lists = b"".join(b"]q%ch%cah%ca" % (i + 1, i, i) for i in range(40))
    text = b"X\x07\x00\x00\x00storage"
    kind = b"ctorch\nFloatStorage\n"
    return b"\x80\x02]q\x00" + lists + b"(" + text + kind + b"K\x00K\x00h\x28tQ."


@pytest.mark.parametrize("make", [_sizes_of_a_long_text, _storage_size_of_nested_lists])
def test_a_pickle_that_grows_without_end_is_refused_at_once(
    tmp_path: Path, make: Callable[[], bytes]
) -> None:
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", make())
    tracemalloc.start()
    began = time.monotonic()
    try:
        with pytest.raises(SourceError, match=r"torch\.Size|storage size"):
            open_weights(path)
        assert tracemalloc.get_traced_memory()[1] < _BYTES
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < _SECONDS
