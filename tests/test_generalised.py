"""Poisson, gamma and Tweedie regression: scikit-learn's coefficients, and help with bad targets."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import sklearn.linear_model as sk
from scipy.optimize import check_grad

import dask_dml as dml
from dask_dml.errors import DataError, IncompatibleError
from dask_dml.linear_model import GammaRegressor, PoissonRegressor, TweedieRegressor
from dask_dml.objective import GammaLoss, PoissonLoss, TweedieLoss

PAIRS = [
    (PoissonRegressor, sk.PoissonRegressor, {}),
    (GammaRegressor, sk.GammaRegressor, {}),
    (TweedieRegressor, sk.TweedieRegressor, {"power": 1.5}),
    (TweedieRegressor, sk.TweedieRegressor, {"power": 1.1}),
    (TweedieRegressor, sk.TweedieRegressor, {"power": 1.0}),
    (TweedieRegressor, sk.TweedieRegressor, {"power": 0.0}),
]


def made(kind, n=800, p=5, dtype=np.float64, seed=3):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p)).astype(dtype)
    mean = np.exp(X @ rng.normal(size=p) * 0.4 + 0.5)
    y = rng.poisson(mean) if kind is PoissonRegressor else rng.gamma(2.0, mean / 2.0) + 1e-3
    return X, y.astype(np.float64), rng.uniform(0.0, 2.0, n)


@pytest.mark.parametrize(("ours", "theirs", "arguments"), PAIRS)
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_coefficients_are_those_of_scikit_learn(
    ours, theirs, arguments, fit_intercept, weighted, alpha
):
    X, y, weight = made(ours)
    weight = weight if weighted else None
    arguments = arguments | {"fit_intercept": fit_intercept, "alpha": alpha}
    model = ours(**arguments, tol=1e-12).fit(X, y, weight)
    expected = theirs(**arguments, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    expected.fit(X, y, sample_weight=weight)
    assert model.gap_ <= 1e-12
    np.testing.assert_allclose(model.coef_, expected.coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(model.intercept_, expected.intercept_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(model.predict(X), expected.predict(X), rtol=1e-6)
    np.testing.assert_allclose(model.score(X, y, weight), expected.score(X, y, weight), rtol=1e-6)


@pytest.mark.parametrize("ours", [PoissonRegressor, GammaRegressor])
def test_dask_input_gives_the_same_model_and_lazy_answers(ours):
    X, y, weight = made(ours, dtype=np.float32)
    model = ours(runtime=dml.Runtime(client="local")).fit(
        da.from_array(X, chunks=(150, 5)), da.from_array(y, chunks=150), da.from_array(weight)
    )
    expected = ours().fit(X, y, weight)
    np.testing.assert_allclose(model.coef_, expected.coef_, rtol=1e-6)
    lazy = model.score(da.from_array(X, chunks=(150, 5)), da.from_array(y, chunks=150))
    assert isinstance(lazy, da.Array)
    np.testing.assert_allclose(lazy.compute(), model.score(X, y), rtol=1e-12)


@pytest.mark.parametrize("loss", [PoissonLoss(), GammaLoss(), TweedieLoss(1.3)])
@pytest.mark.parametrize("y", [0.5, 3.0, 1e6])
def test_derivatives(loss, y):
    target = np.array([y])

    def value(z):
        return float(loss.evaluate(z[None], target, 1).loss[0])

    def slope(z):
        return loss.evaluate(z[None], target, 2).residual[0]

    for z in (-2.0, 0.3, 4.0):
        point = np.array([z])
        terms = loss.evaluate(point[None], target, 2)
        assert check_grad(value, slope, point) <= 1e-5 * (1.0 + y)
        numeric = (slope(point + 1e-6) - slope(point - 1e-6)) / 2e-6
        np.testing.assert_allclose(terms.curvature[0], numeric, rtol=1e-5, atol=1e-9 * y)
        assert value(point) >= -1e-12 * y


def test_counts_of_a_million_and_scales_far_apart():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2000, 4))
    y = rng.poisson(np.exp(13.0 + X @ np.array([0.5, -0.3, 0.2, 0.1]))).astype(float)
    assert y.max() > 1e6
    scales = np.array([1e-8, 1.0, 1e4, 1e8])
    model = PoissonRegressor(alpha=0.0).fit(X * scales, y)
    expected = PoissonRegressor(alpha=0.0).fit(X, y)
    np.testing.assert_allclose(model.coef_ * scales, expected.coef_, rtol=1e-7)
    assert model.gap_ <= 1e-8


def test_collinear_and_constant_columns_and_a_block_without_weight():
    X, y, weight = made(PoissonRegressor, 900)
    X = np.column_stack([X, X[:, 0], np.full(len(X), 7.0)])
    weight[300:600] = 0.0
    blocks = da.from_array(X, chunks=(300, -1)), da.from_array(y, chunks=300)
    model = PoissonRegressor(alpha=0.01, runtime=dml.Runtime(client="local")).fit(*blocks, weight)
    expected = sk.PoissonRegressor(alpha=0.01, solver="newton-cholesky", tol=1e-12)
    expected.fit(X, y, sample_weight=weight)
    np.testing.assert_allclose(model.predict(X), expected.predict(X), rtol=1e-6)
    assert model.gap_ <= 1e-8


@pytest.mark.parametrize(("model", "value"), [(PoissonRegressor(), -1.0), (GammaRegressor(), 0.0)])
def test_a_target_out_of_range_is_named(model, value):
    X, y, _ = made(GammaRegressor, 100)
    y[42] = value
    blocks = da.from_array(X, chunks=(25, -1)), da.from_array(y, chunks=25)
    with pytest.raises(DataError, match="block 1, row 17"):
        model.set_params(runtime=dml.Runtime(client="local")).fit(*blocks)


def test_counts_that_are_all_zero_are_refused():
    with pytest.raises(DataError, match="nothing to fit"):
        PoissonRegressor().fit(np.ones((5, 1)), np.zeros(5))


@pytest.mark.parametrize(
    "arguments", [{"power": 3.0}, {"power": 0.5}, {"power": 1.5, "link": "identity"}]
)
def test_what_is_not_convex_is_refused(arguments):
    with pytest.raises(IncompatibleError, match="TweedieRegressor"):
        TweedieRegressor(**arguments).fit([[1.0], [2.0]], [1.0, 2.0])
