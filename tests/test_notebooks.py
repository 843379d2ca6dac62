"""The notebooks run from top to bottom, with few steps, wherever they are started."""

import ast
import base64
import io
import re
import runpy

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from conftest import ROOT

FOLDER = ROOT / "experiments" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
sources = runpy.run_path(str(FOLDER / "execute.py"))["sources"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_short_and_show_what_their_cells_do(path):
    """Outputs of the cells as they are (else: `make notebooks`), the same on every machine."""
    notebook = nbformat.read(path, as_version=4)
    assert len(notebook.cells) < 12
    assert notebook.cells[0].cell_type == "markdown"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        ast.parse(cell.source)
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    assert notebook.metadata.weakseg.sources == sources(notebook), "cells have changed: make notebooks"
    assert notebook.metadata.keys() == {"kernelspec", "weakseg"}
    assert not any(cell.metadata for cell in notebook.cells)
    outputs = [out for cell in code for out in cell.outputs]
    assert {out.output_type for out in outputs} <= {"stream", "display_data", "execute_result"}
    assert "stderr" not in {out.get("name") for out in outputs}
    said = [out.get("text", "") + out.get("data", {}).get("text/plain", "") for out in outputs]
    # Paths, addresses, times.
    noise = re.compile(r"(?<![\w.])/\w+/|[A-Z]:\\|://|\d s\b|\d min\b|images/s|it/s|\d\d:\d\d")
    assert not [text for text in said if noise.search(text)]
    pictures = [out.data["image/png"] for out in outputs if "image/png" in out.get("data", {})]
    assert pictures
    assert all(Image.open(io.BytesIO(base64.b64decode(one))).width <= 1600 for one in pictures)
    assert path.stat().st_size < 400_000


def execute(path, folder, monkeypatch):
    monkeypatch.setenv("WEAKSEG_NOTEBOOK_STEPS", "2")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    assert any("image/png" in out.get("data", {}) for out in outputs), "no picture is shown"


def test_the_quick_start_runs(tmp_path, monkeypatch):
    execute(ROOT / "experiments" / "notebooks" / "quick_start.ipynb", tmp_path, monkeypatch)
    assert (tmp_path / "runs" / "notebook" / "TV" / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem != "quick_start"], ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path, monkeypatch):
    execute(path, tmp_path, monkeypatch)
