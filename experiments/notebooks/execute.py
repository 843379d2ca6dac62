"""Execute the notebooks and keep what they show: `make notebooks`, or this file with names of some.

Each runs from top to bottom in an empty folder. Left out is what another machine, or another day, would show otherwise:
warnings (stderr, with paths in them), times of execution, the version of Python. A test compares `sources`, a hash of
the cells, so that no notebook shows what its cells do not.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).resolve().parent


def sources(notebook: nbformat.NotebookNode) -> str:
    """A hash of the code cells."""
    code = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def small(png: str) -> str:
    """A picture in 256 colours, a third of the bytes: base64 in, base64 out."""
    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.quantize(256).save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def execute(path: Path) -> None:
    """Run a notebook and write its outputs into it.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails; the file stays as it was.
    """
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=None, resources={"metadata": {"path": folder}}).execute()
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "weakseg": {"sources": sources(notebook)}}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
            for data in (out.data for out in cell.outputs if "image/png" in out.get("data", {})):
                data["image/png"] = small(data["image/png"])
    nbformat.write(notebook, path)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    os.environ["PYTHONPATH"] = str(HERE.parents[1])
    os.environ["WEAKSEG_CACHE"] = "cache"  # in the folder, and shown without this machine's paths
    for name in sys.argv[1:] or sorted(path.stem for path in HERE.glob("*.ipynb")):
        execute(HERE / f"{name}.ipynb")
