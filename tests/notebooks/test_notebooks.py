"""Every notebook runs from top to bottom in a fresh kernel, and shows what it promises."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from tests.explore.test_table import assert_works_offline

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


class _ThisPython(AsyncKernelManager):
    """Starts the kernel with the interpreter of the tests, whatever kernels are installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        start = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=start, display_name="Python 3", language="python")


def _run(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    sources = [str(ROOT), str(ROOT / "runtime"), str(ROOT / "cli")]
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*sources, *([before] if before else [])]))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_manager_class=_ThisPython,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    return notebook


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_its_views_work_offline(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = _run(path, tmp_path, monkeypatch)
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    views = [out["data"] for out in outputs if "text/html" in out.get("data", {})]
    assert len(views) >= 6, "tables and views show themselves as HTML"
    for view in views:
        assert_works_offline(view["text/html"])
        assert view["text/plain"].strip() and not view["text/plain"].startswith("<")


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert not any(cell.get("outputs") for cell in cells if cell.cell_type == "code")
