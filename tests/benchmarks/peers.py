"""Fits one work with one other program, in a process of its own; started by comparison.py.

    python tests/benchmarks/peers.py FOLDER PEER

FOLDER holds X.npy, y.npy and work.json. Everything but the fit comes first: reading the data,
handing it to the program as its users would, and a fit of a few rows, so that what is loaded at
first use is loaded. Then a line of JSON says that it is ready, and each line that comes on stdin is
answered by one fit: a line of JSON with the seconds it took, and its coefficients in PEER.npz.
Needs NumPy and the one program, and nothing of dask_dml.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

WARM_UP_ROWS = 20_000
DASK_CHUNKS = 16
# Beyond, its Newton's method takes longer than its L-BFGS.
DASK_NEWTON_COLUMNS = 100
SPARK_MEMORY = "8g"


class Task(NamedTuple):
    """What is minimised: that of scikit-learn's estimator of the loss.

    Attributes
    ----------
    loss : {"logistic", "multinomial", "poisson", "squares", "mean squares"}
        The last is halved, as that of the lasso.
    strength : float
        C of the logistic losses, otherwise alpha.
    absolute : bool
        Whether the penalty is of absolute values instead of squares.
    fit_intercept : bool
    """

    loss: str
    strength: float
    absolute: bool
    fit_intercept: bool

    @property
    def is_logistic(self) -> bool:
        return self.loss in ("logistic", "multinomial")

    def mean_strength(self, n_rows: int) -> float:
        """Strength of the penalty beside the mean of losses (of half the squares)."""
        if self.is_logistic:
            return 1.0 / (self.strength * n_rows)
        return self.strength / n_rows if self.loss == "squares" else self.strength


class Model(NamedTuple):
    """What a fit found; no iterations where the program does not count them."""

    coef: Any
    intercept: Any
    n_iter: int


class Rows(NamedTuple):
    """The data, and where a program that reads files may put it."""

    X: Any
    y: Any
    folder: Path


Fit = Callable[[], Model]


class UnsupportedError(Exception):
    """The program has no such model."""


def _of_estimator(estimator: Any, X: Any, y: Any) -> Fit:
    """The fit of an estimator with scikit-learn's attributes."""

    def fit() -> Model:
        estimator.fit(X, y)
        n_iter = getattr(estimator, "n_iter_", None)
        rounds = 1 if n_iter is None else int(np.max(n_iter))
        return Model(estimator.coef_, estimator.intercept_, rounds)

    return fit


def _sklearn_logistic(solver: str, tol: float, linear_model: Any, task: Task) -> Any:
    if not task.is_logistic:
        raise UnsupportedError("a solver of logistic regression")
    return linear_model.LogisticRegression(
        C=task.strength,
        l1_ratio=float(task.absolute),
        solver=solver,
        fit_intercept=task.fit_intercept,
        tol=tol,
        max_iter=1000,
    )


def sklearn_lbfgs(task: Task, rows: Rows) -> Fit:
    from sklearn import linear_model

    if task.loss == "poisson":
        estimator = linear_model.PoissonRegressor(alpha=task.strength, max_iter=1000)
    else:
        estimator = _sklearn_logistic("lbfgs", 1e-4, linear_model, task)
    return _of_estimator(estimator, rows.X, rows.y.astype(np.float64))


def sklearn_newton_cholesky(task: Task, rows: Rows) -> Fit:
    from sklearn import linear_model

    if task.loss == "poisson":
        estimator = linear_model.PoissonRegressor(alpha=task.strength, solver="newton-cholesky")
    else:
        estimator = _sklearn_logistic("newton-cholesky", 1e-4, linear_model, task)
    return _of_estimator(estimator, rows.X, rows.y.astype(np.float64))


def sklearn_liblinear(task: Task, rows: Rows) -> Fit:
    from sklearn import linear_model

    return _of_estimator(_sklearn_logistic("liblinear", 1e-4, linear_model, task), rows.X, rows.y)


def sklearn_saga(task: Task, rows: Rows) -> Fit:
    from sklearn import linear_model

    return _of_estimator(_sklearn_logistic("saga", 1e-4, linear_model, task), rows.X, rows.y)


