"""Run the notebooks in an empty folder, and keep what they print: python docs/run_notebooks.py [--check].

It needs nbclient and ipykernel. With --check the files stay as they are; an error in a cell ends it either way.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parent / "notebooks"


def run(file: Path, folder: str) -> nbformat.NotebookNode:
    """A notebook with the outputs of its cells, without the times of this run."""
    notebook = nbformat.read(file, as_version=4)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":  # warnings name paths of this machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    return notebook


if __name__ == "__main__":
    for file in sorted(NOTEBOOKS.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            notebook = run(file, folder)
        if "--check" not in sys.argv:
            nbformat.write(notebook, file)
        print(f"{file.name}: {len(notebook.cells)} cells")
