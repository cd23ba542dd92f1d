"""The commands of `dask dml`: demo, ingest, info, fit, predict, evaluate.

Results go to stdout, all else to stderr.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import click
import dask
import dask.array as da
import numpy as np
import pandas as pd
from dask.system import CPU_COUNT
from distributed import CancelledError, Client, KilledWorker, LocalCluster, default_client
from numpy.typing import NDArray
from sklearn.base import is_classifier

from dask_dml.data import Dataset, ingest, open_dataset
from dask_dml.data.store import check_free, find_place, load_arrays
from dask_dml.errors import DaskDMLError, StoreExistsError, StoreFormatError
from dask_dml.estimator import SOLVERS, LinearEstimator
from dask_dml.linear_model import (
    ElasticNet,
    GammaRegressor,
    HuberRegressor,
    Lasso,
    LinearRegression,
    LinearSVC,
    LinearSVR,
    LogisticRegression,
    PoissonRegressor,
    QuantileRegressor,
    Ridge,
    TweedieRegressor,
    load_model,
)
from dask_dml.objective.blas import blas_environment
from dask_dml.report.metrics import ClassificationMetrics, RegressionMetrics
from dask_dml.report.predictions import WRITERS, prediction_frame, write_frames
from dask_dml.runtime import Event, FitEnded, FitStarted, RoundEnded

Command = TypeVar("Command", bound=Callable[..., Any])

# What people can put right. Anything else is a mistake of ours, and keeps its traceback.
FAILURES = (
    DaskDMLError,
    OSError,
    ImportError,
    ValueError,
    MemoryError,
    KilledWorker,
    CancelledError,
)
ESTIMATORS: dict[str, type[LinearEstimator]] = {
    "logistic-regression": LogisticRegression,
    "linear-regression": LinearRegression,
    "ridge": Ridge,
    "lasso": Lasso,
    "elastic-net": ElasticNet,
    "poisson-regression": PoissonRegressor,
    "gamma-regression": GammaRegressor,
    "tweedie-regression": TweedieRegressor,
    "huber-regression": HuberRegressor,
    "quantile-regression": QuantileRegressor,
    "linear-svc": LinearSVC,
    "linear-svr": LinearSVR,
}
COLUMNS_SHOWN = 30
NAMES_SHOWN = 10


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace what is there.")


def cluster_options(command: Command) -> Command:
    """Say where to compute: on a cluster, on one that is started for it, or in this process."""
    for option in (
        click.option(
            "--workers",
            type=click.IntRange(min=1),
            metavar="N",
            help="Compute on N worker processes, started on this machine.",
        ),
        click.option(
            "--scheduler",
            metavar="ADDRESS",
            help="Compute on the cluster of this scheduler, such as tcp://10.0.0.1:8786.",
        ),
    ):
        command = option(command)
    return command


@click.command("demo")
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-output"),
    show_default=True,
    help="Where datasets, model and picture go; what an earlier demo left there is replaced.",
)
@click.option(
    "--days",
    type=click.IntRange(min=5, max=365),
    help="Use the first days of the year only, for a quick look.",
)
@json_option
def demo_command(directory: Path, days: int | None, as_json: bool) -> None:
    """Fit the New York flights of 2013, killing a worker in mid-fit.

    Needs the data and matplotlib: pip install 'dask-dml[examples]'.
    """
    from dask_dml import demo

    result = demo.run(directory, days, say)
    click.echo(_json(asdict(result)) if as_json else demo.table(result))


@click.command("ingest")
@click.argument("sources", nargs=-1, required=True)
@click.argument("store")
@click.option("--target", help="Column to predict; not for svmlight, where the file says it.")
@click.option("--drop", multiple=True, metavar="COLUMN", help="Leave a column out. Repeatable.")
@click.option(
    "--one-hot",
    multiple=True,
    metavar="COLUMN",
    help="Replace a column by an indicator for each of its values. Repeatable.",
)
@click.option(
    "--categorical",
    multiple=True,
    metavar="COLUMN",
    help="The same, stored as one number a row: for columns of many values. Repeatable.",
)
@click.option("--ids", metavar="COLUMN", help="Column that names the rows.")
@click.option("--sample-weight", metavar="COLUMN", help="Column that weights the rows.")
@click.option(
    "--missing",
    type=click.Choice(["error", "drop", "keep"]),
    default="error",
    show_default=True,
    help="Refuse missing values, drop their rows, or store NaN.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float64"]),
    help="Of the features; by default float32 if all numeric columns are, else float64.",
)
@click.option(
    "--format",
    type=click.Choice(["csv", "parquet", "svmlight"]),
    help="Of the files; by default told from the suffix.",
)
@click.option(
    "--layout",
    type=click.Choice(["horizontal", "vertical", "hybrid"]),
    default="horizontal",
    show_default=True,
    help="How blocks cut the data: by rows, by columns, or both.",
)
@click.option(
    "--chunks",
    default="auto",
    show_default=True,
    metavar="auto|ROWS|ROWS,COLUMNS",
    callback=lambda _ctx, _param, value: _parse_chunks(value),
    help="Size of a block; auto aims at 32 MB.",
)
@overwrite_option
@json_option
def ingest_command(sources: tuple[str, ...], store: str, as_json: bool, **options: Any) -> None:
    """Turn CSV, Parquet or svmlight files into a dataset.

    SOURCES are paths, quoted globs, folders or URLs; the last argument is the STORE to write.
    """
    say(f"reading {', '.join(sources)}")
    started = time.perf_counter()
    dataset = ingest(sources[0] if len(sources) == 1 else list(sources), store, **options)
    say(f"wrote {dataset.url} in {time.perf_counter() - started:.1f} s")
    _print(_describe(dataset), as_json)


@click.command("info")
@click.argument("store")
@json_option
def info_command(store: str, as_json: bool) -> None:
    """Say what a dataset or a model is.

    Of a dataset, the statistics of columns are those of the sample of rows that it carries.
    """
    try:
        dataset = open_dataset(store)
    except StoreFormatError as error:
        try:
            attributes = load_arrays(store)[1]
        except StoreFormatError:
            raise error from None
        _print(attributes, as_json)
        return
    columns = _sample_statistics(dataset)
    facts = {**_describe(dataset), **_target_statistics(dataset)}
    if as_json:
        click.echo(_json({**facts, "columns": columns.to_dict("records")}))
        return
    _print({name: value for name, value in facts.items() if name != "feature_names"}, as_json)
    click.echo()
    click.echo(columns.head(COLUMNS_SHOWN).to_string(index=False, float_format="{:.4g}".format))
    if len(columns) > COLUMNS_SHOWN:
        click.echo(f"... and {len(columns) - COLUMNS_SHOWN} more columns: --json has them all")


@click.command("fit")
@click.argument("store")
@click.option("--model", required=True, metavar="STORE", help="Where the fitted model goes.")
@click.option(
    "--estimator",
    type=click.Choice(list(ESTIMATORS)),
    default="logistic-regression",
    show_default=True,
)
@click.option(
    "--C",
    "C",
    type=click.FloatRange(min=0.0, min_open=True),
    help="Inverse strength of the penalty of a classifier or linear-svr; by default 1.",
)
@click.option(
    "--alpha",
    type=click.FloatRange(min=0.0),
    help="Strength of the penalty of a regression; by default that of its estimator.",
)
@click.option(
    "--l1-ratio",
    type=click.FloatRange(0.0, 1.0),
    help="Share of absolute values in the penalty of logistic-regression or elastic-net.",
)
@click.option(
    "--quantile",
    type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True),
    help="What quantile-regression estimates; by default 0.5, the median.",
)
@click.option("--power", type=float, help="Of the variance, in tweedie-regression.")
@click.option(
    "--epsilon",
    type=click.FloatRange(min=0.0),
    help="Where huber-regression turns from squares, or up to which linear-svr has no loss.",
)
@click.option(
    "--class-weight",
    type=click.Choice(["balanced"]),
    help="Weight the classes of a classifier inversely to their frequency.",
)
@click.option(
    "--tol",
    type=click.FloatRange(min=0.0, min_open=True),
    default=1e-8,
    show_default=True,
    help="Relative gap to reach: (objective - optimum) / objective.",
)
@click.option("--max-iter", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--solver", type=click.Choice(SOLVERS), default="auto", show_default=True)
@click.option("--no-intercept", is_flag=True, help="Fit no intercept.")
@click.option(
    "--checkpoint",
    metavar="PLACE",
    help="Path or URL where the state is kept between rounds; the same command goes on from there.",
)
@cluster_options
@overwrite_option
@json_option
def fit_command(
    store: str,
    model: str,
    estimator: str,
    C: float | None,
    alpha: float | None,
    l1_ratio: float | None,
    quantile: float | None,
    power: float | None,
    epsilon: float | None,
    class_weight: str | None,
    tol: float,
    max_iter: int,
    solver: str,
    no_intercept: bool,
    checkpoint: str | None,
    scheduler: str | None,
    workers: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Fit a model on a dataset, and save it."""
    own = {
        "C": C,
        "alpha": alpha,
        "l1_ratio": l1_ratio,
        "quantile": quantile,
        "power": power,
        "epsilon": epsilon,
        "class_weight": class_weight,
    }
    given = {name: value for name, value in own.items() if value is not None}
    kind = ESTIMATORS[estimator]
    for name in given.keys() - kind().get_params().keys():
        raise click.UsageError(f"--{name.replace('_', '-')} is not an option of {estimator}")
    check_free(find_place(model), overwrite)
    dataset = open_dataset(store)
    progress = FitProgress()
    fitted = kind(
        **given,
        tol=tol,
        max_iter=max_iter,
        solver=solver,
        fit_intercept=not no_intercept,
        checkpoint=checkpoint,
        callbacks=[progress],
    )
    started = time.perf_counter()
    with _cluster(scheduler, workers):
        fitted.fit(dataset)
    seconds = time.perf_counter() - started
    fitted.save(model, overwrite=overwrite)
    history = fitted.history_
    _print(
        {
            "model": model,
            "estimator": estimator,
            "stopped": progress.reason,
            "objective": float(history["objective"].iloc[-1]),
            "gap": fitted.gap_,
            "rounds": len(history),
            "passes": fitted.n_passes_,
            "seconds": round(seconds, 3),
            "n_rows": dataset.n_rows,
            "n_features": fitted.n_features_in_,
            "classes": getattr(fitted, "classes_", None),
            "faults": fitted.faults_.astype({"when": str}).to_dict("records"),
        },
        as_json,
    )


