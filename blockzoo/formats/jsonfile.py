"""JSON from people we do not know: size, depth and every oddity checked before it is used."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from blockzoo.errors import SourceError
from blockzoo.formats.mapped import MappedFile

MAX_CONFIG_BYTES = 16 << 20
_MAX_DEPTH = 64
# each '{', '[' and ',' can become a Python object of some 100 bytes
_MAX_VALUES = 3_000_000


def read_object(path: Path, *, what: str, limit: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """A JSON file that holds one object.

    Parameters
    ----------
    what : str
        What the file is, for the error: ``"config"``.
    limit : int
        Bytes.

    Raises
    ------
    SourceError
        Where it is too large or not a plain JSON object: broken syntax, NaN or infinite
        numbers, text that is not Unicode, nested beyond reason.
    """
    file = MappedFile(path)
    try:
        if file.size > limit:
            raise SourceError(
                f"{path} is no {what}: it has {file.size} bytes, more than the {limit} allowed",
                hint="fetch the file again, or restore it from where the checkpoint came from",
            )
        raw = bytes(file.bytes(0, file.size))
    finally:
        file.close()
    value = parse(raw, where=f"{path} is not a valid {what}")
    if not isinstance(value, dict):
        raise SourceError(
            f"{path} is not a valid {what}: it holds a {type(value).__name__}, not an object",
            hint="fetch the file again, or restore it from where the checkpoint came from",
        )
    return value


def parse(
    raw: bytes,
    *,
    where: str,
    pairs: Callable[[list[tuple[str, Any]]], dict[str, Any]] | None = None,
) -> Any:
    """JSON bytes to a value, as strict as the standard, in bounded memory.

    Parameters
    ----------
    where : str
        Begins the error's message.
    pairs : callable, optional
        Makes a dict of an object's pairs, as in :func:`json.loads`.

    Raises
    ------
    SourceError
    """

    def no_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not a JSON number")

    def finite(text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(f"the number {text[:20]} is too large")
        return number

    try:
        if raw.count(b"{") + raw.count(b"[") + raw.count(b",") > _MAX_VALUES:
            raise ValueError(f"it has more than {_MAX_VALUES} values")
        value = json.loads(
            raw.decode("utf-8"),
            parse_constant=no_constant,
            parse_float=finite,
            object_pairs_hook=pairs,
        )
        if b"\\u" in raw or _depth_may_exceed(raw):
            _check_tree(value)
    except RecursionError as error:
        raise SourceError(f"{where}: it is nested too deep") from error
    except ValueError as error:
        raise SourceError(
            f"{where}: {error}",
            hint="fetch the file again, or restore it from where the checkpoint came from",
        ) from error
    return value


def _depth_may_exceed(raw: bytes) -> bool:
    return raw.count(b"{") + raw.count(b"[") > _MAX_DEPTH


def _check_tree(value: Any) -> None:
    """Raise ValueError for lone surrogates (no UTF-8 form) and for nesting beyond the limit."""
    pending: list[tuple[Any, int]] = [(value, 0)]
    while pending:
        item, depth = pending.pop()
        if depth > _MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {_MAX_DEPTH} levels")
        if isinstance(item, str):
            item.encode("utf-8")
        elif isinstance(item, dict):
            pending.extend((key, depth + 1) for key in item)
            pending.extend((child, depth + 1) for child in item.values())
        elif isinstance(item, list):
            pending.extend((child, depth + 1) for child in item)
