"""Tokens to text as they come, and the stop strings in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

_UNFINISHED = "�"  # what tokenizers give for bytes that do not make a character yet


class TextStream:
    """Decodes one request's tokens, a few at a time.

    Only a window of the last tokens is decoded again at each step. Text that may yet turn out
    to be the beginning of a stop string, or of a character, is held back.

    Parameters
    ----------
    decode : callable, optional
        Token ids to text without special tokens. None: there is no text.
    stops : sequence of str
    """

    def __init__(self, decode: Decode | None, stops: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stops = stops
        self._ids: list[int] = []
        self._window = 0  # where the decoded window begins
        self._read = 0  # up to where tokens have become text
        self._held = ""
        self._given: list[str] = []
        self.stopped = False

    @property
    def text(self) -> str:
        """All text given out so far."""
        return "".join(self._given)

    def push(self, token: int) -> str:
        """Take one more token; returns the text that is certain now."""
        if self._decode is None or self.stopped:
            return ""
        self._ids.append(token)
        before = self._decode(self._ids[self._window : self._read])
        after = self._decode(self._ids[self._window :])
        if len(after) <= len(before) or after.endswith(_UNFINISHED):
            return ""
        self._window, self._read = self._read, len(self._ids)
        return self._give(after[len(before) :])

    def finish(self) -> str:
        """No more tokens come; returns what was held back."""
        if self._decode is None or self.stopped:
            return ""
        before = self._decode(self._ids[self._window : self._read])
        rest = self._decode(self._ids[self._window :])[len(before) :]
        given = self._give(rest)
        if self.stopped:
            return given
        last, self._held = self._held, ""
        self._given.append(last)
        return given + last

    def _give(self, new: str) -> str:
        text = self._held + new
        found = [(text.find(stop), stop) for stop in self._stops if stop in text]
        if found:
            self.stopped = True
            self._held = ""
            text = text[: min(found)[0]]
        else:
            keep = max((_overlap(text, stop) for stop in self._stops), default=0)
            text, self._held = text[: len(text) - keep], text[len(text) - keep :]
        self._given.append(text)
        return text


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of `text` are the beginning of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
