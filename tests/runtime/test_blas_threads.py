"""The number of BLAS threads of the process changes no bit, and is left as it was."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController, threadpool_limits

import dask_dml as dml
from dask_dml.linear_model import LogisticRegression
from dask_dml.objective import blas


@pytest.fixture(scope="module")
def problem():
    # Wide enough for BLAS to share a factorisation among threads.
    rng = np.random.default_rng(0)
    X = rng.normal(size=(4_000, 150)) * np.logspace(-2, 2, 150)
    return X, X[:, 0] * 20 + rng.logistic(size=4_000) > 0


def blas_threads():
    found = ThreadpoolController().info()
    return [library["num_threads"] for library in found if library["user_api"] == "blas"]


@pytest.mark.parametrize("solver", ["newton", "lbfgs"])
def test_the_solver_has_the_same_bits_on_any_number_of_threads(problem, solver):
    fits = []
    for n_threads in (1, 2):
        with threadpool_limits(n_threads, user_api="blas"):
            model = LogisticRegression(solver=solver, runtime=dml.Runtime(client="local"))
            fits.append(model.fit(*problem))
    one, two = fits
    assert one.coef_.tobytes() == two.coef_.tobytes()
    assert one.gap_ == two.gap_


def test_a_fit_leaves_the_number_of_threads_as_it_was(problem):
    blas._blas_threads.cache_clear()
    before = blas_threads()
    LogisticRegression(runtime=dml.Runtime(client="local")).fit(*problem)
    assert blas_threads() == before


def test_threads_that_come_first_together_share_one_state(monkeypatch):
    together = threading.Barrier(2)
    made = []

    class Slow:
        """Is under way until a second one is, or long enough to know that none will be."""

        lib_controllers = ()

        def __init__(self):
            made.append(self)
            try:
                together.wait(timeout=0.5)
            except threading.BrokenBarrierError:
                return

    monkeypatch.setattr(blas, "ThreadpoolController", Slow)
    blas._blas_threads.cache_clear()
    try:
        threads = [threading.Thread(target=blas.single_threaded_blas) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 1
    finally:
        blas._blas_threads.cache_clear()
