"""The texts of a certification, held to what makes them evidence.

They must be enough, each of its own domain, and none of what the candidate was chosen on: a
swap that was picked because it does well on a text does well on that text.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blockzoo.errors import SourceError
from blockzoo.execution.texts import Text, read_text
from blockzoo.store.layout import Layout

_FEWEST_DOCUMENTS = 2
_FEWEST_TOKENS = 64
_WORDS = 13  # in a row that count as the same text, as for contamination of benchmarks
_OVERLAP = 0.2  # of the characters; more, and the two are parts of one text


@dataclass(frozen=True)
class Sample:
    """What one text gave.

    Parameters
    ----------
    text : Text
    documents : list of list of int
        Tokens.
    left_out : int
        Documents that are not measured: the calibration text has them, too, or they came before.
    """

    text: Text
    documents: list[list[int]]
    left_out: int

    def to_json(self) -> dict[str, Any]:
        return {
            "domain": self.text.domain,
            "digest": self.text.digest,
            "documents": len(self.documents),
            "tokens": sum(map(len, self.documents)),
            "left_out": self.left_out,
        }


def take_samples(
    texts: Sequence[Text], chosen_on: Sequence[Text], tokenizer: Any, most: int
) -> list[Sample]:
    """Take from texts what is to be measured, and hold it apart from what was used for choosing.

    Parameters
    ----------
    texts : sequence of Text
        Each of another domain.
    chosen_on : sequence of Text
        What candidates were chosen on, if anything.
    tokenizer : transformers' tokenizer
        The receiving model's.
    most : int
        Tokens of each text.

    Raises
    ------
    SourceError
        Where there is none, or one is too small, or mostly the same as a calibration text.
    """
    if not texts:
        raise SourceError("there is no text to certify on", hint="give --text FILE")
    seen = _Seen(chosen_on)
    samples = []
    for text in texts:
        known: list[str] = []
        fresh: dict[str, str] = {}  # by its words: one that comes again is no further evidence
        for document in text.documents:
            if seen.has(document):
                known.append(document)
            else:
                fresh.setdefault(" ".join(_words(document)), document)
        if sum(map(len, known)) > _OVERLAP * sum(map(len, text.documents)):
            raise SourceError(
                f"{len(known)} of the {len(text.documents)} documents of {text.path} are in the "
                "calibration text, too: what was used for choosing proves nothing",
                hint="certify on text that was not used for anything else",
            )
        documents = replace(text, documents=tuple(fresh.values())).tokens(tokenizer, most)
        tokens = sum(map(len, documents))
        if len(documents) < _FEWEST_DOCUMENTS or tokens < _FEWEST_TOKENS:
            raise SourceError(
                f"{text.path} is too small: {len(documents)} different documents and {tokens} "
                "tokens",
                hint="documents stand between blank lines, or one a line; give some hundreds",
            )
        samples.append(Sample(text, documents, len(text.documents) - len(fresh)))
    return samples


def remember(layout: Layout, texts: Iterable[Text]) -> None:
    """Note where texts are, so that a certification can be repeated by its id alone."""
    folder = layout.cache / "texts"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for text in texts:
            staged = folder / f".{text.digest}.{os.getpid()}"
            staged.write_text(str(text.path.resolve()), encoding="utf-8")
            os.replace(staged, folder / text.digest)
    except OSError:
        return  # a full or read-only disk: then they have to be named again


def recall(layout: Layout, entry: Mapping[str, Any], offered: Sequence[Text]) -> Text:
    """The text that a record speaks of: among those offered, or where it was before.

    Parameters
    ----------
    layout : Layout
    entry : mapping
        ``digest`` and ``domain``; it keeps that domain, whatever its file is called now.
    offered : sequence of Text

    Raises
    ------
    SourceError
        Where it is nowhere, or is not the same any more.
    """
    digest, domain = entry["digest"], entry["domain"]
    found = next((text for text in offered if text.digest == digest), None)
    note = layout.cache / "texts" / digest
    path = Path(note.read_text(encoding="utf-8")) if note.exists() else None
    if found is None and path is not None and path.exists():
        found = read_text(path)
    if found is None:
        raise SourceError(
            f"the text {domain!r} ({digest[:12]}) of that record is not here",
            hint="give it with --text FILE; it must be the very same file",
        )
    if found.digest != digest:
        raise SourceError(
            f"{path} was changed since: it is not the text {domain!r} of that record",
            hint="give the old file with --text FILE, or certify anew",
        )
    return replace(found, domain=domain)


class _Seen:
    """The words of some texts in a row, wherever their documents begin, in whatever case."""

    def __init__(self, texts: Sequence[Text]) -> None:
        self._runs: set[str] = set()
        self._whole = []
        for text in texts:
            words = [word for document in text.documents for word in _words(document)]
            self._runs.update(_runs(words))
            self._whole.append(f" {' '.join(words)} ")

    def has(self, document: str) -> bool:
        """Whether most of a document stands in them; all of it where it is short."""
        words = _words(document)
        if len(words) < _WORDS:
            return any(f" {' '.join(words)} " in whole for whole in self._whole)
        runs = set(_runs(words))
        return len(runs & self._runs) * 2 > len(runs)


def _words(document: str) -> list[str]:
    return document.casefold().split()


def _runs(words: Sequence[str]) -> Iterator[str]:
    return (" ".join(words[i : i + _WORDS]) for i in range(len(words) - _WORDS + 1))
