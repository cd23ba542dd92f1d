"""Cross-validated estimators against scikit-learn's, fitted far beyond its default tolerance."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import sklearn.linear_model as sk
from sklearn.model_selection import GroupKFold, KFold, ShuffleSplit, StratifiedKFold
from sklearn.utils.estimator_checks import parametrize_with_checks

import dask_dml as dml
from dask_dml.errors import DataError, IncompatibleError
from dask_dml.linear_model import LogisticRegressionCV, RidgeCV

LOCAL = dml.Runtime(client="local")
CS = [1e-3, 0.1, 1.0, 100.0]


@parametrize_with_checks([LogisticRegressionCV(Cs=3, cv=3), RidgeCV()])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def classification(n_classes=2, n=400, p=4, seed=11):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p)) + rng.normal(size=p)
    scores = X @ rng.normal(size=(p, n_classes)) + rng.gumbel(size=(n, n_classes))
    return X, np.array(["b", "a", "d", "c"])[scores.argmax(axis=1)], rng.exponential(size=n)


def theirs(X, y, weight=None, **arguments):
    settings = {"Cs": CS, "cv": 5, "scoring": "accuracy"} | arguments
    return sk.LogisticRegressionCV(
        l1_ratios=(0.0,),
        use_legacy_attributes=False,
        solver="newton-cholesky",
        tol=1e-12,
        max_iter=1000,
        **settings,
    ).fit(X, y, sample_weight=weight)


def ours(X, y, weight=None, **arguments):
    settings = {"Cs": CS, "path_tol": 1e-12, "runtime": LOCAL} | arguments
    return LogisticRegressionCV(**settings).fit(X, y, weight)


def centred(coef):
    return coef if len(coef) == 1 else coef - coef.mean(axis=0)


def assert_alike(mine, other, fits=True):
    np.testing.assert_allclose(mine.scores_, other.scores_, rtol=0, atol=1e-6)
    np.testing.assert_allclose(mine.Cs_, other.Cs_)
    assert (mine.C_, mine.l1_ratio_) == (pytest.approx(other.C_), other.l1_ratio_)
    assert mine.coefs_paths_.shape == other.coefs_paths_.shape
    assert mine.coef_.shape == other.coef_.shape
    np.testing.assert_allclose(centred(mine.coef_), centred(other.coef_), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        centred(mine.intercept_[:, None]), centred(other.intercept_[:, None]), atol=1e-6
    )
    if fits:
        assert mine.gap_ <= mine.tol


@pytest.mark.parametrize("scoring", ["accuracy", "neg_log_loss", "neg_brier_score"])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_logistic_regression_is_scikit_learns(scoring, n_classes, weighted):
    X, y, weight = classification(n_classes)
    weight = weight if weighted else None
    mine = ours(X, y, weight, scoring=scoring)
    other = theirs(X, y, weight, scoring=scoring)
    assert_alike(mine, other)
    if n_classes == 2:
        np.testing.assert_allclose(mine.coefs_paths_, other.coefs_paths_, rtol=1e-5, atol=1e-6)
    if scoring != "neg_brier_score":  # scikit-learn's own score fails on strings
        assert mine.score(X, y, weight) == pytest.approx(other.score(X, y, sample_weight=weight))


@pytest.mark.parametrize(
    "arguments",
    [
        {"class_weight": "balanced"},
        {"class_weight": {"a": 3.0}, "scoring": "neg_log_loss"},
        {"fit_intercept": False},
        {"refit": False, "scoring": "neg_log_loss"},
        {"Cs": 5, "cv": 3},
        {"cv": KFold(4)},
        {"cv": StratifiedKFold(3, shuffle=True, random_state=0), "scoring": "neg_log_loss"},
    ],
    ids=str,
)
def test_arguments_mean_what_they_mean_in_scikit_learn(arguments):
    X, y, weight = classification()
    mine, other = ours(X, y, weight, **arguments), theirs(X, y, weight, **arguments)
    assert_alike(mine, other, fits=arguments.get("refit", True))


def test_unpenalised_models_take_part():
    X, y, _ = classification()
    Cs = [0.1, np.inf]
    assert_alike(
        ours(X, y, Cs=Cs, scoring="neg_log_loss"), theirs(X, y, Cs=Cs, scoring="neg_log_loss")
    )


# With all coefficients zero scikit-learn's saga stops before it has found the intercept.
L1_CS = [0.1, 1.0, 10.0]


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("l1_ratios", [(1.0,), (0.0, 0.4, 1.0)])
@pytest.mark.parametrize("scoring", ["accuracy", "neg_log_loss"])
@pytest.mark.parametrize("weighted", [False, True])
def test_shares_of_the_l1_norm_are_tried_too(n_classes, l1_ratios, scoring, weighted):
    X, y, weight = classification(n_classes)
    weight = weight if weighted else None
    settings = {"Cs": L1_CS, "cv": 5, "scoring": scoring, "l1_ratios": l1_ratios}
    other = sk.LogisticRegressionCV(
        **settings, solver="saga", tol=1e-9, max_iter=10_000, use_legacy_attributes=False
    ).fit(X, y, sample_weight=weight)
    mine = ours(X, y, weight, **settings, tol=1e-12)
    assert_alike(mine, other)
    assert mine.scores_.shape == (5, len(l1_ratios), 3)
    np.testing.assert_allclose(
        centred_paths(mine.coefs_paths_), centred_paths(other.coefs_paths_), rtol=1e-5, atol=1e-5
    )


def centred_paths(paths):
    """Intercepts of several classes less their mean, which says nothing."""
    paths = paths.copy()
    if paths.shape[3] > 1:
        paths[..., -1] -= paths[..., -1].mean(axis=3, keepdims=True)
    return paths


def test_what_the_l1_norm_drops_is_zero_to_the_last_bit():
    X, y, _ = classification(n=300, p=12)
    settings = {"Cs": [0.02, 0.1], "scoring": "neg_log_loss", "l1_ratios": (1.0,), "cv": 3}
    mine = ours(X, y, fit_intercept=False, tol=1e-12, **settings)
    other = sk.LogisticRegressionCV(
        **settings,
        solver="liblinear",
        fit_intercept=False,
        tol=1e-10,
        max_iter=10_000,
        use_legacy_attributes=False,
    ).fit(X, y)
    np.testing.assert_allclose(mine.coefs_paths_, other.coefs_paths_, atol=1e-6)
    assert 0.2 < np.mean(mine.coefs_paths_ == 0.0) < 0.8
    np.testing.assert_array_equal(mine.coefs_paths_ == 0.0, np.abs(other.coefs_paths_) < 1e-9)
    np.testing.assert_array_equal(mine.coef_ == 0.0, np.abs(other.coef_) < 1e-9)


def test_means_over_folds_are_of_both_choices():
    X, y, _ = classification()
    settings = {"Cs": L1_CS, "l1_ratios": (0.0, 0.4, 1.0), "scoring": "neg_log_loss"}
    mine = ours(X, y, refit=False, **settings)
    best = mine.scores_.swapaxes(1, 2).reshape(5, -1).argmax(axis=1)
    np.testing.assert_allclose(mine.C_, np.mean(np.repeat(L1_CS, 3)[best]))
    assert mine.l1_ratio_ == pytest.approx(np.mean(np.tile([0.0, 0.4, 1.0], 3)[best]))
    paths = mine.coefs_paths_.swapaxes(1, 2).reshape(5, 9, 1, -1)
    chosen = paths[np.arange(5), best].mean(axis=0)
    np.testing.assert_allclose(mine.coef_, chosen[:, :-1], atol=1e-12)
    np.testing.assert_allclose(mine.intercept_, chosen[:, -1], atol=1e-12)


def test_folds_may_be_listed():
    X, y, _ = classification()
    groups = np.arange(len(y)) % 7
    splits = list(GroupKFold(3).split(X, y, groups))
    assert_alike(ours(X, y, cv=splits), theirs(X, y, cv=splits))


def test_dask_input_in_any_blocks_gives_the_folds_of_all_rows():
    X, y, weight = classification(3)
    order = np.argsort(y, kind="stable")[::-1]
    X, y, weight = X[order], y[order], weight[order]
    lazy = [da.from_array(values, chunks=(90, *values.shape[1:])) for values in (X, y, weight)]
    mine = ours(*lazy, scoring="neg_log_loss")
    assert_alike(mine, theirs(X, y, weight, scoring="neg_log_loss"))
    score = mine.score(*lazy)
    assert float(score.compute()) == pytest.approx(mine.score(X, y, weight))


def test_passes_and_rounds_are_counted_and_told():
    X, y, _ = classification(n=2000)
    events = []
    model = ours(X, y, Cs=20, path_tol=1e-6, callbacks=[events.append])
    history = model.history_
    assert model.n_passes_ == 1 + len(history)
    assert len(events) == len(history) + 2
    assert history["passes"].is_monotonic_increasing
    assert np.isfinite(history["objective"]).all()
    # 20 values times 5 folds, of which each by itself takes six or seven rounds.
    assert len(history) <= 10
    absolute = ours(X, y, Cs=20, path_tol=1e-6, l1_ratios=(0.5, 1.0))
    assert absolute.n_passes_ == 1 + len(absolute.history_)
    assert len(absolute.history_) <= 12


def test_too_many_coefficients_are_refused_with_what_would_work():
    X = np.random.default_rng(0).normal(size=(60, 2100))
    y = np.arange(60) % 2
    with pytest.raises(IncompatibleError, match="solver='lbfgs'"):
        ours(X, y)
    with pytest.raises(IncompatibleError, match=r"LogisticRegressionCV.*2101.*l1_ratio=\.\.\."):
        ours(X, y, l1_ratios=(0.0, 1.0))


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"cv": 1}, ValueError, "at least 2 folds"),
        ({"cv": "five"}, ValueError, "number of folds"),
        ({"Cs": 0}, ValueError, "at least 1 value"),
        ({"Cs": [1.0, -1.0]}, ValueError, "must be positive, found -1.0"),
        ({"Cs": []}, ValueError, "list of numbers"),
        ({"scoring": "roc_auc"}, ValueError, "cannot be summed|can be summed"),
        ({"l1_ratios": (0.5, 1.5)}, ValueError, r"l1_ratios=.*at most 1, found 1\.5"),
        ({"l1_ratios": (-0.5,)}, ValueError, r"l1_ratios=.*at least 0, found -0\.5"),
        ({"l1_ratios": (np.nan,)}, ValueError, "l1_ratios=.*found nan"),
        ({"l1_ratios": ()}, ValueError, "l1_ratios=.*list of numbers"),
        ({"l1_ratios": 0.5}, ValueError, "l1_ratios=.*list of numbers"),
        ({"path_tol": 0.0}, ValueError, "path_tol"),
        ({"cv": ShuffleSplit(3)}, DataError, "split"),
        ({"cv": 1000}, DataError, "use fewer folds"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused(arguments, error, match):
    X, y, _ = classification()
    with pytest.raises(error, match=match):
        ours(X, y, **arguments)


def test_listed_folds_are_refused_for_data_that_is_elsewhere():
    X, y, _ = classification()
    with pytest.raises(IncompatibleError, match="row by row"):
        ours(da.from_array(X), da.from_array(y), cv=StratifiedKFold(3, shuffle=True))


def test_a_saved_model_predicts_the_same(tmp_path):
    X, y, _ = classification()
    model = ours(X, y)
    model.save(tmp_path / "model")
    loaded = dml.load_model(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    assert loaded.Cs == CS


def regression(n=300, p=5, seed=2):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p)) * np.logspace(-1, 1, p) + 3.0 * rng.normal(size=p)
    return X, X @ rng.normal(size=p) + 4.0 * rng.normal(size=n) - 50.0, rng.exponential(size=n)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scoring", [None, "r2", "neg_mean_squared_error"])
@pytest.mark.parametrize("cv", [None, 4])
def test_ridge_is_scikit_learns(cv, scoring, weighted, fit_intercept):
    X, y, weight = regression()
    weight = weight if weighted else None
    settings = {
        "alphas": [1e-3, 10.0, 30.0, 1e5],
        "cv": cv,
        "scoring": scoring,
        "fit_intercept": fit_intercept,
    }
    other = sk.RidgeCV(**settings).fit(X, y, weight)
    mine = RidgeCV(**settings, runtime=LOCAL).fit(X, y, weight)
    assert mine.alpha_ == other.alpha_
    assert mine.best_score_ == pytest.approx(other.best_score_, rel=1e-9)
    np.testing.assert_allclose(mine.coef_, other.coef_, rtol=1e-8, atol=1e-9)
    assert mine.intercept_ == pytest.approx(other.intercept_, rel=1e-8)
    assert mine.gap_ <= 1e-12
    # Survey, sums, scores.
    assert mine.n_passes_ == 3


def test_ridge_takes_dask_input_and_more_columns_than_rows():
    X, y, weight = regression(n=40, p=60)
    other = sk.RidgeCV(alphas=[0.5, 5.0, 50.0]).fit(X, y, weight)
    lazy = [da.from_array(values, chunks=(17, *values.shape[1:])) for values in (X, y, weight)]
    mine = RidgeCV(alphas=[0.5, 5.0, 50.0], runtime=LOCAL).fit(*lazy)
    assert mine.alpha_ == other.alpha_
    assert mine.best_score_ == pytest.approx(other.best_score_, rel=1e-6)
    np.testing.assert_allclose(mine.coef_, other.coef_, rtol=1e-6, atol=1e-6)


def test_ridge_without_penalty_takes_part_in_folds_and_not_where_each_row_is_left_out():
    X, y, _ = regression()
    settings = {"alphas": [0.0, 1.0], "cv": KFold(5)}
    other = sk.RidgeCV(**settings).fit(X, y)
    mine = RidgeCV(**settings, runtime=LOCAL).fit(X, y)
    assert (mine.alpha_, mine.best_score_) == (other.alpha_, pytest.approx(other.best_score_))
    with pytest.raises(ValueError, match="every value must be positive"):
        RidgeCV(alphas=[0.0, 1.0]).fit(X, y)
    with pytest.raises(ValueError, match="can be summed"):
        RidgeCV(scoring="max_error").fit(X, y)


@pytest.mark.parametrize("cv", [None, 3])
def test_ridge_takes_as_few_passes_for_many_rows(cv):
    X, y, _ = regression(n=20_000, p=3)
    other = sk.RidgeCV(cv=cv).fit(X, y)
    mine = RidgeCV(cv=cv, runtime=LOCAL).fit(X, y)
    assert (mine.alpha_, mine.n_passes_) == (other.alpha_, 3)
    np.testing.assert_allclose(mine.coef_, other.coef_, rtol=1e-9)
