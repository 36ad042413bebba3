"""Regular expressions from people we do not know: which ones may be tried at all.

Python's ``re`` tries every way in which repeats can share a text out. One repeat inside another,
or many in a row, make that take longer than anyone lives, and it cannot be interrupted.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

_MOST_STEPS = 20_000_000  # about a second
_MOST_OPTIONAL = 12  # in one expression: the steps double with each
_LONGEST = 2000  # characters


def may_take_forever(pattern: str, length: int) -> bool:
    """Whether trying a regular expression on text of a length could take more than a moment.

    Raises
    ------
    re.error
        Where it is none.
    """
    count = _count(pattern)
    return count is None or math.comb(length + count, count) > _MOST_STEPS


@functools.lru_cache(maxsize=256)
def _count(pattern: str) -> int | None:
    """How many repeats stand in a row; None where they cannot be tried at all."""
    if len(pattern) > _LONGEST:
        return None
    re.compile(pattern)
    try:
        from re import _parser as parser  # type: ignore[attr-defined]
    except ImportError:  # a Python that keeps it elsewhere
        return None
    found = list(_repeats(parser.parse(pattern), within=False))
    count = sum(most > 1 for most, _ in found)
    if any(nested for _, nested in found) or len(found) - count > _MOST_OPTIONAL:
        return None
    return count


def _repeats(tree: Iterable[Any], *, within: bool) -> Iterator[tuple[int, bool]]:
    """Each repeat's upper bound, and whether it makes the steps explode: it, or a choice, stands
    in another repeat.
    """
    for operation, argument in tree:
        kind = str(operation)
        if kind in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            least, most, body = argument
            if least != most:
                yield int(most), within
            yield from _repeats(body, within=within or int(most) > 1)
        elif kind == "BRANCH":
            if within:
                yield 1, True
            for body in argument[1]:
                yield from _repeats(body, within=within)
        else:
            parts = argument if isinstance(argument, (list, tuple)) else [argument]
            for part in parts:
                if hasattr(part, "getwidth"):
                    yield from _repeats(part, within=within)
