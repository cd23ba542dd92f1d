"""Standard errors, tests and `summary()`: statsmodels' numbers, and R's conventions."""

from __future__ import annotations

import warnings

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import statsmodels.api as sm

import dask_dml as dml
from dask_dml.errors import IncompatibleError
from dask_dml.inference import likelihood_ratio
from dask_dml.linear_model import (
    ElasticNet,
    GammaRegressor,
    HuberRegressor,
    LinearRegression,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
    TweedieRegressor,
)

LOCAL = dml.Runtime(client="local")
LOG = sm.families.links.Log()
TIGHT = {"tol": 1e-12}
CASES = {
    "logistic": (LogisticRegression(np.inf, **TIGHT), sm.families.Binomial()),
    "gaussian": (LinearRegression(), sm.families.Gaussian()),
    "poisson": (PoissonRegressor(alpha=0.0, **TIGHT), sm.families.Poisson()),
    "gamma": (GammaRegressor(alpha=0.0, **TIGHT), sm.families.Gamma(LOG)),
    "tweedie": (TweedieRegressor(power=1.5, alpha=0.0, **TIGHT), sm.families.Tweedie(LOG, 1.5)),
}


def made(name, n=400, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 3)) + np.array([5.0, 0.0, 0.0])
    scores = X @ [0.1, 0.2, -0.1]
    y = {
        "logistic": (scores - 0.5 + rng.logistic(size=n) > 0).astype(int),
        "gaussian": scores + rng.normal(size=n),
        "gamma": rng.gamma(2.0, np.exp(scores)),
    }.get(name, rng.poisson(np.exp(scores)).astype(float))
    return X, y, rng.integers(0, 4, n).astype(float)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_a_summary_has_statsmodels_numbers(name, fit_intercept, weighted):
    X, y, weight = made(name)
    weight = weight if weighted else None
    model, family = CASES[name]
    summary = model.set_params(fit_intercept=fit_intercept).fit(X, y, weight).summary(0.9)
    design = sm.add_constant(X) if fit_intercept else X
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a convergence far beyond its own makes it say
        expected = sm.GLM(y, design, family=family, freq_weights=weight).fit(tol=1e-14)
    table = summary.coefficients
    np.testing.assert_allclose(table["estimate"], expected.params, rtol=1e-8)
    np.testing.assert_allclose(table["std_error"], expected.bse, rtol=1e-8)
    np.testing.assert_allclose(summary.covariance, expected.cov_params(), rtol=1e-7, atol=1e-14)
    np.testing.assert_allclose(summary.dispersion, expected.scale, rtol=1e-9)
    np.testing.assert_allclose(summary.deviance, expected.deviance, rtol=1e-9)
    assert summary.df_residual == expected.df_resid
    if summary.statistic == "z":  # statsmodels has z for all, R t where the dispersion is estimated
        np.testing.assert_allclose(table["p_value"], expected.pvalues, rtol=1e-6, atol=1e-300)
        np.testing.assert_allclose(table[["lower", "upper"]], expected.conf_int(0.1), rtol=1e-8)
        np.testing.assert_allclose(summary.aic, expected.aic, rtol=1e-9)
    if fit_intercept:  # without one, as in R, the null model has none either
        np.testing.assert_allclose(summary.null_deviance, expected.null_deviance, rtol=1e-9)
    if name != "tweedie":
        # R takes the dispersion in the likelihood from the deviance, over all rows.
        is_free = summary.statistic == "t"
        scale = summary.deviance / summary.n_observations if is_free else 1.0
        weight = np.ones(len(y)) if weight is None else weight
        value = family.loglike(y, expected.mu, freq_weights=weight, scale=scale)
        np.testing.assert_allclose(summary.log_likelihood, value, rtol=1e-9)
        n_parameters = summary.df_model + is_free
        np.testing.assert_allclose(summary.aic, 2.0 * (n_parameters - value), rtol=1e-9)
        size = np.log(summary.n_observations)
        np.testing.assert_allclose(summary.bic, size * n_parameters - 2.0 * value, rtol=1e-9)


