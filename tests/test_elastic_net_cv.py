"""LassoCV and ElasticNetCV: scikit-learn's errors and choice, in one pass after the survey."""

from __future__ import annotations

import warnings

import dask.array as da
import numpy as np
import pytest
import sklearn.linear_model as sk
from sklearn.model_selection import GroupKFold, KFold
from sklearn.utils.estimator_checks import parametrize_with_checks

from dask_dml import load_model
from dask_dml.errors import DataError, IncompatibleError
from dask_dml.linear_model import ElasticNetCV, Lasso, LassoCV


@parametrize_with_checks([LassoCV(alphas=5, cv=3), ElasticNetCV(alphas=3, cv=2)])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def made(n=203, p=12, seed=0, away=0.0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p)) + away
    coef = rng.normal(size=p) * (rng.random(p) < 0.5)
    return X, X @ coef + 0.5 * rng.normal(size=n) + 3.0, rng.uniform(0.1, 2.0, n)


def agree(model, expected, X):
    np.testing.assert_allclose(model.alphas_, expected.alphas_, rtol=1e-9)
    np.testing.assert_allclose(model.mse_path_, expected.mse_path_, rtol=1e-6)
    assert model.alpha_ == pytest.approx(expected.alpha_, rel=1e-9)
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e-6)
    np.testing.assert_allclose(model.predict(X), expected.predict(X), atol=1e-5)
    assert model.gap_ <= 1e-8
    assert model.dual_gap_ <= 1e-8 * np.var(expected.predict(X))
    assert model.n_passes_ == 2.0


EXACT = {"tol": 1e-10, "max_iter": 10**6}


# Columns far from 0 are well conditioned only once an intercept has centred them: coordinate
# descent, which the expected values come from, does not get there otherwise.
@pytest.mark.parametrize(("fit_intercept", "away"), [(True, 0.0), (True, 50.0), (False, 0.0)])
@pytest.mark.parametrize("is_weighted", [True, False])
def test_the_lasso_agrees_with_scikit_learn(fit_intercept, is_weighted, away):
    X, y, weight = made(away=away)
    weight = weight if is_weighted else None
    arguments = {"fit_intercept": fit_intercept, "alphas": 30}
    expected = sk.LassoCV(**arguments, **EXACT).fit(X, y, weight)
    agree(LassoCV(**arguments).fit(X, y, weight), expected, X)


@pytest.mark.parametrize("ratios", [0.5, [0.2, 0.9, 1.0]])
@pytest.mark.parametrize("alphas", [20, [0.001, 0.3, 0.05, 0.0]])
def test_the_elastic_net_agrees_with_scikit_learn(ratios, alphas):
    X, y, _ = made(seed=1)
    arguments = {"l1_ratio": ratios, "alphas": alphas, "cv": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the penalty 0
        expected = sk.ElasticNetCV(**arguments, **EXACT).fit(X, y)
    model = ElasticNetCV(**arguments).fit(X, y)
    agree(model, expected, X)
    assert model.mse_path_.shape == expected.mse_path_.shape
    assert model.l1_ratio_ == expected.l1_ratio_


@pytest.mark.parametrize("splitter", [KFold(4), KFold(4, shuffle=True, random_state=0), GroupKFold])
def test_splitters_divide_the_rows_as_they_do_for_scikit_learn(splitter):
    X, y, _ = made(seed=2)
    if splitter is GroupKFold:
        splitter = list(GroupKFold(3).split(X, y, groups=np.arange(len(y)) // 7))
    expected = sk.LassoCV(alphas=10, cv=splitter, **EXACT).fit(X, y)
    agree(LassoCV(alphas=10, cv=splitter).fit(X, y), expected, X)


def test_blocks_have_no_say_in_the_result():
    X, y, _ = made(seed=3)
    whole = LassoCV(alphas=10).fit(X, y)
    chunked = LassoCV(alphas=10).fit(da.from_array(X, (31, -1)), da.from_array(y, 31))
    np.testing.assert_allclose(chunked.mse_path_, whole.mse_path_, rtol=1e-10)
    np.testing.assert_allclose(chunked.coef_, whole.coef_, atol=1e-10)
    history = chunked.history_
    assert list(history["order"]) == [2]
    assert history["gap"].iloc[-1] == chunked.gap_


def test_wide_data_and_columns_without_variance():
    X, y, _ = made(n=60, p=170, seed=4)
    X[:, :3] = [7.0, 0.0, -1e6]
    X[:, 3] = X[:, 4]
    arguments = {"alphas": 8, "eps": 0.05}
    model = LassoCV(**arguments).fit(X, y)
    expected = sk.LassoCV(**arguments, **EXACT).fit(X, y)
    np.testing.assert_allclose(model.mse_path_, expected.mse_path_, rtol=1e-5)
    assert model.alpha_ == pytest.approx(expected.alpha_)
    assert not model.coef_[:3].any()
    assert model.gap_ <= 1e-8
    again = Lasso(alpha=model.alpha_).fit(X, y)
    np.testing.assert_allclose(model.predict(X), again.predict(X), atol=1e-6)


def test_a_constant_target_has_no_coefficients():
    X, _, _ = made()
    model = LassoCV(alphas=5).fit(X, np.full(len(X), 2.0))
    assert not model.coef_.any()
    assert model.intercept_ == 2.0
    assert not model.mse_path_.any()


def test_what_cannot_be_is_refused_before_the_data_is_read():
    X, y, _ = made(n=20)
    for model, message in (
        (LassoCV(cv=1), "cv=1"),
        (LassoCV(alphas=0), "alphas=0"),
        (LassoCV(alphas=[-1.0]), "alphas"),
        (LassoCV(eps=0.0), "eps"),
        (LassoCV(eps=2.0), "eps"),
        (ElasticNetCV(l1_ratio=1.5), "l1_ratio"),
        (ElasticNetCV(l1_ratio=[0.0, 0.5]), "must be listed"),
    ):
        with pytest.raises(ValueError, match=message):
            model.fit(X, y)
    with pytest.raises(DataError, match="fold 0"):
        LassoCV(cv=2).fit(X, y, np.repeat([0.0, 1.0], 10))
    with pytest.raises(DataError, match="cv=30"):
        LassoCV(cv=30).fit(X, y)


def test_more_columns_than_every_fold_may_have_products_of_are_refused():
    with pytest.raises(IncompatibleError, match="GridSearchCV around Lasso"):
        LassoCV()._check_size(20_000, 5)


def test_it_is_saved_and_loaded(tmp_path):
    X, y, _ = made()
    model = ElasticNetCV(l1_ratio=[0.5, 1.0], alphas=[0.1, 0.01]).fit(X, y)
    model.save(tmp_path / "model.zarr")
    loaded = load_model(tmp_path / "model.zarr")
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    assert loaded.get_params() == model.get_params()
