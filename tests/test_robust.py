"""Huber regression: the optimum over coefficients and scale, and a gap that bounds what is left."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import sklearn.linear_model as sk
from scipy.optimize import minimize, root
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model._huber import _huber_loss_and_gradient

import dask_dml as dml
from dask_dml.errors import IncompatibleError
from dask_dml.linear_model import HuberRegressor

LOCAL = dml.Runtime(client="local")


def made(tails="light", n=400, p=4, seed=2):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p)) + 0.5
    noise = rng.standard_cauchy(n) if tails == "heavy" else rng.normal(size=n)
    return X, X @ rng.normal(size=p) + 3.0 + noise, rng.uniform(0.0, 2.0, n)


def objective(model, X, y, weight, parameters=None):
    """scikit-learn's own function, and its gradient."""
    if parameters is None:
        intercept = [model.intercept_] if model.fit_intercept else []
        parameters = np.concatenate([model.coef_, intercept, [model.scale_]])
    weight = np.ones(len(y)) if weight is None else weight
    return _huber_loss_and_gradient(parameters, X, y, model.epsilon, model.alpha, weight)


def optimum(model, X, y, weight):
    """The optimum by a quasi-Newton method from scikit-learn's looser one."""
    rough = sk.HuberRegressor(
        epsilon=model.epsilon, alpha=model.alpha, fit_intercept=model.fit_intercept, tol=1e-8
    ).fit(X, y, weight)
    start = [*rough.coef_, *([rough.intercept_] if model.fit_intercept else []), rough.scale_]
    near = minimize(lambda v: objective(model, X, y, weight, v), start, jac=True)
    # Where the objective has no digits left, its gradient still has.
    found = root(lambda v: objective(model, X, y, weight, v)[1], near.x, tol=1e-13)
    assert np.abs(found.fun).max() <= 1e-9
    return found.x


@pytest.mark.parametrize("tails", ["light", "heavy"])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("arguments", [{"alpha": 0.0}, {"alpha": 3.0}, {"epsilon": 1.1}])
@pytest.mark.parametrize("weighted", [True, False])
def test_coefficients_and_scale_are_those_of_scikit_learns_objective(
    tails, fit_intercept, arguments, weighted
):
    X, y, weight = made(tails)
    weight = weight if weighted else None
    model = HuberRegressor(fit_intercept=fit_intercept, tol=1e-11, **arguments).fit(X, y, weight)
    assert model.gap_ <= 1e-11
    assert model.n_passes_ <= 15.0
    expected = optimum(model, X, y, weight)
    np.testing.assert_allclose(model.coef_, expected[:4], rtol=1e-6)
    np.testing.assert_allclose(model.scale_, expected[-1], rtol=1e-6)
    if fit_intercept:
        np.testing.assert_allclose(model.intercept_, expected[4], rtol=1e-6)
    rough = sk.HuberRegressor(fit_intercept=fit_intercept, max_iter=1000, tol=1e-7, **arguments)
    rough.fit(X, y, weight)
    np.testing.assert_allclose(model.coef_, rough.coef_, rtol=1e-2)
    np.testing.assert_array_equal(
        model.outliers_, np.abs(y - model.predict(X)) > model.scale_ * model.epsilon
    )


@pytest.mark.parametrize("max_iter", range(1, 8))
@pytest.mark.parametrize("alpha", [0.0, 10.0])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_gap_bounds_what_is_left_wherever_a_fit_stops(max_iter, alpha):
    X, y, weight = made("heavy")
    best = HuberRegressor(alpha=alpha, tol=1e-13).fit(X, y, weight)
    least, _ = objective(best, X, y, weight)
    model = HuberRegressor(alpha=alpha, tol=1e-13, max_iter=max_iter).fit(X, y, weight)
    value, _ = objective(model, X, y, weight)
    assert np.isnan(model.gap_) or (value - least) / value <= model.gap_ + 1e-13


def test_units_do_not_matter():
    X, y, _ = made("heavy")
    scales = np.array([1e-8, 1.0, 1e4, 1e8])
    model = HuberRegressor(alpha=0.0, tol=1e-10).fit(X * scales, 1e6 * y + 1e9)
    expected = HuberRegressor(alpha=0.0, tol=1e-10).fit(X, y)
    np.testing.assert_allclose(model.coef_ * scales / 1e6, expected.coef_, rtol=1e-6)
    np.testing.assert_allclose(model.scale_ / 1e6, expected.scale_, rtol=1e-6)


def test_collinear_and_constant_columns():
    X, y, weight = made("heavy")
    more = np.column_stack([X, X[:, 0] + X[:, 1], np.full(len(X), 7.0)])
    model = HuberRegressor(alpha=0.0).fit(more, y, weight)
    expected = HuberRegressor(alpha=0.0).fit(X, y, weight)
    np.testing.assert_allclose(model.predict(more), expected.predict(X), rtol=1e-6, atol=1e-6)
    assert model.gap_ <= 1e-8


def test_blocks_give_the_same_model_and_lazy_outliers():
    X, y, weight = made("heavy")
    weight[100:200] = 0.0
    blocks = da.from_array(X, chunks=(100, -1)), da.from_array(y, chunks=100)
    model = HuberRegressor(runtime=LOCAL, tol=1e-11).fit(*blocks, da.from_array(weight, chunks=100))
    expected = HuberRegressor(tol=1e-11).fit(X, y, weight)
    np.testing.assert_allclose(model.coef_, expected.coef_, rtol=1e-7)
    assert isinstance(model.outliers_, da.Array)
    np.testing.assert_array_equal(model.outliers_.compute(), expected.outliers_)


def test_a_warm_start_goes_on_from_the_scale_too():
    X, y, _ = made("heavy")
    model = HuberRegressor(warm_start=True).fit(X, y)
    first = model.n_passes_
    assert model.fit(X, y).n_passes_ < first
    assert model.gap_ <= 1e-8


def test_a_saved_model_has_its_scale(tmp_path):
    X, y, _ = made()
    model = HuberRegressor().fit(X, y)
    model.save(tmp_path / "model.zarr")
    loaded = dml.load_model(tmp_path / "model.zarr")
    assert loaded.scale_ == model.scale_
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))


@pytest.mark.parametrize("share_exact", [0.7, 1.0])
def test_a_scale_that_falls_to_zero_is_said(share_exact):
    X, y, _ = made("heavy")
    exact = np.arange(len(y)) < share_exact * len(y)
    y[exact] = X[exact] @ np.array([1.0, -2.0, 3.0, 0.5]) + 4.0
    with pytest.warns(ConvergenceWarning, match="scale falls to zero"):
        model = HuberRegressor(alpha=0.0).fit(X, y)
    np.testing.assert_allclose(model.coef_, [1.0, -2.0, 3.0, 0.5], atol=1e-4)
    assert model.scale_ <= 1e-6


@pytest.mark.parametrize("arguments", [{"epsilon": 0.9}, {"epsilon": np.inf}, {"alpha": -1.0}])
def test_arguments_that_make_no_sense_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        HuberRegressor(**arguments).fit([[0.0], [1.0]], [0.0, 1.0])


def test_a_solver_that_does_not_know_the_scale_is_refused():
    with pytest.raises(IncompatibleError, match="scale"):
        HuberRegressor(solver="lbfgs").fit([[0.0], [1.0]], [0.0, 1.0])