@click.command("predict")
@click.argument("model")
@click.argument("store")
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    callback=lambda _ctx, _param, value: _check_suffix(value),
    help="File to write: .csv, .parquet or .npy, told by the suffix.",
)
@click.option("--proba", is_flag=True, help="Also the probability of each class.")
@cluster_options
@overwrite_option
@json_option
def predict_command(
    model: str,
    store: str,
    out: Path,
    proba: bool,
    scheduler: str | None,
    workers: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Predict the rows of a dataset, in their order.

    CSV and Parquet have columns id (if the dataset has ids), prediction and, with --proba,
    proba_CLASS for each class. NPY has the predictions, shape (n,), or with --proba the
    probabilities, shape (n, K), in the order of the model's classes.
    """
    fitted = load_model(model)
    if proba and not is_classifier(fitted):
        raise click.UsageError(
            f"--proba needs a classifier, {model} holds a {type(fitted).__name__}"
        )
    if out.exists() and not overwrite:
        raise StoreExistsError(f"{out} exists: use --overwrite or choose another name")
    dataset = open_dataset(store)
    only_proba = proba and out.suffix == ".npy"
    arrays: dict[str, Any] = {} if dataset.ids is None or only_proba else {"id": dataset.ids}
    if not only_proba:
        arrays["prediction"] = fitted.predict(dataset)
    if proba:
        arrays["proba"] = fitted.predict_proba(dataset)
    labels = [f"proba_{label}" for label in fitted.classes_] if proba else []
    with _cluster(scheduler, workers):
        frames = (
            prediction_frame(dict(zip(arrays, block, strict=True)), labels)
            for block in _blocks(list(arrays.values()), "predicting")
        )
        write_frames(out, frames)
    _print({"predictions": str(out), "n_rows": dataset.n_rows}, as_json)


@click.command("evaluate")
@click.argument("model")
@click.argument("store")
@cluster_options
@json_option
def evaluate_command(
    model: str, store: str, scheduler: str | None, workers: int | None, as_json: bool
) -> None:
    """Measure a model on a dataset with a known target.

    A classifier by log loss, accuracy and, for two classes, ROC AUC; a regressor by R2, root mean
    squared error and mean absolute error. Weights of the dataset count. A few blocks are
    in memory at a time; only the exact AUC holds all scores in this process, 9 bytes a row.
    """
    fitted = load_model(model)
    dataset = open_dataset(store)
    classifies = is_classifier(fitted)
    scores = fitted.decision_function(dataset) if classifies else fitted.predict(dataset)
    metrics: ClassificationMetrics | RegressionMetrics
    metrics = ClassificationMetrics(fitted.classes_) if classifies else RegressionMetrics()
    weight = [] if dataset.sample_weight is None else [dataset.sample_weight]
    with _cluster(scheduler, workers):
        for block in _blocks([dataset.y, scores, *weight], "scoring"):
            metrics.add(*block)
    _print({**metrics.result(), "weighted": bool(weight)}, as_json)


class FitProgress:
    """A listener that keeps why a fit stopped, and writes a line a round where no bar is shown."""

    def __init__(self) -> None:
        self.reason = ""
        has_bar = sys.stderr.isatty() or dask.config.get("dml.progress", "auto") != "auto"
        self._say: Callable[[str], object] = (lambda line: None) if has_bar else say

    def __call__(self, event: Event) -> None:
        if isinstance(event, FitStarted):
            run = event.run
            self._say(f"{run.solver}: {run.n_rows:,} rows in {run.n_blocks} blocks")
        elif isinstance(event, RoundEnded):
            faults = "".join(f", {fault.kind}" for fault in event.result.faults)
            self._say(
                f"round {event.round}: objective {event.objective:.10g}, gap {event.gap:.1e}, "
                f"{event.result.seconds:.2f} s{faults}"
            )
        elif isinstance(event, FitEnded):
            self.reason = event.reason


@contextmanager
def _cluster(scheduler: str | None, workers: int | None) -> Iterator[None]:
    """The cluster that was asked for, as the current one."""
    if scheduler is not None and workers is not None:
        raise click.UsageError("use --scheduler or --workers, not both")
    if scheduler is not None:
        say(f"connecting to {scheduler}")
        with Client(scheduler) as client:
            _say_dashboard(client)
            yield
    elif workers is not None:
        say(f"starting {workers} workers")
        with (
            LocalCluster(
                n_workers=workers, dashboard_address=":0", env=blas_environment()
            ) as cluster,
            Client(cluster) as client,
        ):
            _say_dashboard(client)
            yield
    else:
        yield


def _say_dashboard(client: Client) -> None:
    if find_spec("bokeh") is not None:
        say(f"dashboard: {client.dashboard_link}")


def _blocks(arrays: list[da.Array], label: str) -> Iterator[tuple[Any, ...]]:
    """Blocks of rows of arrays that are cut alike, in order, some at a time in memory."""
    parts = list(zip(*(a.to_delayed(optimize_graph=False).ravel() for a in arrays), strict=True))
    at_a_time = 2 * _n_threads()
    with click.progressbar(length=len(parts), label=label, file=sys.stderr) as bar:
        for start in range(0, len(parts), at_a_time):
            for block in dask.compute(*parts[start : start + at_a_time]):
                yield block
                bar.update(1)


def _n_threads() -> int:
    try:
        client = default_client()
    except ValueError:
        return int(CPU_COUNT)
    return sum(client.nthreads().values()) or 1


def _describe(dataset: Dataset) -> dict[str, Any]:
    rows, columns = dataset.grid.row_chunks[0], dataset.grid.column_chunks[0]
    n_values = dataset.n_values
    return {
        "kind": "dataset",
        "url": dataset.url,
        "n_rows": dataset.n_rows,
        "n_columns": dataset.n_columns,
        "dtype": str(dataset.X.dtype),
        "storage": dataset.storage,
        "values": n_values,
        "density": None if n_values is None else n_values / (dataset.n_rows * dataset.n_columns),
        "bytes": sum(dataset.block_nbytes),
        "layout": dataset.layout,
        "grid": list(dataset.grid.shape),
        "block": [rows, columns],
        "block_bytes": max(dataset.block_nbytes) // dataset.grid.shape[1],
        "target": dataset.target,
        "classes": dataset.classes,
        "has_sample_weight": dataset.sample_weight is not None,
        "has_ids": dataset.ids is not None,
        "feature_names": dataset.feature_names,
    }


def _sample_statistics(dataset: Dataset) -> pd.DataFrame:
    """A row a column of X: mean, standard deviation, extremes, and the share that is missing."""
    values = dataset.sample.X.astype(np.float64)
    facts = _dense_statistics(values) if dataset.storage == "dense" else _sparse_statistics(values)
    return pd.DataFrame({"column": dataset.feature_names, **facts})


def _dense_statistics(values: NDArray[np.float64]) -> dict[str, Any]:
    sample = pd.DataFrame(values)
    return {
        "mean": sample.mean(),
        "std": sample.std(ddof=0),
        "min": sample.min(),
        "max": sample.max(),
        "missing": sample.isna().mean(),
    }


def _sparse_statistics(values: Any) -> dict[str, Any]:
    """Those of CSR rows, with their zeros and without making them dense."""
    present = values.copy()
    present.data = np.isnan(values.data).astype(np.float64)
    missing = present.mean(axis=0)
    known = values.copy()
    known.data = np.nan_to_num(values.data, nan=0.0, posinf=np.inf, neginf=-np.inf)
    n_known = len(values.indptr) - 1 - missing * values.shape[0]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = known.sum(axis=0) / n_known
        std = np.sqrt(np.maximum(known.multiply(known).sum(axis=0) / n_known - mean**2, 0.0))
    return {
        "mean": mean,
        "std": std,
        "min": values.nanmin(axis=0).todense(),
        "max": values.nanmax(axis=0).todense(),
        "missing": missing,
    }


def _target_statistics(dataset: Dataset) -> dict[str, Any]:
    y = pd.Series(dataset.sample.y)
    if dataset.classes is not None:
        shares = {str(label): float((y == label).mean()) for label in dataset.classes}
        return {"sample_rows": len(y), "target_shares": shares}
    facts = {"mean": y.mean(), "std": y.std(ddof=0), "min": y.min(), "max": y.max()}
    return {"sample_rows": len(y), **{f"target_{name}": value for name, value in facts.items()}}


def _print(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(_json(facts))
        return
    plain = _plain(facts)
    width = max(map(len, plain)) + 2
    for name, value in plain.items():
        click.echo(f"{name.replace('_', ' '):<{width}}{_text(value)}")


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, list):
        shown = ", ".join(map(_text, value[:NAMES_SHOWN]))
        return f"{shown}, ... ({len(value)})" if len(value) > NAMES_SHOWN else shown or "none"
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_text(item)}" for name, item in value.items())
    return str(value)


def _json(facts: Any) -> str:
    return json.dumps(_plain(facts), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    """The value as JSON has it; what is not a finite number becomes null."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _parse_chunks(value: str) -> str | int | tuple[int, ...]:
    if value == "auto":
        return value
    parts = value.split(",")
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
        raise click.BadParameter(f"{value!r} is not auto, ROWS or ROWS,COLUMNS")
    sizes = tuple(int(part) for part in parts)
    return sizes if len(sizes) == 2 else sizes[0]


def _check_suffix(path: Path) -> Path:
    if path.suffix not in WRITERS:
        raise click.BadParameter(f"{path} must end in {', '.join(WRITERS)}")
    return path


def say(line: str) -> None:
    """Print a line on stderr."""
    click.echo(line, err=True)


def one_line(message: object) -> str:
    """Put a message on one line, in the words of the command line."""
    text = " ".join(str(message).split()) or type(message).__name__
    return text.replace("pass overwrite=True", "use --overwrite")


COMMANDS: dict[str, click.Command] = {
    str(command.name): command
    for command in (
        demo_command,
        ingest_command,
        info_command,
        fit_command,
        predict_command,
        evaluate_command,
    )
}
