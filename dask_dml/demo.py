"""The demo: flights of New York, two workers, one of them killed in mid-fit."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing import resource_tracker
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import sklearn
from distributed import Client, LocalCluster
from numpy.typing import NDArray
from sklearn import linear_model as sklearn_linear_model

from dask_dml.datasets import flights
from dask_dml.linear_model import LogisticRegression
from dask_dml.objective.blas import blas_environment
from dask_dml.report.metrics import ClassificationMetrics
from dask_dml.report.plots import plot_history, plot_roc, require_matplotlib
from dask_dml.runtime import Event, RoundEnded, Runtime

if TYPE_CHECKING:
    import pandas as pd

PICTURE = "flights.png"
MODEL = "model.zarr"
C = 1.0
KILL_AFTER_ROUND = 1

Array = NDArray[np.float64]
Say = Callable[[str], object]


@dataclass(frozen=True)
class Fit:
    """What one fit took, and what it reached."""

    objective: float
    gap: float | None
    rounds: int
    passes: float
    seconds: float


@dataclass(frozen=True)
class Fault:
    """The worker that was killed, and what that cost.

    Attributes
    ----------
    worker, pid
        Address and process id of the worker that got SIGKILL.
    round : int
        In which round the loss was noticed, counted from 0.
    evidence, action : str
        How it was noticed, and what was done.
    cost_s : float
        By how much that round took longer than the median of the rounds before it.
    total_cost_s : float
        By how much the fit took longer than the undisturbed one.
    recomputed_blocks : int
        Blocks that had to be made again.
    joined_round : int or None
        In which round a new worker was given blocks.
    """

    worker: str
    pid: int
    round: int
    evidence: str
    action: str
    cost_s: float
    total_cost_s: float
    recomputed_blocks: int
    joined_round: int | None


@dataclass(frozen=True)
class Peer:
    """scikit-learn's fit on the same rows.

    Attributes
    ----------
    version, solver : str
    objective : float
        By the same function as `Result.objective`.
    seconds : float
    largest_difference : float
        Of a coefficient, over the largest coefficient.
    """

    version: str
    solver: str
    objective: float
    seconds: float
    largest_difference: float


@dataclass(frozen=True)
class Result:
    """What the demo found.

    Attributes
    ----------
    data : flights.Report
    n_columns, n_blocks : int
    held_out : dict of str to float
        n_rows, log_loss, accuracy and roc_auc on the held-out days.
    constant : dict of str to float
        log_loss and accuracy of the model that knows only the share of late flights.
    fit, undisturbed : Fit
        With the fault, and without.
    fault : Fault or None
        None if the fit ended before the worker was to be killed.
    n_coefficients, n_same_bits : int
        Of the two fits, the intercept included.
    objective : float
        At the coefficients of the fit, in float64 in this process.
    peer : Peer
    files : tuple of str
        Left behind.
    """

    data: flights.Report
    n_columns: int
    n_blocks: int
    held_out: dict[str, float]
    constant: dict[str, float]
    fit: Fit
    undisturbed: Fit
    fault: Fault | None
    n_coefficients: int
    n_same_bits: int
    objective: float
    peer: Peer
    files: tuple[str, ...]


@dataclass
class KillWorker:
    """A listener that kills a process after a round, with SIGKILL.

    Parameters
    ----------
    pid : int
    after_round : int
        Counted from 0.
    """

    pid: int
    after_round: int
    killed: bool = field(default=False, init=False)

    def __call__(self, event: Event) -> None:
        if isinstance(event, RoundEnded) and event.round == self.after_round:
            os.kill(self.pid, signal.SIGKILL)
            self.killed = True


def run(directory: str | os.PathLike[str], days: int | None, say: Say) -> Result:
    """Run the demo.

    Parameters
    ----------
    directory : path
        Gets the datasets, the recipe's report, the model and the picture; what an earlier demo
        left there is replaced.
    days : int or None
        Use the first days of the year only.
    say : callable
        Is called with a line of progress.

    Returns
    -------
    Result

    Raises
    ------
    IngestError
        If the package with the data is missing.
    ModuleNotFoundError
        If matplotlib is missing.
    StoreExistsError
        If something that no demo left stands where a dataset should be written.
    """
    require_matplotlib()
    folder = Path(directory)
    say(f"building features from flights, weather, planes and airports, into {folder}")
    is_ours = (folder / "report.json").exists()
    train, test, report = flights.write(folder, overwrite=is_ours, days=days)
    say("starting two workers")
    _start_tracker_quietly()
    with (
        TemporaryDirectory(prefix="dask-dml-demo-") as scratch,
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            env=blas_environment(),
            dashboard_address=":0",
            local_directory=scratch,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        # Or the first fit would be charged for what is imported and compiled at the first use.
        client.run(import_module, "dask_dml")
        say("compiling, by a fit of the held-out days")
        there = Runtime(client)  # few days would be fitted in this process, where nothing is killed
        LogisticRegression(C=C, runtime=there).fit(test)
        say(f"fitting undisturbed, {train.n_rows:,} rows x {train.n_columns} columns")
        calm = LogisticRegression(C=C, runtime=there)
        calm_s = _seconds(lambda: calm.fit(train))
        worker, pid = min(client.run(os.getpid).items())
        kill = KillWorker(pid, KILL_AFTER_ROUND)
        say(f"fitting again, and killing {worker} (process {pid}) after round {KILL_AFTER_ROUND}")
        model = LogisticRegression(C=C, runtime=there, callbacks=[kill])
        model_s = _seconds(lambda: model.fit(train))
        say("predicting the held-out days")
        scores = np.asarray(model.decision_function(test).compute())
        late = np.asarray(test.y.compute())
        X = train.X.astype(np.float64).compute()
        y = np.asarray(train.y.compute())
    say(f"fitting scikit-learn {sklearn.__version__} on the same rows, in this process")
    objective = _objective(model.coef_, model.intercept_, X, y)
    peer = _peer(model, X, y)
    say("drawing")
    model.save(folder / MODEL, overwrite=is_ours)
    _draw(folder / PICTURE, model, calm, late, scores)
    held_out = ClassificationMetrics(model.classes_)
    held_out.add(late, scores)
    share = float(y.mean())
    constant = ClassificationMetrics(model.classes_)
    constant.add(late, np.full(len(late), np.log(share / (1.0 - share))))
    mine, other = _bits(model), _bits(calm)
    return Result(
        data=report,
        n_columns=train.n_columns,
        n_blocks=train.grid.shape[0],
        held_out=held_out.result(),
        constant={name: constant.result()[name] for name in ("log_loss", "accuracy")},
        fit=_fit(model, model_s),
        undisturbed=_fit(calm, calm_s),
        fault=_fault(model.faults_, worker, pid, model_s - calm_s) if kill.killed else None,
        n_coefficients=mine.size,
        n_same_bits=int((mine == other).sum()),
        objective=objective,
        peer=peer,
        files=tuple(
            str(folder / name)
            for name in (PICTURE, MODEL, "train.zarr", "test.zarr", "report.json")
        ),
    )


def _start_tracker_quietly() -> None:
    """Start Python's tracker of semaphores, which else warns at exit of a killed worker's."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore::UserWarning:multiprocessing.resource_tracker"
    try:
        resource_tracker.ensure_running()
    finally:
        del os.environ["PYTHONWARNINGS"]
        if before is not None:
            os.environ["PYTHONWARNINGS"] = before


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _objective(coef: Array, intercept: Any, X: Array, y: NDArray[Any]) -> float:
    """scikit-learn's objective of logistic regression, in float64."""
    w = np.asarray(coef, dtype=np.float64).ravel()
    z = X @ w + float(np.ravel(intercept)[0])
    return float(C * np.logaddexp(0.0, np.where(y == 1, -z, z)).sum() + 0.5 * w @ w)


