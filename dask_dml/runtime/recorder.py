"""Telemetry of the workers that the watcher keeps, for predictors to be fitted on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dask_dml.faults.telemetry import COLUMNS

# Telemetry is recorded so often, and so much of it is kept.
_RECORD_S = 0.5
_MOST_ROWS = 200_000


class Recorder:
    """Rows of `dask_dml.faults.telemetry.COLUMNS`, the oldest of which give way to new ones.

    Attributes
    ----------
    is_on : bool
        Whether telemetry is kept from now on; what was kept stays.
    """

    def __init__(self) -> None:
        self.is_on = False
        self._due_s = 0.0
        self._rows: deque[tuple[float, tuple[str, ...], Any]] = deque()
        self._n_rows = 0

    def is_due(self, now_s: float) -> bool:
        """Whether rows are wanted now; then not again for a while."""
        if not self.is_on or now_s < self._due_s:
            return False
        self._due_s = now_s + _RECORD_S
        return True

    def keep(
        self, workers: Sequence[str], features: npt.NDArray[Any], heard: Collection[str]
    ) -> None:
        """Keep a row of each worker that was heard.

        Parameters
        ----------
        workers : sequence of str
        features : array of shape (n_workers, n_features)
        heard : collection of str
            Those of which the telemetry is new.
        """
        kept = [i for i, worker in enumerate(workers) if worker in heard]
        if not kept:
            return
        rows = features[kept].astype(np.float32)
        self._rows.append((time.time(), tuple(workers[i] for i in kept), rows))
        self._n_rows += len(kept)
        while self._n_rows > _MOST_ROWS:
            self._n_rows -= len(self._rows.popleft()[1])

    def take(self) -> dict[str, list[Any]]:
        """Hand over what was kept, a list for each column; it is then no longer kept here."""
        columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        for time_s, workers, features in self._rows:
            columns["time_s"] += [time_s] * len(workers)
            columns["worker"] += workers
            for name, values in zip(COLUMNS[2:], features.T.tolist(), strict=True):
                columns[name] += values
        self._rows.clear()
        self._n_rows = 0
        return columns
