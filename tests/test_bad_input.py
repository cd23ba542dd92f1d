"""Bad data through the public estimators: a right answer, or words that say what is wrong."""

from __future__ import annotations

import warnings

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import sklearn.linear_model as reference
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

import dask_dml as dml
from dask_dml.errors import DataError
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
    Ridge,
    TweedieRegressor,
)

LOCAL = dml.Runtime(client="local")
CHUNKS = (70, 0, 80, 150)

# A model without an answer that depends on the units of the columns, and one with.
FREE = {
    "logistic": lambda: LogisticRegression(np.inf),
    "least squares": LinearRegression,
    "huber": lambda: HuberRegressor(alpha=0.0),
    "poisson": lambda: PoissonRegressor(alpha=0.0),
    "gamma": lambda: GammaRegressor(alpha=0.0),
    "tweedie": lambda: TweedieRegressor(power=1.5, alpha=0.0),
}
PENALISED = {
    "logistic, l2": LogisticRegression,
    "logistic, l1": lambda: LogisticRegression(l1_ratio=1.0),
    "logistic, 3 classes": LogisticRegression,
    "ridge": Ridge,
    "lasso": lambda: Lasso(0.05),
    "elastic net": lambda: ElasticNet(0.05),
    "huber, l2": lambda: HuberRegressor(alpha=1.0),
    "svc": LinearSVC,
    "svr": LinearSVR,
    "poisson, l2": lambda: PoissonRegressor(alpha=0.1),
    "gamma, l2": lambda: GammaRegressor(alpha=0.1),
    "tweedie, l2": lambda: TweedieRegressor(power=1.5, alpha=0.1),
}
ALL = FREE | PENALISED