def _peer(model: LogisticRegression, X: Array, y: NDArray[Any]) -> Peer:
    solver = "newton-cholesky"
    peer = sklearn_linear_model.LogisticRegression(C=C, solver=solver, tol=1e-8)
    seconds = _seconds(lambda: peer.fit(X, y))
    apart = np.abs(peer.coef_ - model.coef_).max() / np.abs(model.coef_).max()
    objective = _objective(peer.coef_, peer.intercept_, X, y)
    return Peer(sklearn.__version__, solver, objective, seconds, float(apart))


def _fit(model: LogisticRegression, seconds: float) -> Fit:
    history = model.history_
    gap = None if np.isnan(model.gap_) else model.gap_
    return Fit(float(history["objective"].iloc[-1]), gap, len(history), model.n_passes_, seconds)


def _fault(faults: pd.DataFrame, worker: str, pid: int, total_cost_s: float) -> Fault | None:
    lost = faults[faults["worker"] == worker]
    if lost.empty:
        return None
    first = lost.to_dict("records")[0]
    joined = faults.loc[faults["kind"] == "worker-joined", "round"].tolist()
    return Fault(
        worker,
        pid,
        first["round"],
        first["evidence"],
        first["action"],
        first["cost_s"],
        total_cost_s,
        first["recomputed_blocks"],
        joined[0] if joined else None,
    )


def _bits(model: LogisticRegression) -> NDArray[np.uint64]:
    """Coefficients and intercept as the integers that their bits spell."""
    values = np.concatenate([np.ravel(model.coef_), np.ravel(model.intercept_)])
    return np.ascontiguousarray(values, dtype=np.float64).view(np.uint64)


