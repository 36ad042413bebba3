"""JSON that carries its own check, for the few files that are not named by their digest."""

from __future__ import annotations

import json
from typing import Any

from blockzoo.errors import DamagedError
from blockzoo.tensors import bytes_digest, canonical_json


def seal(value: dict[str, Any]) -> bytes:
    """Canonical JSON with a ``check``: the BLAKE3 of the same JSON without it."""
    return canonical_json(value | {"check": bytes_digest(canonical_json(value))})


def unseal(data: bytes) -> dict[str, Any]:
    """The value, without its check.

    Raises
    ------
    DamagedError
        Where it is not JSON, or any byte of it was changed.
    """
    try:
        value = json.loads(data)
        check = value.pop("check")
        sound = canonical_json(value | {"check": check}) == data
        sound = sound and check == bytes_digest(canonical_json(value))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"it is not sealed JSON ({error})") from error
    if not sound:
        raise DamagedError("its check does not match its content")
    return dict(value)
