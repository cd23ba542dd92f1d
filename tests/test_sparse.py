"""Fits on sparse rows: the optimum of the dense fit, in the memory of the values."""

from __future__ import annotations

import tracemalloc

import dask.array as da
import numpy as np
import pytest
import scipy.sparse
from sklearn import linear_model as reference

import dask_dml as dml
from dask_dml.data.layout import BlockGrid
from dask_dml.errors import DataError
from dask_dml.linear_model import LogisticRegression, PoissonRegressor, Ridge

N, P = 600, 12


@pytest.fixture(autouse=True)
def never_dense(monkeypatch):
    def refused(*_arguments, **_options):
        raise AssertionError("sparse rows were made dense")

    for kind in (scipy.sparse.csr_matrix, scipy.sparse.csr_array):
        monkeypatch.setattr(kind, "toarray", refused)
        monkeypatch.setattr(kind, "todense", refused)


@pytest.fixture
def small_blocks(monkeypatch):
    def choose(n_rows, n_columns, *_, **__):
        return BlockGrid.regular(n_rows, n_columns, 170, n_columns)

    monkeypatch.setattr("dask_dml.estimator.choose_grid", choose)


@pytest.fixture(scope="module")
def rows():
    """Columns of which most values are zero, and one that is far from zero everywhere."""
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(N, P)) * (rng.random((N, P)) < 0.3)
    dense[:, 3] = 100.0 + rng.normal(size=N)
    scores = dense @ rng.normal(size=(P, 3)) / 2
    scores -= scores.mean(axis=0)
    targets = {
        "number": scores[:, 0] + rng.normal(size=N),
        "count": rng.poisson(np.exp(np.clip(scores[:, 0], -3, 2))),
        "two": (scores[:, 0] + rng.logistic(size=N) > 0).astype(int),
        "three": (scores + rng.gumbel(size=(N, 3))).argmax(axis=1),
    }
    return dense, scipy.sparse.csr_array(dense), targets, rng.uniform(0.2, 2.0, N)


CLOSE = {"tol": 1e-12, "max_iter": 10_000}
MODELS = {
    "logistic": (LogisticRegression(C=0.5), reference.LogisticRegression(C=0.5, **CLOSE), "two"),
    "lbfgs": (
        LogisticRegression(C=0.5, solver="lbfgs"),
        reference.LogisticRegression(C=0.5, **CLOSE),
        "two",
    ),
    "multinomial": (
        LogisticRegression(C=0.5),
        reference.LogisticRegression(C=0.5, **CLOSE),
        "three",
    ),
    "ridge": (Ridge(alpha=2.0), reference.Ridge(alpha=2.0, solver="cholesky"), "number"),
    "no intercept": (
        Ridge(alpha=2.0, fit_intercept=False),
        reference.Ridge(alpha=2.0, fit_intercept=False, solver="cholesky"),
        "number",
    ),
    "poisson": (
        PoissonRegressor(alpha=0.1),
        reference.PoissonRegressor(alpha=0.1, solver="newton-cholesky", **CLOSE),
        "count",
    ),
}


def fitted_reference(model, X, y, weight):
    # lbfgs stops early on a column far from zero; without penalty of the intercept, moving the
    # column moves that alone.
    if model.fit_intercept:
        X = X - np.average(X, axis=0, weights=weight)
    return model.fit(X, y, weight)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", MODELS)
def test_coefficients_are_those_of_scikit_learn_on_dense_rows(rows, name):
    dense, sparse, targets, weight = rows
    model, other, target = MODELS[name]
    y = targets[target]
    expected = fitted_reference(other, dense, y, weight)
    fitted = model.fit(sparse, y, weight)
    np.testing.assert_allclose(fitted.coef_, expected.coef_, rtol=1e-6, atol=1e-6)
    lazy = da.from_array(sparse, chunks=(170, P), asarray=False)
    again = model.fit(lazy, da.from_array(y, chunks=170), da.from_array(weight, chunks=170))
    np.testing.assert_array_equal(again.coef_, fitted.coef_)
    np.testing.assert_array_equal(again.predict(lazy).compute(), fitted.predict(sparse))