def made(name, n=300, seed=4):
    """Three columns with something to say, and a target of the kind that the model takes."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 3))
    scores = X @ np.array([0.6, -0.4, 0.2])
    if "3 classes" in name:
        return X, np.argmax(X @ rng.normal(size=(3, 3)) + rng.gumbel(size=(n, 3)), axis=1)
    if "logistic" in name or name == "svc":
        return X, (scores + rng.logistic(size=n) > 0).astype(int)
    if "poisson" in name or "tweedie" in name:
        return X, rng.poisson(np.exp(scores + 1.0)).astype(float)
    if "gamma" in name:
        return X, rng.gamma(2.0, np.exp(scores)) + 1e-3
    return X, scores + rng.standard_t(3, n)


def scores_of(model, X):
    return model.decision_function(X) if hasattr(model, "decision_function") else model.predict(X)


@pytest.mark.parametrize("name", FREE)
def test_collinear_and_constant_columns_change_no_prediction(name):
    X, y = made(name)
    more = np.column_stack([X, X[:, 0] - 2.0 * X[:, 1], np.full(len(X), 1e3), X[:, 2]])
    model, expected = FREE[name]().fit(more, y), FREE[name]().fit(X, y)
    np.testing.assert_allclose(scores_of(model, more), scores_of(expected, X), rtol=1e-5, atol=1e-6)
    assert np.abs(model.coef_).max() <= 2.0 * np.abs(expected.coef_).max()


@pytest.mark.parametrize("name", PENALISED)
def test_with_a_penalty_collinear_columns_have_a_certified_answer(name):
    X, y = made(name)
    more = np.column_stack([X, X[:, 0] - 2.0 * X[:, 1], np.full(len(X), 1e3), X[:, 2]])
    model = PENALISED[name]().fit(more, y)
    if name != "logistic, l1":  # whose Hessian on equal columns is singular: nan, no bound
        assert model.gap_ <= 1e-7
    if name in ("svc", "svr"):  # whose penalty on the intercept a constant column evades
        return
    fewer = np.delete(more, 4, axis=1)
    without = PENALISED[name]().fit(fewer, y)
    np.testing.assert_allclose(
        scores_of(model, more), scores_of(without, fewer), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("name", FREE)
def test_scales_from_the_smallest_to_the_largest_change_nothing(name):
    X, y = made(name)
    scales, shifts = np.array([1e-8, 1.0, 1e8]), np.array([1e-7, 0.0, 1e10])
    model, expected = FREE[name]().fit(X * scales + shifts, y), FREE[name]().fit(X, y)
    np.testing.assert_allclose(model.coef_ * scales, expected.coef_, rtol=1e-5, atol=1e-7)
    assert model.gap_ <= 1e-8


@pytest.mark.parametrize("name", PENALISED)
def test_with_a_penalty_scales_that_are_far_apart_have_a_certified_answer(name):
    X, y = made(name, n=20_000 if name.startswith("sv") else 300)
    model = PENALISED[name]().fit(X * [1e-8, 1.0, 1e8], y)
    assert model.gap_ <= 1e-8


@pytest.mark.parametrize("name", ALL)
def test_rows_without_weight_and_empty_blocks_are_as_if_they_were_not_there(name):
    X, y = made(name)
    weight = np.ones(len(y))
    weight[70:150] = 0.0  # the whole third block, with wild values in it
    X[70:150] *= 1e6
    model = (
        ALL[name]()
        .set_params(runtime=LOCAL)
        .fit(
            da.from_array(X, chunks=(CHUNKS, (3,))),
            da.from_array(y, chunks=(CHUNKS,)),
            da.from_array(weight, chunks=(CHUNKS,)),
        )
    )
    expected = ALL[name]().fit(X[weight > 0], y[weight > 0])
    np.testing.assert_allclose(model.coef_, expected.coef_, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.intercept_, expected.intercept_, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PENALISED)
def test_fewer_rows_than_columns_have_a_certified_answer_with_a_penalty(name):
    rng = np.random.default_rng(8)
    X = np.column_stack([made(name, n=30)[0], rng.normal(size=(30, 80))])
    y = made(name, n=30)[1]
    with warnings.catch_warnings():
        if name == "huber, l2":  # all rows may lie on one plane
            warnings.simplefilter("ignore", ConvergenceWarning)
        model = PENALISED[name]().fit(X, y)
    assert model.gap_ <= 1e-7 or name == "huber, l2"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Ridge(), reference.Ridge(solver="svd")),
        (
            PoissonRegressor(alpha=0.1),
            reference.PoissonRegressor(alpha=0.1, tol=1e-10, max_iter=2000),
        ),
        (LogisticRegression(), reference.LogisticRegression(tol=1e-12)),
    ],
    ids=["ridge", "poisson", "logistic"],
)
def test_thousands_of_columns_of_a_few_rows_have_the_answer_of_scikit_learn(ours, theirs):
    rng = np.random.default_rng(10)
    X = rng.normal(size=(60, 3000)) * np.exp(0.3 * rng.normal(size=3000))
    y = X[:, :20].sum(axis=1)
    y = y if isinstance(ours, Ridge) else (y > 0.0).astype(float)
    model, expected = clone(ours).set_params(max_iter=300).fit(X, y), theirs.fit(X, y)
    assert model.gap_ <= 1e-8
    scale = np.abs(expected.coef_).max()
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e-4 * scale)


def test_a_gap_that_is_not_certain_to_be_as_small_as_it_should_be_is_said():
    rng = np.random.default_rng(11)
    X = rng.normal(size=(60, 3000)) * 10.0 ** np.linspace(-8.0, 8.0, 3000)
    with pytest.warns(ConvergenceWarning, match="no closer than a relative gap of .* is certain"):
        model = Ridge().fit(X, X[:, -1] / 1e8)
    assert model.gap_ > model.tol


def test_fewer_rows_than_columns_give_least_squares_its_solution_of_least_norm():
    X = np.random.default_rng(9).normal(size=(12, 40))
    y = X[:, 0] + 1.0
    model = LinearRegression(fit_intercept=False).fit(X, y)
    np.testing.assert_allclose(model.coef_, np.linalg.pinv(X) @ y, atol=1e-10)


def test_counts_of_a_million():
    rng = np.random.default_rng(5)
    X = rng.normal(size=(300, 3))
    mean = 1e6 * np.exp(X @ [0.3, -0.2, 0.1])
    model = PoissonRegressor(alpha=0.0).fit(X, rng.poisson(mean).astype(float))
    np.testing.assert_allclose(model.coef_, [0.3, -0.2, 0.1], atol=1e-3)
    assert model.gap_ <= 1e-8


@pytest.mark.parametrize(
    "odd",
    [["a", "b"] * 5, pd.date_range("2013-01-01", periods=10), pd.Categorical(["a", "b"] * 5)],
    ids=["text", "dates", "categories"],
)
def test_columns_of_a_frame_that_are_not_numeric_are_named(odd):
    frame = pd.DataFrame({"x": np.arange(10.0), "odd one": odd})
    with pytest.raises(DataError, match=r"not numeric: 'odd one' \(.*encode or drop"):
        Ridge().fit(frame, np.arange(10.0))
    with pytest.raises(DataError, match="'odd one'"):
        Ridge().fit(frame[["odd one"]], np.arange(10.0))


def test_numbers_in_a_frame_count_whatever_holds_them():
    values = np.arange(10.0)
    frame = pd.DataFrame(
        {
            "object": values.astype(object),
            "category": pd.Categorical(values % 3),
            "flag": values > 4,
        }
    )
    fitted = Ridge().fit(frame, values)
    np.testing.assert_array_equal(fitted.coef_, Ridge().fit(frame.astype(float), values).coef_)


# -- no optimum --------------------------------------------------------------------------------


def separable(kind, n=300):
    rng = np.random.default_rng(6)
    X = rng.normal(size=(n, 3))
    scores = X @ np.array([1.0, 2.0, -1.0])
    if kind == "two classes":
        return X, (scores > 0).astype(int)
    if kind == "three classes":
        return X, np.argmax(X @ rng.normal(size=(3, 3)), axis=1)
    if kind == "more columns than rows":
        return rng.normal(size=(30, 60)), np.arange(30) % 2
    y = (scores + rng.logistic(size=n) > 0).astype(int)
    rare = rng.random(n) < 0.1
    if kind == "one of three classes":
        X[:, 2] = np.where(X[:, 0] > 1.0, 2.0, -1.0)
        return X, np.where(X[:, 2] > 0.0, 2, y)
    y[rare] = 1
    X = np.column_stack([X, rare])
    if kind == "some rows, among collinear columns":
        X = np.column_stack([X, X[:, 0] + X[:, 3], np.ones(n)])
    return X, y


SEPARABLE = [
    "two classes",
    "three classes",
    "more columns than rows",
    "some rows",
    "some rows, among collinear columns",
    "one of three classes",
]


@pytest.mark.parametrize("kind", SEPARABLE)
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_separable_classes_without_a_penalty_are_said(kind, fit_intercept):
    X, y = separable(kind)
    with pytest.warns(ConvergenceWarning, match=r"classes are separable.*set C to a finite"):
        model = LogisticRegression(np.inf, fit_intercept=fit_intercept).fit(X, y)
    assert np.isnan(model.gap_)
    assert LogisticRegression(1e3, fit_intercept=fit_intercept).fit(X, y).gap_ <= 1e-8


@pytest.mark.parametrize("solver", ["lbfgs", "gd"])
def test_separable_classes_are_said_by_every_solver_and_over_blocks(solver):
    X, y = separable("two classes")
    blocks = da.from_array(X, chunks=(CHUNKS, (3,))), da.from_array(y, chunks=(CHUNKS,))
    with pytest.warns(ConvergenceWarning, match="classes are separable"):
        LogisticRegression(np.inf, solver=solver, runtime=LOCAL).fit(*blocks)


def test_small_weights_do_not_hide_a_separation():
    X, y = separable("two classes")
    with pytest.warns(ConvergenceWarning, match="classes are separable"):
        LogisticRegression(np.inf).fit(X, y, np.where(y == 1, 1e-6, 1e3))


@pytest.mark.parametrize("n_wrong", [1, 3])
@pytest.mark.parametrize("max_iter", [4, 100])
@pytest.mark.filterwarnings("ignore:.*stopped before a relative gap.*max_iter")
def test_classes_that_nearly_separate_are_not_called_separable(n_wrong, max_iter):
    X, y = separable("two classes")
    sure = np.argsort(-np.abs(X @ [1.0, 2.0, -1.0]))[:n_wrong]
    y[sure] = 1 - y[sure]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        LogisticRegression(np.inf, max_iter=max_iter).fit(X, y)
    assert not any("separable" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("model", [PoissonRegressor(), TweedieRegressor(power=1.5)])
def test_counts_that_are_zero_wherever_a_column_is_not_are_said(model):
    X, y = made("poisson")
    rare = np.random.default_rng(7).random(len(y)) < 0.1
    y[rare] = 0.0
    X = np.column_stack([X, rare])
    with pytest.warns(ConvergenceWarning, match=r"target of 0.*alpha > 0"):
        clone(model).set_params(alpha=0.0).fit(X, y)
    assert clone(model).set_params(alpha=1e-3).fit(X, y).gap_ <= 1e-8


def test_a_perfect_fit_of_positive_targets_is_said():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(10, 30))
    with pytest.warns(ConvergenceWarning, match="fitted to the last digit"):
        model = GammaRegressor(alpha=0.0).fit(X, rng.gamma(2.0, size=10))
    assert model.n_passes_ <= 30.0
