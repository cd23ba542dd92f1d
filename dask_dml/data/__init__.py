"""Datasets: Zarr on disk, dask arrays in memory."""

from __future__ import annotations

from dask_dml.data.dataset import Dataset, open_dataset, write_dataset
from dask_dml.data.ingest import ingest
from dask_dml.data.layout import BlockGrid

__all__ = ["BlockGrid", "Dataset", "ingest", "open_dataset", "write_dataset"]