def test_float32_rows_are_summed_in_float64(rows):
    dense, sparse, targets, _ = rows
    narrow = dense.astype(np.float32)
    expected = LogisticRegression().fit(narrow.astype(np.float64), targets["two"])
    fitted = LogisticRegression().fit(sparse.astype(np.float32), targets["two"])
    np.testing.assert_allclose(fitted.coef_, expected.coef_, rtol=1e-7)


def test_the_rows_of_the_caller_are_left_as_they_were(rows):
    _, sparse, targets, _ = rows
    odd = sparse[:, ::-1].tocoo().tocsr()
    odd.sort_indices()
    odd.indices[: odd.indptr[1]] = odd.indices[: odd.indptr[1]][::-1].copy()
    odd.data[: odd.indptr[1]] = odd.data[: odd.indptr[1]][::-1].copy()
    odd.has_sorted_indices = False
    data, indices = odd.data.copy(), odd.indices.copy()
    LogisticRegression().fit(odd, targets["two"])
    np.testing.assert_array_equal(odd.data, data)
    np.testing.assert_array_equal(odd.indices, indices)


@pytest.mark.usefixtures("small_blocks")
def test_a_value_that_cannot_be_fitted_is_named(rows):
    _, sparse, targets, _ = rows
    bad = sparse.copy()
    bad.data[bad.indptr[200] + np.flatnonzero(bad.indices[bad.indptr[200] :] == 3)[0]] = np.nan
    with pytest.raises(DataError, match=r"NaN in block 1, column 3 .* row 30 of the block"):
        LogisticRegression().fit(bad, targets["two"])


def test_wide_rows_are_fitted_in_the_memory_of_their_values():
    n, p, in_row = 20_000, 50_000, 20
    rng = np.random.default_rng(0)
    indices = rng.integers(0, p, n * in_row, dtype=np.int32)
    indptr = in_row * np.arange(n + 1, dtype=np.int32)
    X = scipy.sparse.csr_matrix((np.ones(n * in_row), indices, indptr), shape=(n, p))
    y = X @ rng.normal(size=p) > 0
    tracemalloc.start()
    model = LogisticRegression(solver="lbfgs", C=0.1, tol=1e-4).fit(X, y)
    score = model.score(X, y)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert score > 0.9
    assert peak_bytes < 200e6, "dense rows would have taken 8 GB"


@pytest.mark.parametrize("target", ["two", "three"])
def test_a_store_of_sparse_rows_gives_the_bits_of_the_rows(rows, tmp_path, target):
    _, sparse, targets, weight = rows
    y = targets[target]
    store = tmp_path / "rows.zarr"
    dataset = dml.write_dataset(store, sparse, y, chunks=(170, -1), sample_weight=weight)
    source = da.from_array(sparse, chunks=(170, P), asarray=False)
    plain = LogisticRegression().fit(source, da.from_array(y), da.from_array(weight))
    model = LogisticRegression().fit(store)
    np.testing.assert_array_equal(model.coef_, plain.coef_)
    np.testing.assert_array_equal(model.predict(dataset).compute(), plain.predict(sparse))
    assert model.score(dataset.X, dataset.y) == pytest.approx(plain.score(sparse, y))


@pytest.mark.parametrize("form", [scipy.sparse.csc_array, scipy.sparse.coo_array])
def test_blocks_of_other_sparse_formats_are_brought_to_rows(rows, form):
    _, sparse, targets, _ = rows
    source = da.from_array(sparse, chunks=(170, P), asarray=False)
    odd = source.map_blocks(form, meta=form((0, P)))
    y = da.from_array(targets["two"])
    plain = LogisticRegression().fit(source, y)
    model = LogisticRegression().fit(odd, y)
    np.testing.assert_array_equal(model.coef_, plain.coef_)
