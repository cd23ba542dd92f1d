"""Small problems are fitted in this process, with the bits that the cluster would give."""

from __future__ import annotations

import dask
import pytest
from dask.delayed import delayed

import dask_dml as dml
from dask_dml.errors import DaskDMLError
from dask_dml.linear_model import LogisticRegression


@pytest.fixture
def small():
    with dask.config.set({"dml.small-bytes": 1_000_000}):
        yield


@pytest.mark.parametrize("given", ["numpy", "persisted", "lazy"])
def test_a_small_problem_is_fetched_and_has_the_same_bits(client, problem, small, given):
    X, y = problem.X, problem.two
    weight = problem.weight
    if given != "numpy":
        X, y, weight = (problem.lazy(values) for values in (X, y, weight))
    if given == "persisted":
        X, y, weight = client.persist([X, y, weight])
    fitted = LogisticRegression().fit(X, y, weight)
    assert fitted.history_.attrs["where"].startswith("in this process, sooner than a cluster: ")
    assert set(fitted.history_["workers"]) == {1}
    spread = LogisticRegression(runtime=dml.Runtime(client=client)).fit(X, y, weight)
    assert spread.history_.attrs["where"] == "on a cluster"
    assert fitted.coef_.tobytes() == spread.coef_.tobytes()
    assert fitted.gap_ == spread.gap_


def test_what_is_not_small_or_was_asked_for_otherwise_stays_on_the_cluster(client, problem, small):
    data = problem.X, problem.two
    assert LogisticRegression(solver="lbfgs").fit(*data).history_.attrs["where"] == "on a cluster"
    with dask.config.set({"dml.small-bytes": problem.X.nbytes - 1}):
        assert LogisticRegression().fit(*data).history_.attrs["where"] == "on a cluster"


def test_rows_that_cannot_be_made_are_told_of_by_the_fit_on_the_cluster(client, problem, small):
    def broken():
        raise OSError("the disk is gone")

    chunk = dask.array.from_delayed(delayed(broken)(), problem.X.shape, problem.X.dtype)
    with pytest.raises((DaskDMLError, OSError), match="the disk is gone"):
        LogisticRegression().fit(chunk, dask.array.from_array(problem.two, chunks=-1))
