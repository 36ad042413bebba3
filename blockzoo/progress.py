"""How long work tells how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called as work goes on; the command line draws a bar from it.

    Parameters
    ----------
    what : str
        What is being worked on: a model's name.
    done, total : int
        Bytes.
    new : int
        Of the bytes done, those that had to be written since the zoo did not have them.
    """

    def __call__(self, what: str, done: int, total: int, new: int) -> None: ...


def silent(what: str, done: int, total: int, new: int) -> None:
    """Tell nobody."""
