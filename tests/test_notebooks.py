"""The notebooks run from top to bottom, with few steps, wherever they are started."""

import ast

import nbformat
import pytest
from nbclient import NotebookClient

from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_short_and_come_without_outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    assert len(cells) < 12
    assert cells[0].cell_type == "markdown"
    for cell in (cell for cell in cells if cell.cell_type == "code"):
        ast.parse(cell.source)
        assert not cell.outputs
        assert cell.execution_count is None


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
