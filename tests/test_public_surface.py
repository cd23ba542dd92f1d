"""What `import dask_dml` gives, and what it does not load."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import click
import pytest

import dask_dml
from dask_dml import errors

ROOT = Path(__file__).resolve().parent.parent

PUBLIC = {
    "Checkpoint",
    "Dataset",
    "FaultPolicy",
    "ProgressBar",
    "Runtime",
    "__version__",
    "errors",
    "ingest",
    "load_model",
    "open_dataset",
    "write_dataset",
}
# Optional, slow to load, or both: whoever needs one imports it when it is needed.
LATE = ("IPython", "bokeh", "ipywidgets", "matplotlib", "numba", "polars", "pyarrow", "s3fs")


def test_all_is_the_public_surface():
    assert set(dask_dml.__all__) == PUBLIC
    assert len(dask_dml.__all__) == len(PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC - {"__version__"}))
def test_a_public_name_is_there_and_documented(name):
    assert getattr(dask_dml, name).__doc__


def test_the_version_is_that_of_the_installed_package():
    assert dask_dml.__version__ == version("dask-dml")


def test_every_exception_is_a_dask_dml_error():
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert len(classes) > 5
    assert all(issubclass(value, errors.DaskDMLError) for value in classes)


def test_import_leaves_optional_packages_alone():
    code = f"""
import json, sys
import dask.array, distributed, sklearn
before = set(sys.modules)
import dask_dml
print(json.dumps([n for n in {LATE!r} if n in sys.modules and n not in before]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert json.loads(done.stdout) == []


def test_a_dask_command_of_another_package_does_not_wait_for_ours():
    code = """
import sys
import dask_dml.cli
heavy = ("dask.array", "distributed", "numpy", "pandas", "scipy", "sklearn", "zarr")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


def test_dask_finds_the_command():
    (entry,) = entry_points(group="dask_cli", name="dml")
    assert entry.value == "dask_dml.cli:main"
    command = entry.load()
    assert isinstance(command, click.Group)
    assert command.name == "dml"  # Dask registers it by its own name
