"""dask_dml: models fitted on Zarr data of any size, on the Dask cluster you already have."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dask_dml.version import __version__

if TYPE_CHECKING:
    from dask_dml import errors
    from dask_dml.data import Dataset, ingest, open_dataset, write_dataset
    from dask_dml.faults import FaultPolicy
    from dask_dml.faults.checkpoint import Checkpoint
    from dask_dml.linear_model import load_model
    from dask_dml.report import ProgressBar
    from dask_dml.runtime import Runtime

__all__ = [
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
]

# Loaded at their first use: Dask imports the package with every command of its own.
_MODULES = {
    "Checkpoint": "faults.checkpoint",
    "Dataset": "data",
    "FaultPolicy": "faults",
    "ProgressBar": "report",
    "Runtime": "runtime",
    "ingest": "data",
    "load_model": "linear_model",
    "open_dataset": "data",
    "write_dataset": "data",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("dask_dml.errors")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"dask_dml.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
