"""How cost grows: with rows, with workers, with folds and values of C."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from distributed import wait
from figures import Figure, Part
from works import GAP, cluster

from dask_dml.datasets.synthetic import higgs_like
from dask_dml.linear_model import LogisticRegression

TURNS = 5
FOLDS, VALUES = 5, 20


def seconds_of(fit: Callable[[], Any]) -> float:
    start_s = time.perf_counter()
    fit()
    return time.perf_counter() - start_s


def in_turns(
    numerator: Callable[[], Any], denominator: Callable[[], Any], turns: int = TURNS
) -> tuple[float, str]:
    """Median ratio of two times, taken in turns after one of each, and how it came out."""
    numerator(), denominator()
    pairs = [(seconds_of(numerator), seconds_of(denominator)) for _ in range(turns)]
    above, below = (statistics.median(times) for times in zip(*pairs, strict=True))
    detail = f"{above:.3g} s against {below:.3g} s; median of {turns} pairs"
    return statistics.median(a / b for a, b in pairs), detail


def bench_rows(scale: float) -> Part:
    """Twice the rows."""
    n_rows = int(4_000_000 * scale)
    with cluster() as client:
        few = client.persist(higgs_like(n_rows))
        many = client.persist(higgs_like(2 * n_rows))
        wait([few, many])
        model = LogisticRegression(tol=GAP)
        ratio, detail = in_turns(lambda: model.fit(*many), lambda: model.fit(*few))
    what = f"logistic, {2 * n_rows:,} x 28 rows, time over {n_rows:,} rows"
    return Part([Figure(what, ratio, "x", 2.1, detail)])


def bench_workers(scale: float) -> Part:
    """Two workers of one core each, over one, on the same rows."""
    n_rows = int(4_000_000 * scale)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for n_workers in (1, 2, 1, 2):
        with cluster(n_workers=n_workers) as client:
            data = client.persist(higgs_like(n_rows))
            wait(data)
            fit = partial(LogisticRegression(tol=GAP).fit, *data)
            fit()
            seconds[n_workers] += [seconds_of(fit) for _ in range(TURNS)]
    one, two = (statistics.median(times) for times in seconds.values())
    what = f"logistic, {n_rows:,} x 28, time with two workers over one"
    detail = f"{two:.3g} s against {one:.3g} s; medians of {2 * TURNS}, two clusters of each"
    return Part([Figure(what, two / one, "x", math.inf, detail)])


def bench_folds(scale: float) -> Part:
    """A cross-validated fit of many values of C, over one fit."""
    from dask_dml.linear_model import LogisticRegressionCV

    n_rows = int(1_000_000 * scale)
    with cluster() as client:
        data = client.persist(higgs_like(n_rows, chunk_rows=max(n_rows // 16, 1)))
        wait(data)
        one = LogisticRegression(tol=GAP)
        many = LogisticRegressionCV(Cs=VALUES, cv=FOLDS, tol=GAP)
        ratio, detail = in_turns(lambda: many.fit(*data), lambda: one.fit(*data), turns=3)
    what = (
        f"LogisticRegressionCV, {n_rows:,} x 28, {FOLDS} folds x {VALUES} values of C, over one fit"
    )
    return Part([Figure(what, ratio, "x", 6.0, detail)])


BENCHES: dict[str, Callable[[float], Part]] = {
    "rows": bench_rows,
    "workers": bench_workers,
    "folds": bench_folds,
}
