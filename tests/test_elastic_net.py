"""L1 and elastic net penalties: scikit-learn's coefficients, and a gap that is one."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import sklearn.linear_model as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning

from dask_dml.errors import IncompatibleError
from dask_dml.linear_model import ElasticNet, Lasso, LogisticRegression
from dask_dml.solvers.proximal import least_subgradient, minimum_of_model


def made(kind="dense", n=400, p=12, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p))
    if kind == "wide":
        X = rng.normal(size=(40, 90))
    if kind == "collinear":
        X = np.column_stack([X, X[:, :3] + X[:, 3:6], np.full(len(X), 5.0)])
    if kind == "far from zero":
        X += 100.0
    coef = rng.normal(size=X.shape[1]) * (rng.random(X.shape[1]) < 0.4)
    y = X @ coef + rng.normal(size=len(X))
    weight = rng.uniform(0.1, 2.0, len(X)) if kind == "weighted" else None
    return X, y, weight


@pytest.mark.parametrize("kind", ["dense", "wide", "collinear", "far from zero", "weighted"])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("alpha", [0.01, 0.3])
@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_least_squares_agree_with_scikit_learn(kind, fit_intercept, alpha, ratio):
    X, y, weight = made(kind)
    arguments = {"alpha": alpha, "fit_intercept": fit_intercept}
    if ratio == 1.0:
        model, expected = Lasso(**arguments), sk.Lasso(**arguments, tol=1e-13, max_iter=10**6)
    else:
        model = ElasticNet(**arguments, l1_ratio=ratio)
        expected = sk.ElasticNet(**arguments, l1_ratio=ratio, tol=1e-13, max_iter=10**6)
    model.fit(X, y, weight)
    is_steep = kind == "far from zero" and not fit_intercept
    with warnings.catch_warnings():
        if is_steep:  # too ill-conditioned for coordinate descent alone
            warnings.simplefilter("ignore", ConvergenceWarning)
        expected.fit(X, y, weight)
    assert model.n_passes_ == 1.0

    def objective(m):
        w = np.ones(len(y)) if weight is None else weight
        left = w @ (y - m.predict(X)) ** 2 / (2.0 * w.sum())
        absolute, squares = np.abs(m.coef_).sum(), m.coef_ @ m.coef_
        return left + alpha * (ratio * absolute + (1.0 - ratio) / 2.0 * squares)

    assert objective(model) <= objective(expected) * (1.0 + 1e-10)
    assert model.gap_ <= 1e-8 or np.isnan(model.gap_)
    if is_steep:
        return
    np.testing.assert_allclose(model.predict(X), expected.predict(X), atol=2e-5)
    if kind != "collinear":  # there the solution is not unique
        np.testing.assert_allclose(model.coef_, expected.coef_, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(model.coef_ == 0.0, np.abs(expected.coef_) < 1e-9)
        assert model.gap_ <= 1e-8


@pytest.mark.parametrize("ratio", [1.0, 0.3])
@pytest.mark.parametrize("C", [0.02, 1.0])
@pytest.mark.parametrize("weighted", [True, False])
def test_logistic_regression_agrees_with_scikit_learn(ratio, C, weighted):
    rng = np.random.default_rng(4)
    X = rng.normal(size=(1500, 15))
    y = rng.random(1500) < 1.0 / (1.0 + np.exp(-X[:, 0] + 0.5 * X[:, 1]))
    weight = rng.uniform(0.0, 2.0, 1500) if weighted else None
    model = LogisticRegression(C=C, l1_ratio=ratio, tol=1e-12).fit(X, y, weight)
    expected = sk.LogisticRegression(
        C=C, l1_ratio=ratio, solver="saga", tol=1e-11, max_iter=100_000
    ).fit(X, y, weight)
    assert model.gap_ <= 1e-12
    np.testing.assert_allclose(model.coef_, expected.coef_, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(model.coef_ == 0.0, np.abs(expected.coef_) < 1e-8)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), max_iter=st.integers(1, 3), C=st.floats(0.01, 10.0))
def test_the_gap_bounds_what_is_left_wherever_a_fit_stops(seed, max_iter, C):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(60, 4))
    y = rng.random(60) < 1.0 / (1.0 + np.exp(-2.0 * X[:, 0]))
    y[:2] = [True, False]

    def objective(m):
        scores = X @ m.coef_[0] + m.intercept_[0]
        losses = np.logaddexp(0.0, np.where(y, -scores, scores))
        return C * losses.sum() + np.abs(m.coef_).sum()

    arguments = {"C": C, "l1_ratio": 1.0}
    best = objective(LogisticRegression(**arguments, tol=1e-13).fit(X, y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(**arguments, tol=1e-13, max_iter=max_iter).fit(X, y)
    left = (objective(model) - best) / objective(model)
    assert np.isnan(model.gap_) or left <= model.gap_ + 1e-14


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), rank=st.integers(1, 12), strength=st.floats(0.0, 2.0))
def test_the_model_is_minimised(seed, rank, strength):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(rank, 8))
    hessian, linear = root.T @ root, root.T @ rng.normal(size=rank)
    absolute = np.full(8, strength)
    found = minimum_of_model(hessian, linear, absolute, np.zeros(8))
    left = least_subgradient(found, hessian @ found + linear, absolute)
    assert np.abs(left).max() <= 1e-6 * (1.0 + np.abs(linear).max())


@pytest.mark.parametrize(
    "model", [Lasso(solver="lbfgs"), LogisticRegression(l1_ratio=0.5, solver="gd")]
)
def test_solvers_without_a_proximal_step_are_refused(model):
    with pytest.raises(IncompatibleError, match="proximal"):
        model.fit([[0.0], [1.0]], [0, 1])


@pytest.mark.parametrize("ratio", [1.0, 0.5])
@pytest.mark.parametrize("C", [0.02, 1.0])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_three_classes_agree_with_scikit_learn(ratio, C, fit_intercept):
    rng = np.random.default_rng(6)
    X = rng.normal(size=(600, 8))
    y = (X[:, :3] + rng.gumbel(size=(600, 3))).argmax(axis=1)
    arguments = {"C": C, "l1_ratio": ratio, "fit_intercept": fit_intercept}
    model = LogisticRegression(**arguments, tol=1e-12).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        expected = sk.LogisticRegression(**arguments, solver="saga", tol=1e-11, max_iter=10**5)
        expected.fit(X, y)

    def objective(m):
        losses = -m.predict_log_proba(X)[np.arange(600), y].sum()
        absolute, squares = np.abs(m.coef_).sum(), (m.coef_**2).sum()
        return C * losses + ratio * absolute + (1.0 - ratio) / 2.0 * squares

    left = objective(model) / objective(expected) - 1.0
    assert left <= model.gap_ + 1e-14
    assert model.gap_ <= 1e-12
    np.testing.assert_allclose(model.coef_, expected.coef_, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(model.coef_ == 0.0, np.abs(expected.coef_) < 1e-8)
    np.testing.assert_allclose(model.predict_proba(X), expected.predict_proba(X), atol=1e-6)


def test_classes_whose_optimum_is_not_unique_have_a_gap():
    # Of four classes two may gain what two lose, at no cost.
    rng = np.random.default_rng(8)
    X = rng.normal(size=(600, 8))
    y = (X[:, :4] + rng.gumbel(size=(600, 4))).argmax(axis=1)
    model = LogisticRegression(C=10.0, l1_ratio=1.0).fit(X, y)
    assert model.gap_ <= 1e-8


def test_the_gap_of_several_classes_bounds_what_is_left_wherever_a_fit_stops():
    rng = np.random.default_rng(7)
    X = rng.normal(size=(200, 5))
    y = (2.0 * X[:, :3] + rng.gumbel(size=(200, 3))).argmax(axis=1)
    model = LogisticRegression(l1_ratio=1.0, tol=1e-12).fit(X, y)
    history = model.history_
    best = history["objective"].iloc[-1]
    left = (history["objective"] - best) / history["objective"]
    certain = history["gap"].notna()
    assert certain.sum() >= 2
    assert np.all(left[certain] <= history["gap"][certain] + 1e-14)
