"""The errors a user can meet: what happened, why, what to do, and the exit code.

Every error that blockzoo raises on purpose derives from :class:`BlockzooError`; the command
line prints its message and hint and leaves with its ``exit_code``.
"""

from __future__ import annotations


class BlockzooError(Exception):
    """Something went wrong that the user can understand and usually mend.

    Parameters
    ----------
    message : str
        What happened and why, in one or two sentences.
    hint : str, optional
        What to do next, most often a command.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(BlockzooError):
    """The request itself is off: an unknown name, a bad value, options that exclude each other."""

    exit_code = 2


class NotFoundError(BlockzooError):
    """No model, block or file of that name."""


class SourceError(BlockzooError):
    """A checkpoint cannot be taken in: truncated, lying, incomplete or unsafe."""


class SomeSourcesFailed(BlockzooError):
    """Of several sources, some were ingested and some were not."""

    exit_code = 3


class BaseMissingError(SourceError):
    """An adapter's base model is not in the zoo."""


class UnservableError(BlockzooError):
    """A model is kept, but cannot be run exactly; the message names what stands in the way."""


class NoZooError(BlockzooError):
    """There is no zoo at that path."""

    exit_code = 10


class LockedError(BlockzooError):
    """Somebody else is at work on the same thing."""

    exit_code = 11


class DamagedError(BlockzooError):
    """An object is missing or does not match its digest."""

    exit_code = 12


class ZooVersionError(BlockzooError):
    """The zoo was written by a newer blockzoo than this one."""
