"""The history of a fit as tables, gathered from its events."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from dask_dml.faults import FaultEvent
from dask_dml.runtime.core import Event, FitStarted, RoundEnded, RoundResult

HISTORY_COLUMNS = {
    "round": np.int64,
    "objective": np.float64,
    "gap": np.float64,
    "seconds": np.float64,
    "busy_s": np.float64,
    "balance": np.float64,
    "bytes": np.int64,
    "passes": np.float64,
    "workers": np.int64,
    "faults": np.int64,
    "order": np.int64,
    "n_iter": np.int64,
    "what": np.object_,
}
FAULT_COLUMNS = (
    "when", "round", "kind", "worker", "evidence", "action", "cost_s", "recomputed_blocks",
)  # fmt: skip


@dataclass
class History:
    """A listener that keeps what happened.

    Attributes
    ----------
    rows : list of dict
        One a round.
    faults : list of dict
        One an event of the workers.
    solver, why, where : str
        Which solver it was, why that one, and where it ran.
    """

    rows: list[dict[str, object]] = field(default_factory=list)
    faults: list[dict[str, object]] = field(default_factory=list)
    solver: str = ""
    why: str = ""
    where: str = ""

    def __call__(self, event: Event) -> None:
        if isinstance(event, FitStarted):
            self.solver, self.why = event.run.solver, event.run.why
            self._note(event.survey.faults, event.first_round - 1)
        elif isinstance(event, RoundEnded):
            self._note(event.result.faults, event.round)
            self.rows.append(
                {
                    "round": event.round,
                    "objective": event.objective,
                    "gap": event.gap,
                    "seconds": event.result.seconds,
                    **_load(event.result),
                    "bytes": event.result.nbytes,
                    "passes": event.passes,
                    "workers": len(event.result.busy_s),
                    "faults": len(event.result.faults),
                    "order": event.order,
                    "n_iter": event.n_iter,
                    "what": event.what,
                }
            )

    def _note(self, faults: tuple[FaultEvent, ...], number: int) -> None:
        for fault in faults:
            row = asdict(fault)
            del row["run"]
            when = pd.Timestamp(row.pop("time_s"), unit="s", tz="UTC")
            self.faults.append({"when": when, "round": number, **row})

    def frame(self) -> pd.DataFrame:
        """A row a round.

        Returns
        -------
        DataFrame
            round; objective at the point evaluated; gap, the upper bound of the relative gap at
            the best point; seconds of wall time; busy_s, the computing time of the busiest
            worker; balance, that over the mean of all workers; bytes that crossed between
            processes; passes over the full data so far, the survey included; workers; faults,
            the rows of `faults_frame` of this round; order, 2 where the Hessian was asked for;
            n_iter, the steps accepted so far; what was asked for, in words. Its ``attrs`` say which
            ``solver`` it was, ``why``, and ``where`` it ran.
        """
        columns = {
            name: pd.Series([row[name] for row in self.rows], dtype=dtype)
            for name, dtype in HISTORY_COLUMNS.items()
        }
        frame = pd.DataFrame(columns)
        frame.attrs |= {"solver": self.solver, "why": self.why, "where": self.where}
        return frame

    def faults_frame(self) -> pd.DataFrame:
        """A row an event of the workers: when, in which round (-1: before the first), kind, worker,
        evidence, action, cost in seconds, and blocks that had to be made again.
        """  # noqa: D205
        return pd.DataFrame(self.faults, columns=list(FAULT_COLUMNS))


def _load(result: RoundResult[Any]) -> dict[str, float]:
    busy = list(result.busy_s.values())
    mean = sum(busy) / len(busy)
    return {"busy_s": max(busy), "balance": max(busy) / mean if mean > 0.0 else 1.0}
