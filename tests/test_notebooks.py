"""Every notebook runs from top to bottom, and is kept with the outputs of such a run."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
PATHS = re.compile(r"/(?:home|root|Users|private|var|work|opt)/[\w.-]+")


def read(name):
    return nbformat.read(FOLDER / name, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    assert "01_first_fit.ipynb" in NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_in_any_folder(name, tmp_path, monkeypatch):
    # What a kernel keeps for itself stays out of the home folder.
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    notebook = read(name)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources=resources).execute()
    assert list(folder.iterdir()) == []
    shown = [o.get("data", {}).get("text/plain") for c in code_cells(notebook) for o in c.outputs]
    assert "False" not in shown  # a cell that compares says so


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_kept_with_its_outputs(name):
    notebook = read(name)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    kinds = {output.output_type for output in outputs}
    assert "error" not in kinds
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_names_no_machine(name):
    for cell in code_cells(read(name)):
        found = PATHS.findall(cell.source + str(cell.outputs))
        assert found == []
