"""Plain text from files, as documents and as tokens.

Whoever compares blocks by what they do, or certifies a swap, starts here. Documents are what
stands between blank lines; in a file without blank lines each line is one. They are the unit of
every resampling, so that the words of one document are never taken for independent evidence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockzoo.errors import SourceError
from blockzoo.tensors import bytes_digest

_LARGEST = 1 << 30  # bytes
_SHORT = 64  # tokens of a document that are kept before any other is left out
_BLANK = re.compile(r"\n[^\S\n]*\n\s*")
_ENDINGS = (".evaluation", ".calibration", ".test", ".valid", ".train")


@dataclass(frozen=True)
class Text:
    """A file of text.

    Parameters
    ----------
    domain : str
        The file's name without its endings: what kind of text it is.
    digest : str
        BLAKE3 of the file's bytes.
    documents : tuple of str
    path : Path
        Where it was read from.
    """

    domain: str
    digest: str
    documents: tuple[str, ...]
    path: Path

    def tokens(self, tokenizer: Any, most: int) -> list[list[int]]:
        """The documents' tokens, about `most` in all.

        Where there are more, all documents are cut to one length, since many short documents
        say more than a few long ones; only then, at `_SHORT` tokens, are the last left out.

        Parameters
        ----------
        tokenizer : transformers' tokenizer
        most : int
        """
        found: list[list[int]] = []
        least = 0  # tokens, were all documents cut as short as may be
        for document in self.documents:
            ids = list(tokenizer(document, verbose=False)["input_ids"])
            if len(ids) > 1:
                found.append(ids)
                least += min(len(ids), _SHORT)
            if least >= most:
                break
        lengths = sorted(map(len, found))
        cut = _SHORT
        for number, length in enumerate(lengths):
            # the shorter ones whole, and the rest as long as each other
            share = (most - sum(lengths[:number])) // (len(lengths) - number)
            cut = max(cut, min(share, length))
        return [ids[:cut] for ids in found]


def read_text(path: str | Path) -> Text:
    """Read a file of UTF-8 text.

    Raises
    ------
    SourceError
        Where it cannot be read, is empty, or is no text.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST:
            raise SourceError(
                f"{path} has {path.stat().st_size:,} bytes",
                hint="a few hundred kilobytes of text say as much; give a part of it",
            )
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{path} is not text: byte {error.start} is no UTF-8", hint="give plain UTF-8 text"
        ) from error
    if "\0" in content:
        raise SourceError(f"{path} is not text: it has zero bytes", hint="give plain UTF-8 text")
    documents = split(content)
    if not documents:
        raise SourceError(f"{path} is empty: there is no text to measure on")
    return Text(_domain(path), bytes_digest(data), documents, path)


def read_texts(paths: Sequence[str | Path]) -> list[Text]:
    """Read several files, each of another domain.

    Raises
    ------
    SourceError
        Where one cannot be used, or two have the same name or the same content.
    """
    found = [read_text(path) for path in paths]
    for number, text in enumerate(found):
        for other in found[:number]:
            if other.digest == text.digest:
                raise SourceError(f"{other.path} and {text.path} are the same text")
            if other.domain == text.domain:
                raise SourceError(
                    f"{other.path} and {text.path} would both be the domain {text.domain!r}",
                    hint="rename one, or put them in one file",
                )
    return found


def split(content: str) -> tuple[str, ...]:
    """A text's documents, in order."""
    content = content.replace("\r\n", "\n")
    parts = _BLANK.split(content.strip())
    if len(parts) == 1:
        parts = content.split("\n")
    return tuple(part.strip("\n") for part in parts if part.strip())


def _domain(path: Path) -> str:
    name = path.stem
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    return name
