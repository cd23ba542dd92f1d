"""What is fitted in the comparison: data, what is minimised, by whom, and how fast it has to be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import dask
import numpy as np
from distributed import Client, LocalCluster, wait
from scipy.special import log1p, logsumexp, xlogy

from dask_dml.datasets import synthetic
from dask_dml.linear_model import Lasso, LogisticRegression, PoissonRegressor, Ridge

GAP = 1e-8
Array = np.ndarray[Any, np.dtype[Any]]
Pair = tuple[Any, Any]


@contextmanager
def cluster(memory_limit: str = "6GB", n_workers: int = 2) -> Iterator[Client]:
    """Workers of one thread, two unless told."""
    with (
        LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            memory_limit=memory_limit,
            dashboard_address=":0",
        ) as local,
        Client(local) as client,
    ):
        yield client


@contextmanager
def persisted(pair: Pair) -> Iterator[Pair]:
    """Data in the memory of two workers, half of it with each."""
    with cluster() as client:
        workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
        # Not left to chance: a worker that is up first may make all of it.
        with dask.annotate(workers=lambda key: workers[key[1] % 2]):
            pair = [each.map_blocks(_itself) for each in pair]
        pair = client.persist(pair, optimize_graph=False)
        wait(pair)
        yield tuple(pair)


def _itself(block: Array) -> Array:
    return block


@contextmanager
def here(pair: Pair) -> Iterator[Pair]:
    """NumPy arrays in this process, and no cluster."""
    yield dask.compute(*pair)


class Target(NamedTuple):
    """Most of our time over that of other programs.

    Attributes
    ----------
    ratio : float
    over : str
        Whose time it is over, in words.
    peers : tuple of str
        Programs among which the fastest counts; empty for all.
    gap : float
        Relative gap that a program must have reached to count.
    """

    ratio: float
    over: str
    peers: tuple[str, ...] = ()
    gap: float = math.inf


@dataclass(frozen=True)
class Work:
    """A model to fit.

    Attributes
    ----------
    title : str
        With a place for the number of rows.
    n_rows : int
        At scale 1.
    data : callable
        From the number of rows to dask arrays.
    model : callable
        From a tolerance to our estimator.
    loss, strength, absolute, fit_intercept
        See `peers.Task`.
    peers : tuple of str
        Other programs, those first that are fast.
    targets : tuple of Target
    most_passes : float
        Most passes over the data that ours may take.
    placed : callable
        Has the data where our fit finds it.
    """

    title: str
    n_rows: int
    data: Callable[[int], Pair]
    model: Callable[[float], Any]
    loss: str
    strength: float
    peers: tuple[str, ...]
    targets: tuple[Target, ...]
    absolute: bool = False
    fit_intercept: bool = True
    most_passes: float = math.inf
    placed: Callable[[Pair], AbstractContextManager[Pair]] = field(default=persisted)


def objective(work: Work, X: Array, y: Array, coef: Array, intercept: Array) -> float:
    """scikit-learn's objective in float64, for every program alike.

    Parameters
    ----------
    work : Work
    X : ndarray of shape (n, p)
    y : ndarray of shape (n,)
    coef : ndarray of shape (p,) or (K, p)
    intercept : ndarray of shape (K,), or a number
    """
    coef, intercept = np.atleast_2d(coef), np.broadcast_to(intercept, len(np.atleast_2d(coef)))
    height = 10_000_000 // X.shape[1]
    total = 0.0
    for start in range(0, len(y), height):
        rows = slice(start, start + height)
        scores = X[rows].astype(np.float64) @ coef.T + intercept
        total += float(_LOSSES[work.loss](scores, y[rows]).sum())
    penalty = np.abs(coef).sum() if work.absolute else 0.5 * np.square(coef).sum()
    if work.loss in ("logistic", "multinomial"):
        return float(work.strength * total + penalty)
    if work.loss == "squares":
        return float(total + 2.0 * work.strength * penalty)
    return float(total / len(y) + work.strength * penalty)


def _logistic(scores: Array, y: Array) -> Array:
    z = scores[:, 0]
    return np.maximum(z, 0.0) + log1p(np.exp(-np.abs(z))) - y * z


def _multinomial(scores: Array, y: Array) -> Array:
    return logsumexp(scores, axis=1) - scores[np.arange(len(y)), y.astype(int)]


def _poisson(scores: Array, y: Array) -> Array:
    y = y.astype(np.float64)
    return np.exp(scores[:, 0]) - y * scores[:, 0] + xlogy(y, y) - y


def _squares(scores: Array, y: Array) -> Array:
    return np.square(scores[:, 0] - y)


_LOSSES = {
    "logistic": _logistic,
    "multinomial": _multinomial,
    "poisson": _poisson,
    "squares": _squares,
    "mean squares": lambda scores, y: 0.5 * _squares(scores, y),
}

_LOGISTIC_PEERS = (
    "scikit-learn-intelex",
    "newton-cholesky",
    "lbfgs",
    "glum",
    "dask-ml",
    "Spark MLlib",
)
_AT_THAT_GAP = "the best peer at a gap of 1e-8"
_AT_ANY_GAP = "the fastest peer at any gap below 1e-4"
_BEST_PEER = "the best peer"

_LASSO_ALPHA = 0.02
_ABSOLUTE_C = 0.002
_POISSON_ALPHA = 1e-4

# The condition numbers are chosen by the iterations that scikit-learn's L-BFGS takes at its own
# tolerance: some 40 to 50, and 80 of 1,000 columns.
WORKS = {
    "logistic": Work(
        title="logistic, {:,} x 28 float32, correlated columns, condition 300",
        n_rows=4_000_000,
        data=partial(
            synthetic.wide, n_columns=28, score_std=5.0, condition=300.0, chunk_rows=250_000
        ),
        model=lambda tol: LogisticRegression(tol=tol),
        loss="logistic",
        strength=1.0,
        peers=_LOGISTIC_PEERS,
        targets=(
            Target(0.08, "newton-cholesky", ("newton-cholesky",)),
            Target(0.12, _AT_THAT_GAP, gap=GAP),
            Target(0.25, _AT_ANY_GAP, gap=1e-4),
        ),
    ),
    "wide": Work(
        title="logistic, {:,} x 1,000, scores of standard deviation 2, correlated columns, "
        "condition 1,000",
        n_rows=200_000,
        data=partial(synthetic.wide, condition=1e3),
        model=lambda tol: LogisticRegression(tol=tol),
        loss="logistic",
        strength=1.0,
        peers=_LOGISTIC_PEERS,
        targets=(
            Target(0.15, "newton-cholesky", ("newton-cholesky",)),
            Target(0.2, _AT_ANY_GAP, gap=1e-4),
        ),
    ),
    "separable": Work(
        title="logistic, {:,} x 1,000, scores of standard deviation 31, correlated columns, "
        "condition 1,000",
        n_rows=200_000,
        data=partial(synthetic.wide, score_std=31.0, condition=1e3),
        model=lambda tol: LogisticRegression(tol=tol),
        loss="logistic",
        strength=1.0,
        peers=_LOGISTIC_PEERS,
        targets=(Target(0.3, "newton-cholesky", ("newton-cholesky",)),),
    ),
    "multinomial": Work(
        title="multinomial, {:,} x 100, 10 classes, correlated columns, condition 300",
        n_rows=500_000,
        data=partial(
            synthetic.multinomial, n_columns=100, n_classes=10, condition=300.0, chunk_rows=62_500
        ),
        model=lambda tol: LogisticRegression(tol=tol),
        loss="multinomial",
        strength=1.0,
        peers=_LOGISTIC_PEERS,
        targets=(Target(0.3, _AT_ANY_GAP, gap=1e-4),),
    ),
    "poisson": Work(
        title="Poisson, {:,} x 30, correlated columns, condition 100",
        n_rows=2_000_000,
        data=partial(synthetic.poisson, n_columns=30, score_std=1.0, condition=100.0),
        model=lambda tol: PoissonRegressor(alpha=_POISSON_ALPHA, tol=tol),
        loss="poisson",
        strength=_POISSON_ALPHA,
        peers=("glum", "newton-cholesky", "lbfgs", "scikit-learn-intelex", "dask-ml",
               "Spark MLlib"),
        targets=(Target(0.25, "glum", ("glum",)),),
    ),
    "ridge": Work(
        title="ridge, {:,} x 50, independent columns",
        n_rows=4_000_000,
        data=partial(synthetic.linear, n_columns=50),
        model=lambda tol: Ridge(alpha=1.0, tol=tol),
        loss="squares",
        strength=1.0,
        peers=("scikit-learn-intelex", "scikit-learn", "glum", "dask-ml", "Spark MLlib"),
        targets=(
            Target(0.15, "scikit-learn", ("scikit-learn",)),
            Target(1.2, "scikit-learn-intelex", ("scikit-learn-intelex",)),
        ),
        most_passes=1.0,
    ),
    "lasso": Work(
        title="lasso, {:,} x 1,000, 50 non-zero, independent columns",
        n_rows=200_000,
        data=partial(
            synthetic.linear, n_columns=1_000, n_informative=50, score_std=2.0, noise_std=2.0,
            chunk_rows=10_000,
        ),
        model=lambda tol: Lasso(alpha=_LASSO_ALPHA, tol=tol),
        loss="mean squares",
        strength=_LASSO_ALPHA,
        absolute=True,
        peers=("scikit-learn-intelex", "scikit-learn", "scikit-learn, precompute", "glum",
               "dask-ml", "Spark MLlib"),
        targets=(Target(0.5, _BEST_PEER, gap=1e-4),),
    ),
    "l1-logistic": Work(
        title="L1-logistic, {:,} x 1,000, 50 non-zero, independent columns",
        n_rows=200_000,
        data=partial(synthetic.wide, n_informative=50),
        model=lambda tol: LogisticRegression(
            C=_ABSOLUTE_C, l1_ratio=1.0, fit_intercept=False, tol=tol
        ),
        loss="logistic",
        strength=_ABSOLUTE_C,
        absolute=True,
        # liblinear penalises an intercept, so nobody has one.
        fit_intercept=False,
        peers=("liblinear", "saga", "glum", "scikit-learn-intelex", "dask-ml", "Spark MLlib"),
        targets=(Target(0.5, _BEST_PEER, gap=1e-4),),
    ),
    "small": Work(
        title="logistic, NumPy input of {:,} x 28, no cluster, columns like those of HIGGS",
        n_rows=100_000,
        data=synthetic.higgs_like,
        model=lambda tol: LogisticRegression(tol=tol),
        loss="logistic",
        strength=1.0,
        peers=("lbfgs", "newton-cholesky"),
        targets=(Target(0.5, "lbfgs", ("lbfgs",)),),
        placed=here,
    ),
}  # fmt: skip

# Easier for methods that use gradients alone. The same is asked of them.
_EASIER = {
    "logistic": (
        "logistic, {:,} x 28 float32, columns like those of HIGGS, nearly independent",
        synthetic.higgs_like,
    ),
    "wide": (
        "logistic, {:,} x 1,000, scores of standard deviation 2, independent columns",
        synthetic.wide,
    ),
    "multinomial": (
        "multinomial, {:,} x 100, 10 classes, independent columns",
        partial(synthetic.multinomial, n_columns=100, n_classes=10, chunk_rows=62_500),
    ),
    "poisson": (
        "Poisson, {:,} x 30, independent columns",
        partial(synthetic.poisson, n_columns=30),
    ),
}
WORKS |= {
    f"{name}-independent": replace(WORKS[name], title=title, data=data)
    for name, (title, data) in _EASIER.items()
}