def test_t_tests_of_least_squares():
    X, y, _ = made("gaussian")
    table = LinearRegression().fit(X, y).summary().coefficients
    expected = sm.OLS(y, sm.add_constant(X)).fit()
    np.testing.assert_allclose(table["p_value"], expected.pvalues, rtol=1e-7)
    np.testing.assert_allclose(table[["lower", "upper"]], expected.conf_int(), rtol=1e-9)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_several_classes_are_relative_to_the_first(fit_intercept):
    rng = np.random.default_rng(1)
    X = rng.normal(size=(400, 2)) + 1.0
    y = np.argmax(X @ rng.normal(size=(2, 3)) + rng.gumbel(size=(400, 3)), axis=1)
    model = LogisticRegression(np.inf, fit_intercept=fit_intercept, **TIGHT)
    summary = model.fit(X, np.array(["a", "b", "c"])[y]).summary()
    expected = sm.MNLogit(y, sm.add_constant(X) if fit_intercept else X)
    expected = expected.fit(disp=False, tol=1e-12, method="newton", maxiter=100)
    table = summary.coefficients
    assert table.index[0] == ("b: (Intercept)" if fit_intercept else "b: x0")
    np.testing.assert_allclose(table["estimate"], expected.params.T.ravel(), rtol=1e-7)
    np.testing.assert_allclose(table["std_error"], expected.bse.T.ravel(), rtol=1e-7)
    np.testing.assert_allclose(summary.log_likelihood, expected.llf, rtol=1e-10)
    if fit_intercept:
        np.testing.assert_allclose(summary.null_deviance, -2.0 * expected.llnull, rtol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_columns_that_others_make_up_are_nan_and_leave_the_rest_alone(name):
    X, y, weight = made(name)
    model = CASES[name][0].set_params(fit_intercept=True)
    expected = model.fit(X, y, weight).summary()
    more = np.column_stack([np.full(len(X), 7.0), X, X[:, 0] - X[:, 1] + 3.0])
    frame = pd.DataFrame(more, columns=["constant", "a", "b", "c", "sum"])
    summary = model.fit(frame, y, weight).summary()
    table = summary.coefficients
    assert list(table.index[table["estimate"].isna()]) == ["constant", "sum"]
    kept = table.dropna()
    np.testing.assert_allclose(kept, expected.coefficients, rtol=1e-5, atol=1e-12)
    assert summary.df_residual == expected.df_residual
    assert "2 not defined because of collinear columns" in str(summary)


def test_scales_do_not_matter():
    X, y, _ = made("logistic")
    scales = np.array([1e-8, 1.0, 1e8])
    model = CASES["logistic"][0].set_params(fit_intercept=True)
    expected = model.fit(X, y).summary().coefficients["statistic"]
    statistic = model.fit(X * scales, y).summary().coefficients["statistic"]
    np.testing.assert_allclose(statistic, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["blocks", "sparse"])
def test_blocks_and_sparse_rows_give_the_same_summary(kind):
    X, y, weight = made("gamma")
    model = CASES["gamma"][0].set_params(fit_intercept=True)
    expected = model.fit(X, y, weight).summary()
    model = GammaRegressor(alpha=0.0, runtime=LOCAL, **TIGHT)
    if kind == "blocks":
        model.fit(da.from_array(X, chunks=(90, 3)), da.from_array(y, chunks=90), weight)
    else:
        model.fit(scipy.sparse.csr_array(X), y, weight)
    pd.testing.assert_frame_equal(model.summary().coefficients, expected.coefficients, rtol=1e-7)
    np.testing.assert_allclose(model.summary().aic, expected.aic, rtol=1e-9)


def test_passes_are_counted():
    X, y, _ = made("poisson")
    assert LinearRegression().fit(X, y).n_passes_ == Ridge().fit(X, y).n_passes_
    free = PoissonRegressor(alpha=0.0).fit(X, y)
    assert free.n_passes_ == 1.0 + len(free.history_) + 2.0


@pytest.mark.parametrize("name", CASES)
def test_a_weight_of_two_is_two_rows(name):
    X, y, weight = made(name)
    model = CASES[name][0].set_params(fit_intercept=True)
    expected = model.fit(np.repeat(X, weight.astype(int), axis=0), np.repeat(y, weight.astype(int)))
    expected = expected.summary()
    summary = model.fit(X, y, weight).summary()
    np.testing.assert_allclose(summary.coefficients, expected.coefficients, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(summary.bic, expected.bic, rtol=1e-8)


# -- likelihood ratios -------------------------------------------------------------------------


def test_a_likelihood_ratio_is_that_of_the_log_likelihoods():
    X, y, weight = made("logistic")
    smaller, larger = (LogisticRegression(np.inf, **TIGHT) for _ in range(2))
    smaller.fit(X[:, :1], y, weight)
    larger.fit(X, y, weight)
    test = likelihood_ratio(smaller, larger)
    difference = larger.summary().log_likelihood - smaller.summary().log_likelihood
    np.testing.assert_allclose(test.statistic, 2.0 * difference, rtol=1e-8)
    assert test.df == 2
    assert 0.0 < test.p_value < 1.0


def test_p_values_are_uniform_where_the_smaller_model_holds():
    rng = np.random.default_rng(2)
    p_values = []
    for _ in range(30):
        X = rng.normal(size=(80, 3))
        y = rng.poisson(np.exp(0.3 * X[:, 0] + 1.0)).astype(float)
        smaller, larger = (PoissonRegressor(alpha=0.0) for _ in range(2))
        p_values.append(likelihood_ratio(smaller.fit(X[:, :1], y), larger.fit(X, y)).p_value)
    # Four standard deviations of the mean of as many uniform numbers.
    assert abs(np.mean(p_values) - 0.5) < 4.0 / np.sqrt(12.0 * 30.0)


def test_models_that_are_not_nested_are_refused():
    X, y, _ = made("poisson")
    smaller, larger = (PoissonRegressor(alpha=0.0) for _ in range(2))
    smaller.fit(X[:, :1], y)
    larger.fit(X, y)
    with pytest.raises(ValueError, match="smaller model first"):
        likelihood_ratio(larger, smaller)
    with pytest.raises(ValueError, match="same rows"):
        likelihood_ratio(PoissonRegressor(alpha=0.0).fit(X[:50, :1], y[:50]), larger)
    with pytest.raises(ValueError, match="not nested"):
        likelihood_ratio(LinearRegression().fit(X[:, :1], y), larger)


# -- where there is none, and how it looks -----------------------------------------------------


@pytest.mark.parametrize(
    "model", [LogisticRegression(), Ridge(), ElasticNet(), HuberRegressor(), PoissonRegressor()]
)
def test_a_penalised_model_says_why_it_has_no_standard_errors(model):
    X, y, _ = made("logistic")
    with pytest.raises(IncompatibleError, match=f"{type(model).__name__}.summary.*biases"):
        model.fit(X, y).summary()


def test_a_loaded_model_says_that_it_has_no_sums(tmp_path):
    X, y, _ = made("gaussian")
    LinearRegression().fit(X, y).save(tmp_path / "m.zarr")
    with pytest.raises(IncompatibleError, match="loaded"):
        dml.load_model(tmp_path / "m.zarr").summary()


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_a_level_that_is_none_is_refused(level):
    X, y, _ = made("gaussian")
    with pytest.raises(ValueError, match="level"):
        LinearRegression().fit(X, y).summary(level)


def test_a_summary_is_text_and_html():
    X, y, _ = made("gaussian")
    X = pd.DataFrame(X, columns=["<b>", "b", "c"])
    summary = LinearRegression().fit(X, y).summary()
    text, page = str(summary), summary._repr_html_()
    for word in ("(Intercept)", "Std. error", "t value", "Residual deviance", "400 observations"):
        assert word in text
        assert word in page
    assert "<b>" not in page
