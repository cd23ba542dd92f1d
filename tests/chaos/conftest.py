"""Real processes that are killed, hung, slowed and cut off, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, wait

import dask_dml as dml
from dask_dml.faults.chaos import ChaosCluster
from dask_dml.faults.chaos.trial import Trial, fingerprint, run_trial
from dask_dml.faults.schedule import Schedule
from dask_dml.linear_model import LogisticRegression

N_WORKERS = 3
# How long a fit may take after its schedule is over, on a machine that is busy with more than this.
LIMIT_S = 90.0
ROWS, COLUMNS, BLOCK_ROWS = 24_000, 16, 2_000


class Arena:
    """A cluster for many trials, replaced when one of them leaves it unusable."""

    def __init__(self, folder: Any) -> None:
        rng = np.random.default_rng(7)
        self.X = rng.normal(size=(ROWS, COLUMNS))
        scores = self.X @ rng.normal(size=COLUMNS)
        self.y = (scores + rng.logistic(size=ROWS) > 0.0).astype(np.int64)
        self.store = folder / "rows.zarr"
        dml.write_dataset(self.store, self.X, self.y, chunks=(BLOCK_ROWS, COLUMNS))
        self._cluster: ChaosCluster | None = None
        self.expected = fingerprint(self.model(client="local").fit(dml.open_dataset(self.store)))

    @property
    def cluster(self) -> ChaosCluster:
        if self._cluster is None:
            self._cluster = ChaosCluster(N_WORKERS, memory_limit="700MiB")
        return self._cluster

    def close(self) -> None:
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None

    def model(self, **where: Any) -> LogisticRegression:
        return LogisticRegression(solver="lbfgs", tol=1e-10, runtime=dml.Runtime(**where))

    def lazy(self) -> tuple[da.Array, da.Array]:
        return (
            da.from_array(self.X, chunks=(BLOCK_ROWS, -1)),
            da.from_array(self.y, chunks=BLOCK_ROWS),
        )

    @contextmanager
    def fitting(self, kind: str) -> Iterator[Callable[[Client], LogisticRegression]]:
        """A fit of the same rows, which are somewhere else in each kind."""
        if kind == "persisted":
            data = dask.persist(*self.lazy())
            wait(data)
            yield lambda client: self.model(client=client).fit(*data)
        elif kind == "lazy":
            yield lambda client: self.model(client=client).fit(*self.lazy())
        else:
            dataset = dml.open_dataset(self.store)
            share = 0.0 if kind == "streamed" else 0.5
            with mock.patch("dask_dml.runtime.cluster.RESIDENT_SHARE", share):
                yield lambda client: self.model(client=client).fit(dataset)

    def trial(self, schedule: Schedule, kind: str) -> Trial:
        """Fit under a schedule; the cluster is in order before and after."""
        try:
            with self.fitting(kind) as fit:
                trial = run_trial(self.cluster, schedule, fit, self.expected, LIMIT_S)
        except BaseException:
            self.close()
            raise
        if trial.error:
            self.close()
        return trial


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    arena = Arena(tmp_path_factory.mktemp("chaos"))
    yield arena
    arena.close()
