"""dask_dml: models fitted on Zarr data of any size, on the Dask cluster you already have."""

from dask_dml import errors
from dask_dml.data.dataset import Dataset, open_dataset, write_dataset
from dask_dml.linear_model import load_model
from dask_dml.report import ProgressBar
from dask_dml.runtime import Runtime
from dask_dml.version import __version__

__all__ = [
    "Dataset",
    "ProgressBar",
    "Runtime",
    "__version__",
    "errors",
    "load_model",
    "open_dataset",
    "write_dataset",
]
