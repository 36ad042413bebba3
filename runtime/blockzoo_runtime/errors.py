"""What only serving can run into."""

from __future__ import annotations

from blockzoo.errors import BlockzooError, UsageError


class BusyError(BlockzooError):
    """Too much is waiting already: the request was not taken on, and may be sent again later."""


class NoRoomError(UsageError):
    """A model's weights do not fit beside what is in use; later they may."""
