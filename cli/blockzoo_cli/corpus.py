"""Text that every machine has: what Python's standard library says about itself.

The demo trains on it. The modules' sources are parsed with `ast`, never imported or run. Each
documented function gives one :class:`Function`; what can be asked about it makes the demo's jobs.
"""

from __future__ import annotations

import ast
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo"}
_ANSWER = 80  # characters; longer answers teach a small model little
_SUMMARY = 100
_STOPWORDS = {"a", "an", "and", "for", "if", "in", "is", "it", "of", "or", "that", "the", "this"}


@dataclass(frozen=True)
class Function:
    """A documented function.

    ``module`` is its dotted name, ``summary`` the first line of its documentation, ``signature``
    its ``def`` line; ``error`` and ``result`` are its first ``raise`` and last ``return``
    statement on one line, empty where it has none that is short.
    """

    module: str
    name: str
    summary: str
    signature: str
    error: str
    result: str

    @property
    def test(self) -> str:
        """The first line of a test of it, named after what its summary promises."""
        words = [w for w in re.findall(r"[a-z]+", self.summary.lower()) if w not in _STOPWORDS]
        return f"def test_{'_'.join(words[:6])}(self):" if words else ""

    @property
    def importing(self) -> str:
        """The statement that imports the function's module."""
        return f"import {self.module}"


@dataclass(frozen=True)
class Corpus:
    """Documentation strings, whole, and the functions among what they document."""

    texts: tuple[str, ...]
    functions: tuple[Function, ...]


def read_corpus(modules: int | None = None) -> Corpus:
    """Read the standard library's documentation, in an order that is the same each time.

    Parameters
    ----------
    modules : int, optional
        Stop after that many modules; all (about 700, in a few seconds) by default.
    """
    texts: list[str] = []
    functions: list[Function] = []
    for module, tree in _trees(modules):
        for node in ast.walk(tree):
            if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                continue
            doc = ast.get_docstring(node)
            if not doc or not doc.isascii():
                continue
            if isinstance(node, ast.FunctionDef):
                signature = _signature(node)
                texts.append(f'{signature}\n    """{doc}"""')
                function = _function(module, node, doc, signature)
                if function:
                    functions.append(function)
            else:
                texts.append(doc)
    return Corpus(tuple(texts), tuple(functions))


def _trees(limit: int | None) -> Iterator[tuple[str, ast.Module]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    found = 0
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if _SKIPPED.intersection(parts) or found == limit:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old escapes in the sources are not ours
                tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue  # some distributions ship samples that do not parse
        if ast.get_docstring(tree):
            found += 1
        yield ".".join(parts).removesuffix(".__init__"), tree


def _signature(node: ast.FunctionDef) -> str:
    return f"def {node.name}({ast.unparse(node.args)}):"


def _function(module: str, node: ast.FunctionDef, doc: str, signature: str) -> Function | None:
    summary = " ".join(inspect.cleandoc(doc).split("\n\n")[0].split())
    summary = re.split(r"(?<=[.!?])\s", summary)[0]
    if not 10 <= len(summary) <= _SUMMARY or not summary[0].isupper():
        return None
    inner = list(ast.walk(node))
    errors = [n for n in inner if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call)]
    results = [n for n in inner if isinstance(n, ast.Return) and n.value is not None]
    return Function(
        module,
        node.name,
        summary if summary[-1] in ".!?" else f"{summary}.",
        signature if len(signature) <= _ANSWER else "",
        _line(errors[0]) if errors else "",
        _line(results[-1]) if results else "",
    )


def _line(node: ast.stmt) -> str:
    line = ast.unparse(node)
    return line if len(line) <= _ANSWER and "\n" not in line and line.isascii() else ""
