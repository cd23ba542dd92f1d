"""Who runs it: executors, and the loop of rounds that they share."""

from dask_dml.runtime.cluster import ClusterExecutor
from dask_dml.runtime.config import Runtime
from dask_dml.runtime.core import (
    Event,
    Executor,
    FitEnded,
    FitStarted,
    Listener,
    Outcome,
    RoundEnded,
    RoundResult,
    RunSpec,
    minimise,
)
from dask_dml.runtime.local import LocalExecutor

__all__ = [
    "ClusterExecutor",
    "Event",
    "Executor",
    "FitEnded",
    "FitStarted",
    "Listener",
    "LocalExecutor",
    "Outcome",
    "RoundEnded",
    "RoundResult",
    "RunSpec",
    "Runtime",
    "minimise",
]
