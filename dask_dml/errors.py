"""The exceptions that dask_dml raises.

Every one of them is a `DaskDMLError`; where Python or scikit-learn has a built-in that people
already catch for the same mistake, the exception is that too::

    DaskDMLError
    ├── DataError (ValueError)            values or shapes that cannot be fitted
    ├── IncompatibleError (ValueError)    parts that do not go together, refused before data is read
    ├── IngestError (ValueError)          a source that cannot become a dataset
    ├── StoreError                        a Zarr store that cannot be used
    │   ├── StoreExistsError (FileExistsError)
    │   ├── StoreFormatError (ValueError)     missing, foreign, half-written or of another version
    │   │   └── StoreVersionError             of another version
    │   └── CorruptChunkError (OSError)       bytes that are not those that were written
    ├── ClusterError (RuntimeError)       a cluster that cannot run a fit
    │   ├── NoWorkersError
    │   ├── WorkerPackageError
    │   └── HolderLostError               every host of the parameter holder was lost at once
    ├── StaleRunError (RuntimeError)      a message of a run that is over, or of another one
    └── FitError (RuntimeError)           a fit that was under way and could not go on
"""

from __future__ import annotations


class DaskDMLError(Exception):
    """Base of everything that dask_dml raises."""


class DataError(DaskDMLError, ValueError):
    """Values or shapes that cannot be fitted: NaN, one class, mismatched lengths."""


class IncompatibleError(DaskDMLError, ValueError):
    """Two parts that do not go together, such as a solver and a penalty."""


class IngestError(DaskDMLError, ValueError):
    """A source that cannot become a dataset: unreadable, truncated, not numeric."""


class StoreError(DaskDMLError):
    """A Zarr store that cannot be used."""


class StoreExistsError(StoreError, FileExistsError):
    """Something already stands where a store should be written."""


class StoreFormatError(StoreError, ValueError):
    """A store that is missing, foreign, half-written or of another version."""


class StoreVersionError(StoreFormatError):
    """A store that another version wrote, and that this one does not read."""


class CorruptChunkError(StoreError, OSError):
    """A chunk whose bytes are not those that were written."""


class ClusterError(DaskDMLError, RuntimeError):
    """A cluster that cannot run a fit."""


class NoWorkersError(ClusterError):
    """A cluster without a worker."""


class WorkerPackageError(ClusterError):
    """Workers on which dask_dml is missing or of another version."""


class HolderLostError(ClusterError):
    """Every host of the parameter holder was lost: parameters have to be published again."""


class StaleRunError(DaskDMLError, RuntimeError):
    """A message of a run that is over, or of another one than it was sent to."""


class FitError(DaskDMLError, RuntimeError):
    """A fit that was under way and could not go on.

    Attributes
    ----------
    run : str
        Identifier of the run.
    round : int
        Round that failed, counted from 0.
    blocks : tuple of int
        Blocks whose contribution is missing.
    worker : str or None
        Address of the worker that failed, where it is known.
    """

    def __init__(
        self,
        message: str,
        run: str = "",
        round: int = -1,
        blocks: tuple[int, ...] = (),
        worker: str | None = None,
    ) -> None:
        super().__init__(message, run, round, blocks, worker)
        self.run = run
        self.round = round
        self.blocks = blocks
        self.worker = worker

    def __str__(self) -> str:
        return str(self.args[0])
