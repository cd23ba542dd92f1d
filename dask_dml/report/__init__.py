"""What people see of a fit: its history, its progress, its pictures."""

from dask_dml.report.history import History
from dask_dml.report.progress import ProgressBar

__all__ = ["History", "ProgressBar"]
