"""Datasets: Zarr on disk, dask arrays in memory."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dask_dml.data.dataset import Dataset, open_dataset
    from dask_dml.data.ingestion import ingest
    from dask_dml.data.layout import BlockGrid
    from dask_dml.data.writing import write_dataset

__all__ = ["BlockGrid", "Dataset", "ingest", "open_dataset", "write_dataset"]

# Zarr takes longer to import than all of the package: it is loaded with the first use of a store.
_MODULES = {
    "BlockGrid": "layout",
    "Dataset": "dataset",
    "ingest": "ingestion",
    "open_dataset": "dataset",
    "write_dataset": "writing",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
