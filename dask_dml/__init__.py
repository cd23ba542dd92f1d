"""dask_dml: models fitted on Zarr data of any size, on the Dask cluster you already have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dask_dml import data, errors
from dask_dml.linear_model import load_model
from dask_dml.report import ProgressBar
from dask_dml.runtime import Runtime
from dask_dml.version import __version__

if TYPE_CHECKING:
    from dask_dml.data import Dataset, ingest, open_dataset, write_dataset

__all__ = [
    "Dataset",
    "ProgressBar",
    "Runtime",
    "__version__",
    "errors",
    "ingest",
    "load_model",
    "open_dataset",
    "write_dataset",
]


def __getattr__(name: str) -> Any:
    # Of the room that is loaded late; see there.
    if name not in data.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(data, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