def _least_squares(linear_model: Any, task: Task, **lasso: Any) -> Any:
    if task.loss == "squares":
        return linear_model.Ridge(alpha=task.strength, fit_intercept=task.fit_intercept)
    return linear_model.Lasso(
        alpha=task.strength, fit_intercept=task.fit_intercept, max_iter=10_000, **lasso
    )


def sklearn(task: Task, rows: Rows) -> Fit:
    from sklearn import linear_model

    return _of_estimator(_least_squares(linear_model, task), rows.X, rows.y.astype(rows.X.dtype))


def sklearn_precompute(task: Task, rows: Rows) -> Fit:
    from sklearn import linear_model

    return _of_estimator(
        _least_squares(linear_model, task, precompute=True), rows.X, rows.y.astype(rows.X.dtype)
    )


def intelex(task: Task, rows: Rows) -> Fit:
    from sklearnex import linear_model

    if task.loss == "poisson":
        raise UnsupportedError("has no Poisson regression of its own")
    if task.loss == "mean squares":
        raise UnsupportedError("has no lasso of its own")
    if task.is_logistic:
        if task.absolute:
            raise UnsupportedError("has no absolute values in logistic regression")
        estimator = _sklearn_logistic("lbfgs", 1e-4, linear_model, task)
    else:
        estimator = _least_squares(linear_model, task)
    return _of_estimator(estimator, rows.X, rows.y.astype(rows.X.dtype))


def glum(task: Task, rows: Rows) -> Fit:
    from glum import GeneralizedLinearRegressor

    families = {"logistic": "binomial", "poisson": "poisson"}
    if task.loss == "multinomial":
        raise UnsupportedError("has no multinomial regression")
    estimator = GeneralizedLinearRegressor(
        alpha=task.mean_strength(len(rows.y)),
        l1_ratio=float(task.absolute),
        family=families.get(task.loss, "normal"),
        fit_intercept=task.fit_intercept,
        copy_X=False,
    )
    return _of_estimator(estimator, rows.X, rows.y.astype(rows.X.dtype))


@cache
def _dask_client() -> Any:
    from distributed import Client, LocalCluster

    return Client(
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit="8GB", dashboard_address=":0")
    )


def _dask_part(path: Path, start: int, stop: int) -> Any:
    return np.load(path, mmap_mode="r")[start:stop].copy()


