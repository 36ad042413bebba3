"""Every command and every line of Python in the documents runs, in order, in one folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?://|#)([^)]+)\)")


def _environment(folder: Path) -> dict[str, str]:
    """The checkout and this interpreter, as ``blockzoo`` and ``python`` on the path."""
    tools = folder / "bin"
    tools.mkdir()
    for name, module in (("blockzoo", "-m blockzoo_cli"), ("python", "")):
        script = tools / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        script.chmod(0o755)
    sources = os.pathsep.join(map(str, (ROOT, ROOT / "runtime", ROOT / "cli")))
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if name != "BLOCKZOO_ZOO"}
    return kept | {"PATH": path, "PYTHONPATH": sources}


@pytest.mark.parametrize("document", ["README.md", "docs/SERVING.md", "docs/EQUIVALENCE.md"])
def test_every_snippet_runs(document: str, tmp_path: Path) -> None:
    environment = _environment(tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    snippets = [b for b in _BLOCK.findall((ROOT / document).read_text()) if b[0] != "text"]
    shell = "\n".join(code for language, code in snippets if language == "sh")
    python = "\n".join(code for language, code in snippets if language == "python")
    assert "blockzoo demo " in shell and "blockzoo.Zoo(" in python
    # a few steps of training are enough to see the commands work
    shell = shell.replace("blockzoo demo ", "blockzoo demo --quick ")
    for command in (["bash", "-euxo", "pipefail", "-c", shell], ["python", "-c", python]):
        done = subprocess.run(
            command, cwd=work, env=environment, capture_output=True, text=True, timeout=300,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_make_has_the_targets_that_the_documents_name() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in ("README.md", "CONTRIBUTING.md"):
        named = set(re.findall(r"[$`] ?make ([\w-]+)", (ROOT / document).read_text()))
        assert {"test"} <= named <= targets, document


def test_links_lead_to_files() -> None:
    for document in (
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "docs/SERVING.md",
        "docs/EQUIVALENCE.md",
    ):
        for link in _LINK.findall((ROOT / document).read_text()):
            path = (ROOT / document).parent / link.partition("#")[0]
            assert path.exists(), f"{document}: {link}"
