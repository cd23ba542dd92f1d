"""Fit the predictor of losses on records of workers, and say how good it is.

Records come from chaos runs (`dask_dml.faults.chaos.recording`) or from a site's own cluster::

    python -m dask_dml.faults.chaos.recording runs/ --runs 40
    python -m dask_dml.faults.training runs/*.csv.gz --out predictor.json
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import click
import numpy as np
import pandas as pd

from dask_dml.errors import DataError
from dask_dml.faults.policy import FaultPolicy
from dask_dml.faults.prediction import HORIZON_S, Array, Predictor, expand
from dask_dml.faults.telemetry import COLUMNS, PREDICTOR_FEATURES
from dask_dml.linear_model import LogisticRegression

# A worker that was retired: nobody knows whether it would have been lost.
LEFT = "left"
# Of the events of `faults_`: those that are losses, and those after which nobody knows.
_LOSSES = ("worker-lost", "worker-evicted")
_DEPARTURES = ("worker-left", "worker-draining")
# A strong penalty: the rows of one worker are much alike, so that records of thousands of rows hold
# some dozens of losses, and what went along with those by accident must not weigh.
PENALTY_C = 0.01
# Of each input, the range between these quantiles is what the model sees.
RANGE = (0.002, 0.998)
# Heartbeats further apart than this do not count as time that was watched.
_LONGEST_GAP_S = 5.0
# As in the verdicts: a worker is drained when so many judgements in a row, so far apart, say so.
STRIKES = 2
STRIKE_S = 0.5


@dataclass(frozen=True)
class Records:
    """What workers said of themselves, and which of them were lost.

    Attributes
    ----------
    telemetry : DataFrame
        Columns ``run`` and `telemetry.COLUMNS`, a row a heartbeat.
    losses : DataFrame
        Columns ``run``, ``time_s``, ``worker``, ``kind``: a row a worker that is gone. The kind
        "left" is that of one that was retired; any other is a loss.
    """

    telemetry: pd.DataFrame
    losses: pd.DataFrame

    @classmethod
    def of(
        cls, rows: Iterable[Sequence[Any]], losses: Iterable[Sequence[Any]], run: str = ""
    ) -> Self:
        """From plain rows.

        Parameters
        ----------
        rows : iterable of sequence
            (time_s, worker, features ..., jitter), as in `telemetry.COLUMNS`.
        losses : iterable of sequence
            (time_s, worker, kind).
        run : str
            Name of the run; workers of different runs are different ones.
        """
        telemetry = pd.DataFrame(list(rows), columns=list(COLUMNS))
        lost = pd.DataFrame(list(losses), columns=["time_s", "worker", "kind"])
        for frame in (telemetry, lost):
            frame["time_s"] = frame["time_s"].astype(float)
            frame["worker"] = frame["worker"].astype(str)
            frame.insert(0, "run", run)
        return cls(telemetry, lost)

    @classmethod
    def of_events(
        cls, columns: Mapping[str, Sequence[Any]], events: pd.DataFrame, run: str = ""
    ) -> Self:
        """From what the scheduler's plugin kept and the events that it published.

        Parameters
        ----------
        columns : mapping
            Of `telemetry.COLUMNS`, as the plugin's ``dml_records`` gives them.
        events : DataFrame
            With the columns ``time_s``, ``kind`` and ``worker`` of `FaultEvent`.
        run : str
            Name of the run.
        """
        kinds = dict.fromkeys(_LOSSES, "lost") | dict.fromkeys(_DEPARTURES, LEFT)
        told = events[events["kind"].isin(list(kinds))]
        losses = zip(told["time_s"], told["worker"], told["kind"].map(kinds), strict=True)
        return cls.of(zip(*(columns[name] for name in COLUMNS), strict=True), losses, run)

    @classmethod
    def joined(cls, parts: Iterable[Records]) -> Self:
        """Several runs as one."""
        parts = list(parts)
        return cls(
            pd.concat([part.telemetry for part in parts], ignore_index=True),
            pd.concat([part.losses for part in parts], ignore_index=True),
        )

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """From a file that `write` made.

        Raises
        ------
        DataError
            If the file has other columns.
        """
        frame = pd.read_csv(path, dtype={"run": str, "worker": str, "loss": str})
        expected = ["run", *COLUMNS, "loss"]
        if list(frame.columns) != expected:
            raise DataError(
                f"{path} must be a file of records, with the columns {', '.join(expected)}; it has "
                f"{', '.join(frame.columns)}"
            )
        is_loss = frame["loss"].notna()
        losses = frame.loc[is_loss, ["run", "time_s", "worker", "loss"]]
        return cls(
            frame.loc[~is_loss].drop(columns="loss").reset_index(drop=True),
            losses.rename(columns={"loss": "kind"}).reset_index(drop=True),
        )

    def write(self, path: str | Path) -> None:
        """As CSV, compressed where the name ends in ``.gz``; a loss is a row without features."""
        losses = self.losses.rename(columns={"kind": "loss"})
        frame = pd.concat([self.telemetry, losses], ignore_index=True)
        frame[["run", *COLUMNS, "loss"]].to_csv(path, index=False, float_format="%.17g")

    def runs(self) -> list[str]:
        """Names of the runs, sorted."""
        return sorted(self.telemetry["run"].unique())

    def of_runs(self, runs: Iterable[str]) -> Records:
        """The records of some runs."""
        chosen = list(runs)
        return Records(
            self.telemetry[self.telemetry["run"].isin(chosen)],
            self.losses[self.losses["run"].isin(chosen)],
        )

    def train(self) -> Predictor:
        """`train` on these records; what `FaultPolicy.retrained` calls."""
        return train(self)


def outlook(records: Records) -> pd.DataFrame:
    """What became of the worker after each row of telemetry.

    Returns
    -------
    DataFrame
        The telemetry, sorted by time, with the columns ``gone_s`` (when the worker was lost or
        retired; inf for never), ``left_s`` (seconds to its loss; inf for none), ``kind`` (of the
        loss, or "") and ``is_known`` (False within `HORIZON_S` of the end of the run, or of the
        worker's retirement, unless it was lost).
    """
    telemetry = records.telemetry.sort_values("time_s", kind="stable")
    losses = records.losses.sort_values("time_s", kind="stable").assign(gone_s=lambda f: f.time_s)
    frame = pd.merge_asof(telemetry, losses, on="time_s", by=["run", "worker"], direction="forward")
    frame["gone_s"] = frame["gone_s"].fillna(math.inf)
    frame["left_s"] = frame["gone_s"] - frame["time_s"]
    frame["kind"] = frame["kind"].fillna("")
    to_end_s = frame.groupby("run")["time_s"].transform("max") - frame["time_s"]
    is_left = frame["kind"] == LEFT
    is_lost = (frame["kind"] != "") & ~is_left
    frame["is_known"] = np.where(
        is_lost, True, np.where(is_left, frame["left_s"], to_end_s) > HORIZON_S
    )
    frame["left_s"] = frame["left_s"].where(is_lost, math.inf)
    frame["kind"] = frame["kind"].where(is_lost, "")
    return frame


def train(records: Records) -> Predictor:
    """Fit a predictor of the loss of a worker within the next `HORIZON_S` seconds.

    Parameters
    ----------
    records : Records

    Returns
    -------
    Predictor
        Logistic regression over `prediction.INPUTS`, standardised, with `C` = `PENALTY_C`.

    Raises
    ------
    DataError
        If the records hold no loss, or nothing else.
    """
    rows = outlook(records)
    rows = rows[rows["is_known"]]
    X = rows[list(PREDICTOR_FEATURES)].to_numpy(dtype=np.float64)
    is_finite = np.isfinite(X).all(axis=1)
    y = (rows["left_s"].to_numpy() <= HORIZON_S)[is_finite]
    if not (y.any() and not y.all()):
        raise DataError(
            f"records to train on must hold rows within {HORIZON_S:g} s of a loss and others; they "
            f"hold {int(y.sum())} and {int((~y).sum())}"
        )
    inputs = expand(X[is_finite])
    lows, highs = np.quantile(inputs, RANGE, axis=0)
    inputs = np.clip(inputs, lows, highs)
    means = inputs.mean(axis=0)
    deviations = inputs.std(axis=0)
    # A feature that never changed (swap on a machine without) tells nothing: it stays out.
    scales = np.where(deviations > 1e-12, deviations, 1.0)
    model = LogisticRegression(C=PENALTY_C).fit((inputs - means) / scales, y)
    return Predictor(
        means=tuple(means.tolist()),
        scales=tuple(scales.tolist()),
        coefficients=tuple(np.ravel(model.coef_).tolist()),
        intercept=float(np.ravel(model.intercept_)[0]),
        lows=tuple(lows.tolist()),
        highs=tuple(highs.tolist()),
    )


@dataclass(frozen=True)
class Evaluation:
    """How a predictor does, judged as the verdicts judge: by drains, not by rows.

    Attributes
    ----------
    threshold : float
    worker_hours : float
        Time that was watched.
    n_losses : int
    n_drains : int
        Workers that would have been drained, those of unknown outcome left out.
    n_false : int
        Of these, workers that were not lost within `HORIZON_S`.
    n_unknown : int
        Drains so near to the end of the record that nobody knows.
    precision : float
        Share of the drained workers that were lost within `HORIZON_S`; nan for no drain.
    recall : float
        Share of the losses that a drain within `HORIZON_S` came before; nan for no loss.
    recall_by_kind : dict
        Kind to (recall, number of losses).
    false_per_worker_hour : float
    lead_s : tuple of float
        Quartiles of the seconds between a drain and the loss.
    """

    threshold: float
    worker_hours: float
    n_losses: int
    n_drains: int
    n_false: int
    n_unknown: int
    precision: float
    recall: float
    recall_by_kind: dict[str, tuple[float, int]]
    false_per_worker_hour: float
    lead_s: tuple[float, ...]


def evaluate(
    predictor: Predictor,
    records: Records,
    threshold: float = FaultPolicy.loss_probability,
) -> Evaluation:
    """Judge a predictor on records, which should not be those it was fitted on.

    Parameters
    ----------
    predictor : Predictor
    records : Records
    threshold : float
        Probability from which a worker is drained: `FaultPolicy.loss_probability`.
    """
    rows = outlook(records)
    X = rows[list(PREDICTOR_FEATURES)].to_numpy(dtype=np.float64)
    rows["is_high"] = predictor.probabilities(X) >= threshold
    watched_s = 0.0
    losses: list[str] = []
    leads: list[tuple[str, float]] = []
    n_false = n_unknown = 0
    # A worker that comes back under the same address lives another life.
    for _, life in rows.groupby(["run", "worker", "gone_s"], sort=False):
        times_s = life["time_s"].to_numpy()
        watched_s += float(np.minimum(np.diff(times_s), _LONGEST_GAP_S).sum())
        losses += [kind for kind in life["kind"].head(1) if kind]
        at = _drained_at(times_s, life["is_high"].to_numpy())
        if at is None:
            continue
        drained = life.iloc[at]
        if not drained["is_known"]:
            n_unknown += 1
        elif drained["left_s"] <= HORIZON_S:
            leads.append((drained["kind"], float(drained["left_s"])))
        else:
            n_false += 1
    hours = watched_s / 3600.0
    n_of_kind = Counter(losses)
    n_caught = Counter(kind for kind, _ in leads)
    leads_s = pd.Series([lead_s for _, lead_s in leads], dtype=float)
    return Evaluation(
        threshold=threshold,
        worker_hours=hours,
        n_losses=len(losses),
        n_drains=len(leads) + n_false,
        n_false=n_false,
        n_unknown=n_unknown,
        precision=_share(len(leads), len(leads) + n_false),
        recall=_share(len(leads), len(losses)),
        recall_by_kind={
            kind: (_share(n_caught[kind], n), n) for kind, n in sorted(n_of_kind.items())
        },
        false_per_worker_hour=_share(n_false, hours),
        lead_s=tuple(leads_s.quantile([0.25, 0.5, 0.75]).tolist()) if leads else (),
    )


def _drained_at(times_s: Array, is_high: Array) -> int | None:
    """Index of the row at which the verdict would be to drain."""
    strikes = 0
    judged_s = -math.inf
    for at, (time_s, is_bad) in enumerate(zip(times_s, is_high, strict=True)):
        if time_s - judged_s < 0.9 * STRIKE_S:
            continue
        judged_s = time_s
        strikes = strikes + 1 if is_bad else 0
        if strikes >= STRIKES:
            return at
    return None


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def train_and_judge(
    records: Records, thresholds: Sequence[float], held_out_every: int = 2
) -> Predictor:
    """Fit to some runs and judge on the others.

    Parameters
    ----------
    records : Records
    thresholds : sequence of float
        At which to judge.
    held_out_every : int
        Of the runs in the order of their names, every so manieth is held out, the first included.

    Returns
    -------
    Predictor
        Fitted to the other runs; its card has the figures of those that were held out.

    Raises
    ------
    DataError
        If there are not two runs at least.
    """
    runs = records.runs()
    held_out = runs[::held_out_every]
    fitted = [run for run in runs if run not in held_out]
    if not fitted:
        raise DataError(
            f"records to fit and judge a predictor must hold two runs at least, they hold {runs}"
        )
    predictor = train(records.of_runs(fitted))
    judged = records.of_runs(held_out)
    card = {
        "fitted_runs": len(fitted),
        "fitted_losses": evaluate(predictor, records.of_runs(fitted)).n_losses,
        "held_out_runs": len(held_out),
        "held_out": [
            _without_nan(asdict(evaluate(predictor, judged, threshold))) for threshold in thresholds
        ],
    }
    return replace(predictor, card=card)


def _without_nan(value: Any) -> Any:
    """The same with None in place of what is not a number: JSON has no name for it."""
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--out", type=click.Path(dir_okay=False), help="File for the fitted predictor.")
@click.option(
    "--held-out-every", type=click.IntRange(2), default=2, show_default=True,
    help="Every so manieth run is held out.",
)  # fmt: skip
def main(files: tuple[str, ...], out: str | None, held_out_every: int) -> None:
    """Fit a predictor of losses to records of workers; its figures on other runs go to stdout."""
    records = Records.joined(Records.read(file) for file in files)
    thresholds = (0.5, 0.7, 0.8, FaultPolicy.loss_probability, 0.95)
    predictor = train_and_judge(records, thresholds, held_out_every)
    click.echo(json.dumps(predictor.card, indent=1))
    if out is not None:
        Path(out).write_text(predictor.to_json(), encoding="utf-8")


if __name__ == "__main__":
    main()