def _draw(
    path: Path,
    model: LogisticRegression,
    calm: LogisticRegression,
    late: NDArray[Any],
    scores: Array,
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    plot_history(model.history_, model.faults_, left)
    left.plot(
        calm.history_["round"],
        calm.history_["objective"],
        color="#b8c4d6",
        linewidth=7,
        solid_capstyle="round",
        zorder=2,
        label="undisturbed fit",
    )
    left.lines[0].set_label("with a worker killed")
    left.legend(loc="upper right", framealpha=1.0, edgecolor="none")
    left.set_title("Loss by round")
    plot_roc(late, scores, right)
    right.set_title("ROC curve, held-out days")
    figure.suptitle("Arrives more than 15 minutes late? New York, 2013", fontweight="bold")
    figure.savefig(path, dpi=150)


def table(result: Result) -> str:
    """Lay the result out as text."""
    fit, calm, peer = result.fit, result.undisturbed, result.peer
    quality = (("log loss", "log_loss"), ("ROC AUC", "roc_auc"), ("accuracy", "accuracy"))
    constant = {"roc_auc": 0.5, **result.constant}
    mine, other = f"{result.objective:.9f}", f"{peer.objective:.9f}"
    sections = [
        _section("Data", _data_rows(result)),
        _section(
            f"Held-out days{'':11}model    constant",
            [(label, f"{result.held_out[n]:>8.4f}  {constant[n]:>10.4f}") for label, n in quality],
        ),
        _section(
            f"Fit{'':13}worker killed  undisturbed",
            [
                ("rounds", f"{fit.rounds:>8}  {calm.rounds:>11}"),
                ("passes", f"{fit.passes:>8g}  {calm.passes:>11g}"),
                ("gap, at most", f"{_gap(fit):>8}  {_gap(calm):>11}"),
                ("seconds", f"{fit.seconds:>8.2f}  {calm.seconds:>11.2f}"),
            ],
        ),
        _section("Fault", _fault_rows(result)),
        _section(
            "Objective on the training rows, by one function in float64",
            [
                ("dask_dml", f"{mine}  {fit.seconds:6.2f} s, {_workers(result)}"),
                ("scikit-learn", f"{other}  {peer.seconds:6.2f} s, {peer.version}, {peer.solver}"),
                ("coefficients", f"differ by at most {peer.largest_difference:.1e} of the largest"),
            ],
        ),
        _section("Files", [(name, "") for name in result.files]),
    ]
    title = f"New York, 2013: does a flight arrive more than {flights.LATE_MINUTES} minutes late?"
    return "\n\n".join([title, *sections])


def _workers(result: Result) -> str:
    return "two workers" if result.fault is None else "two workers, one killed"


def _section(title: str, rows: list[tuple[str, str]]) -> str:
    return "\n".join([title, *(f"  {label:<18}{text}".rstrip() for label, text in rows)])


def _data_rows(result: Result) -> list[tuple[str, str]]:
    data = result.data
    rejected = {name: n for name, n in data.cells_rejected.items() if n}
    filled = sum(data.cells_imputed.values())
    return [
        ("rows read", f"{data.rows_read:,}"),
        ("dropped", _counts(data.rows_dropped)),
        (
            "training",
            f"{data.rows_train:,} rows x {result.n_columns} columns in {result.n_blocks} blocks",
        ),
        ("held out", f"{data.rows_test:,} rows, {len(data.days_test)} whole days"),
        ("without a record", _counts(data.unmatched)),
        ("impossible", f"{_counts(rejected)}: taken as missing" if rejected else "none"),
        (
            "missing",
            f"{filled:,} values in {len(data.cells_imputed)} columns got the median of the "
            f"training rows; {len(data.indicators)} more columns say where",
        ),
    ]


def _fault_rows(result: Result) -> list[tuple[str, str]]:
    fault = result.fault
    if fault is None:
        return [("none", "the fit ended before a worker was killed")]
    same = result.n_same_bits == result.n_coefficients
    joined = (
        "did not join before the end"
        if fault.joined_round is None
        else f"given blocks after round {fault.joined_round}"
    )
    return [
        ("killed", f"{fault.worker} (process {fault.pid}), SIGKILL after round {KILL_AFTER_ROUND}"),
        ("noticed", f"in round {fault.round}: {fault.evidence}"),
        ("done", fault.action),
        (
            "cost",
            f"{fault.cost_s:+.2f} s in that round, {fault.total_cost_s:+.2f} s in all; "
            f"{fault.recomputed_blocks} of {result.n_blocks} blocks made again",
        ),
        ("new worker", joined),
        (
            "same coefficients",
            f"{'yes' if same else 'NO'}: {result.n_same_bits} of {result.n_coefficients} are "
            "those of the undisturbed fit, bit for bit",
        ),
    ]


def _gap(fit: Fit) -> str:
    return "unknown" if fit.gap is None else f"{fit.gap:.1e}"


def _counts(counts: dict[str, int]) -> str:
    return "; ".join(f"{n:,} {name}" for name, n in counts.items())