def dask_ml(task: Task, rows: Rows) -> Fit:
    import dask.array as da
    from dask import delayed
    from dask_ml import linear_model
    from distributed import wait

    if task.loss == "multinomial":
        raise UnsupportedError("has two classes only")
    n_rows, n_columns = rows.X.shape
    height = -(-n_rows // DASK_CHUNKS)
    xs, ys = [], []
    # Read by the workers: a graph with all the rows in it would take long to send.
    part = delayed(_dask_part, pure=False)
    for start in range(0, n_rows, height):
        stop = min(start + height, n_rows)
        x, target = (part(rows.folder / f"{name}.npy", start, stop) for name in ("X", "y"))
        xs.append(da.from_delayed(x, (stop - start, n_columns), dtype=rows.X.dtype))
        ys.append(da.from_delayed(target, (stop - start,), dtype=rows.y.dtype))
    X, y = _dask_client().persist([da.concatenate(xs), da.concatenate(ys).astype(np.float64)])
    wait([X, y])
    # Sums, and half the squares or the absolute values of coefficients, over C.
    multiplier = task.strength if task.is_logistic else 1.0 / task.mean_strength(n_rows) / n_rows
    smooth = "newton" if task.loss == "logistic" and n_columns < DASK_NEWTON_COLUMNS else "lbfgs"
    model = {"logistic": "LogisticRegression", "poisson": "PoissonRegression"}
    estimator = getattr(linear_model, model.get(task.loss, "LinearRegression"))(
        penalty="l1" if task.absolute else "l2",
        # Its squares are not halved.
        C=0.5 * multiplier if task.loss.endswith("squares") else multiplier,
        solver="proximal_grad" if task.absolute else smooth,
        fit_intercept=task.fit_intercept,
        max_iter=200,
    )

    def fit() -> Model:
        estimator.fit(X, y)
        return Model(estimator.coef_, estimator.intercept_, 0)

    return fit


def spark(task: Task, rows: Rows) -> Fit:
    from pyspark.ml.functions import array_to_vector
    from pyspark.sql import SparkSession

    session = (
        SparkSession.builder.master("local[2]")
        .config("spark.driver.memory", SPARK_MEMORY)
        .config("spark.ui.enabled", "false")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("ERROR")
    path = rows.folder / f"rows-{len(rows.y)}.parquet"
    if not path.exists():
        _write_parquet(path, rows)
    frame = session.read.parquet(str(path)).repartition(8)
    frame = frame.select(array_to_vector("x").alias("features"), "label").cache()
    frame.count()
    estimator = _spark_estimator(task, len(rows.y))

    def fit() -> Model:
        model = estimator.fit(frame)
        if task.is_logistic:
            matrix, intercept = model.coefficientMatrix.toArray(), model.interceptVector.toArray()
            return Model(matrix, intercept, model.summary.totalIterations)
        is_counted = hasattr(model.summary, "totalIterations")
        rounds = model.summary.totalIterations if is_counted else model.summary.numIterations
        return Model(model.coefficients.toArray(), model.intercept, rounds)

    return fit


def _write_parquet(path: Path, rows: Rows) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    schema = pa.schema([("x", pa.list_(pa.float32())), ("label", pa.float64())])
    with ParquetWriter(path, schema) as writer:
        for start in range(0, len(rows.y), 100_000):
            part = rows.X[start : start + 100_000]
            offsets = np.arange(len(part) + 1, dtype=np.int32) * part.shape[1]
            columns = [
                pa.ListArray.from_arrays(offsets, part.ravel()),
                rows.y[start : start + 100_000].astype(np.float64),
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def _spark_estimator(task: Task, n_rows: int) -> Any:
    from pyspark.ml import classification, regression

    settings = {
        "regParam": task.mean_strength(n_rows),
        "fitIntercept": task.fit_intercept,
        "maxIter": 500,
        "tol": 1e-8,
    }
    if task.loss == "poisson":
        return regression.GeneralizedLinearRegression(family="poisson", **settings)
    settings |= {"standardization": False, "elasticNetParam": float(task.absolute)}
    if task.is_logistic:
        family = "binomial" if task.loss == "logistic" else "multinomial"
        return classification.LogisticRegression(family=family, **settings)
    return regression.LinearRegression(**settings)


# Of each peer: what makes ready to fit, and the package that it is of.
PEERS: dict[str, tuple[Callable[[Task, Rows], Fit], str]] = {
    "lbfgs": (sklearn_lbfgs, "scikit-learn"),
    "newton-cholesky": (sklearn_newton_cholesky, "scikit-learn"),
    "liblinear": (sklearn_liblinear, "scikit-learn"),
    "saga": (sklearn_saga, "scikit-learn"),
    "scikit-learn": (sklearn, "scikit-learn"),
    "scikit-learn, precompute": (sklearn_precompute, "scikit-learn"),
    "scikit-learn-intelex": (intelex, "scikit-learn-intelex"),
    "glum": (glum, "glum"),
    "dask-ml": (dask_ml, "dask-ml"),
    "Spark MLlib": (spark, "pyspark"),
}


def main() -> int:
    folder, peer = Path(sys.argv[1]), sys.argv[2]
    # What programs print themselves must not come between the lines of JSON.
    answers, sys.stdout = sys.stdout, sys.stderr

    def answer(**what: Any) -> None:
        answers.write(f"{json.dumps(what)}\n")
        answers.flush()

    task = Task(**json.loads((folder / "work.json").read_text()))
    rows = Rows(np.load(folder / "X.npy"), np.load(folder / "y.npy"), folder)
    few = Rows(rows.X[:WARM_UP_ROWS], rows.y[:WARM_UP_ROWS], folder)
    prepare, package = PEERS[peer]
    try:
        prepare(task, few)()
        fit = prepare(task, rows)
        answer(release=f"{package} {version(package)}")
        for _ in sys.stdin:
            start_s = time.perf_counter()
            model = fit()
            seconds = time.perf_counter() - start_s
            np.savez(
                folder / f"{peer}.npz",
                coef=np.atleast_2d(np.asarray(model.coef, dtype=np.float64)),
                intercept=np.atleast_1d(np.asarray(model.intercept, dtype=np.float64)),
            )
            answer(seconds=seconds, n_iter=model.n_iter)
    except UnsupportedError as error:
        answer(problem=str(error))
    except Exception as error:  # noqa: BLE001 - whatever a peer fails by is what is to be told
        answer(problem=f"failed: {error!r:.200}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
