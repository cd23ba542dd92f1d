from __future__ import annotations

import numpy as np
import pytest
import sklearn.linear_model as sk
from sklearn.datasets import make_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import parametrize_with_checks

import dask_dml as dml
from dask_dml.errors import DataError, IncompatibleError
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
    QuantileRegressor,
    Ridge,
    TweedieRegressor,
)

LOCAL = dml.Runtime(client="local")


# Data of theirs that is fitted exactly leaves no scale of errors.
@pytest.mark.filterwarnings("ignore:.*the scale falls to zero.*")
@parametrize_with_checks(
    [
        LogisticRegression(),
        LinearRegression(),
        Ridge(),
        Lasso(),
        ElasticNet(),
        HuberRegressor(),
        QuantileRegressor(),
        LinearSVC(),
        LinearSVR(),
        PoissonRegressor(),
        GammaRegressor(),
        TweedieRegressor(power=1.5),
        TweedieRegressor(),
    ]
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def classification(kind="dense", n_classes=2, dtype=np.float64, n=600, p=5):
    """X, y and weights or None; float32 values are exact in float64, so that both see the same."""
    rng = np.random.default_rng(11)
    X = rng.normal(size=(n, p)) + 0.5 * rng.normal(size=p)
    scores = X @ rng.normal(size=(p, n_classes)) + rng.gumbel(size=(n, n_classes))
    if kind == "imbalanced":
        scores[:, 1:] -= np.quantile(scores[:, 1:].max(axis=1) - scores[:, 0], 0.995)
    y = scores.argmax(axis=1)
    if kind == "imbalanced":
        assert 0 < np.mean(y != 0) <= 0.0051
        y[: n_classes - 1] = np.arange(1, n_classes)
    if kind == "badly scaled":
        X *= 10.0 ** np.linspace(-4, 4, p)
    weight = rng.exponential(size=n) * (rng.random(n) > 0.1) if kind == "weighted" else None
    return X.astype(dtype), y, weight


def reference(X, y, weight, C=1.0, fit_intercept=True, class_weight=None):
    """Coefficients by scikit-learn, in units in which it reaches its tolerance."""
    X = X.astype(np.float64)
    model = sk.LogisticRegression(
        C=C,
        fit_intercept=fit_intercept,
        class_weight=class_weight,
        solver="newton-cholesky",
        tol=1e-12,
        max_iter=1000,
    )
    model.fit(X, y, sample_weight=weight)
    if len(model.classes_) > 2:
        # The optimum adds up to zero over the classes; the objective is nearly flat across that.
        model.coef_ -= model.coef_.mean(axis=0)
        model.intercept_ -= model.intercept_.mean()
    return model


def assert_agree(model, expected, rtol=1e-6):
    """To a relative tolerance of the coefficients, each class as one vector of its own units."""
    np.testing.assert_array_equal(model.classes_, expected.classes_)
    assert model.coef_.shape == expected.coef_.shape
    np.testing.assert_allclose(model.coef_, expected.coef_, rtol=rtol, atol=rtol * 1e-6)
    np.testing.assert_allclose(
        model.intercept_, expected.intercept_, rtol=rtol, atol=rtol * np.abs(expected.coef_).max()
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_classes", [2, 3, 5])
@pytest.mark.parametrize("kind", ["dense", "weighted", "imbalanced", "badly scaled"])
def test_logistic_regression_agrees_with_scikit_learn(kind, n_classes, dtype):
    X, y, weight = classification(kind, n_classes, dtype)
    model = LogisticRegression(tol=1e-14, runtime=LOCAL).fit(X, y, sample_weight=weight)
    assert_agree(model, reference(X, y, weight))
    assert model.coef_.dtype == np.float64
    assert 0.0 <= model.gap_ <= 1e-12


@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("C", [1e-3, 1.0, 1e4, np.inf])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_logistic_regression_agrees_for_every_strength(n_classes, C, fit_intercept):
    X, y, _ = classification(n_classes=n_classes)
    model = LogisticRegression(C=C, fit_intercept=fit_intercept, tol=1e-14, runtime=LOCAL)
    model.fit(X, y)
    expected = reference(X, y, None, C, fit_intercept)
    assert_agree(model, expected)
    if not fit_intercept:
        np.testing.assert_array_equal(model.intercept_, 0.0)


@pytest.mark.parametrize(
    ("n_classes", "class_weight"),
    [(2, "balanced"), (2, {0: 1.0, 1: 30.0}), (2, {1: 0.2}), (3, "balanced"), (3, {2: 0.25})],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_class_weights_agree_with_scikit_learn(class_weight, n_classes, weighted):
    X, y, weight = classification("weighted" if weighted else "imbalanced", n_classes)
    model = LogisticRegression(class_weight=class_weight, tol=1e-14, runtime=LOCAL)
    model.fit(X, y, sample_weight=weight)
    assert_agree(model, reference(X, y, weight, class_weight=class_weight))


@pytest.mark.parametrize("kind", ["dense", "badly scaled", "imbalanced"])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("solver", ["newton", "lbfgs", "gd"])
def test_every_solver_agrees_with_scikit_learn(solver, n_classes, kind):
    X, y, _ = classification(kind, n_classes)
    model = LogisticRegression(solver=solver, tol=1e-14, max_iter=2000, runtime=LOCAL).fit(X, y)
    assert_agree(model, reference(X, y, None))
    assert model.gap_ <= 1e-12
    assert model.n_iter_ >= 2


def test_probabilities_and_labels_agree_with_scikit_learn():
    for n_classes in (2, 4):
        X, y, _ = classification(n_classes=n_classes)
        model = LogisticRegression(tol=1e-13, runtime=LOCAL).fit(X, y)
        expected = reference(X, y, None)
        np.testing.assert_array_equal(model.predict(X), expected.predict(X))
        for name in ("predict_proba", "predict_log_proba", "decision_function"):
            found = getattr(model, name)(X)
            np.testing.assert_allclose(found, getattr(expected, name)(X), rtol=1e-5, atol=1e-8)
        assert model.score(X, y) == expected.score(X, y)


def test_log_probabilities_of_surely_wrong_classes_are_finite():
    X = np.array([[-1.0], [1.0], [1e3]])
    for y in ([0, 1, 1], [0, 1, 2]):
        model = LogisticRegression(C=1e6, runtime=LOCAL).fit(X, y)
        assert np.all(np.isfinite(model.predict_log_proba(np.array([[-3e4], [3e4]]))))


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_gap_bounds_what_is_left(n_classes):
    for seed in range(10):
        X, y = make_classification(
            n_samples=200,
            n_features=6,
            n_informative=4,
            n_classes=n_classes,
            class_sep=0.3 * (seed + 1),
            random_state=seed,
        )
        X *= 10.0 ** np.random.default_rng(seed).uniform(-3, 3, 6)
        for tol in (1e-1, 1e-4, 1e-9):
            rough = LogisticRegression(C=100.0, tol=tol, runtime=LOCAL).fit(X, y)
            best = LogisticRegression(C=100.0, tol=1e-14, runtime=LOCAL).fit(X, y)
            f, least = (objective(m, X, y, 100.0) for m in (rough, best))
            assert rough.gap_ >= (f - least) / f - 1e-14
            assert rough.gap_ <= tol


def objective(model, X, y, C):
    loss = -model.predict_log_proba(X)[np.arange(len(y)), y].sum()
    return C * loss + 0.5 * np.sum(model.coef_**2)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_linear_regression_agrees_with_scikit_learn(dtype, fit_intercept, weighted):
    rng = np.random.default_rng(3)
    X = (rng.normal(size=(300, 6)) * 10.0 ** np.linspace(-4, 4, 6) + [0, 0, 3, 0, 9, 0]).astype(
        dtype
    )
    y = rng.normal(size=300) + 5.0 + X[:, 2]
    weight = rng.random(300) if weighted else None
    model = LinearRegression(fit_intercept=fit_intercept, runtime=LOCAL).fit(X, y, weight)
    expected = sk.LinearRegression(fit_intercept=fit_intercept, tol=1e-14)
    expected.fit(X.astype(np.float64), y, weight)
    np.testing.assert_allclose(model.coef_, expected.coef_, rtol=1e-6)
    np.testing.assert_allclose(model.intercept_, expected.intercept_, rtol=1e-6)
    assert model.gap_ <= 1e-12
    assert model.n_passes_ == 1.0
    assert model.score(X, y) == pytest.approx(expected.score(X, y), rel=1e-9)


def deficient(kind):
    rng = np.random.default_rng(4)
    X = rng.normal(size=(80, 4)) + 2.0
    if kind == "duplicate columns":
        X = np.column_stack([X, X[:, 1], X[:, 1], -2.0 * X[:, 0]])
    elif kind == "constant columns":
        X = np.column_stack([X, np.full(80, 0.1), np.full(80, 1e6), np.zeros(80)])
    elif kind == "fewer rows than columns":
        X = rng.normal(size=(12, 30)) + 1.0
    elif kind == "two rows":
        X = X[:2]
    return X, rng.normal(size=len(X)) + 3.0


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize(
    "kind", ["duplicate columns", "constant columns", "fewer rows than columns", "two rows"]
)
def test_where_least_squares_are_not_unique_they_are_those_of_least_norm(
    kind, fit_intercept, weighted
):
    X, y = deficient(kind)
    weight = np.random.default_rng(0).random(len(y)) + 0.1 if weighted else None
    model = LinearRegression(fit_intercept=fit_intercept, runtime=LOCAL).fit(X, y, weight)
    expected = sk.LinearRegression(fit_intercept=fit_intercept, tol=1e-12).fit(X, y, weight)
    # scikit-learn's centring leaves rounding in constant columns.
    atol = (1e-5 if kind == "constant columns" else 1e-8) * np.abs(expected.coef_).max()
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=atol)
    np.testing.assert_allclose(model.predict(X), expected.predict(X), atol=1e-7)
    if kind == "constant columns" and fit_intercept:
        np.testing.assert_allclose(model.coef_[4:], 0.0, atol=1e-10)


@pytest.mark.parametrize("solver", ["lbfgs", "gd"])
def test_least_squares_by_gradients_are_those_of_the_normal_equations(solver):
    rng = np.random.default_rng(5)
    X = rng.normal(size=(300, 4)) * [1e-2, 1, 1, 1e2] + [0, 5, 0, 0]
    y = X @ [100.0, 1.0, 2.0, 0.01] + rng.normal(size=300)
    for make in (LinearRegression, Ridge):
        direct = make(runtime=LOCAL).fit(X, y)
        model = make(solver=solver, runtime=LOCAL, max_iter=1000).fit(X, y)
        np.testing.assert_allclose(model.coef_, direct.coef_, rtol=1e-8)
        assert model.gap_ <= 1e-8


@pytest.mark.parametrize("alpha", [0, 1e-9, 1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_ridge_agrees_with_scikit_learn(alpha, fit_intercept, weighted):
    rng = np.random.default_rng(6)
    X = rng.normal(size=(200, 5)) * 10.0 ** np.linspace(-2, 2, 5) + 1.0
    y = rng.normal(size=200) + 4.0 + X[:, 2]
    weight = rng.random(200) if weighted else None
    model = Ridge(alpha, fit_intercept=fit_intercept, runtime=LOCAL).fit(X, y, weight)
    expected = sk.Ridge(alpha, fit_intercept=fit_intercept, solver="svd").fit(X, y, weight)
    np.testing.assert_allclose(model.coef_, expected.coef_, rtol=1e-6)
    np.testing.assert_allclose(model.intercept_, expected.intercept_, rtol=1e-6, atol=1e-9)
    assert model.gap_ <= 1e-8


def test_ridge_of_more_columns_than_rows_agrees_with_scikit_learn():
    rng = np.random.default_rng(7)
    X, y = rng.normal(size=(20, 60)), rng.normal(size=20)
    model = Ridge(0.5, runtime=LOCAL).fit(X, y)
    np.testing.assert_allclose(model.coef_, sk.Ridge(0.5).fit(X, y).coef_, rtol=1e-6, atol=1e-9)
    assert model.gap_ <= 1e-8


def test_a_warm_start_takes_fewer_rounds_and_leads_to_the_same():
    X, y, _ = classification(n_classes=3)
    model = LogisticRegression(warm_start=True, tol=1e-10, runtime=LOCAL).fit(X, y)
    cold = len(model.history_)
    model.fit(X, y)
    assert len(model.history_) <= 2 < cold
    model.set_params(C=2.0).fit(X, y)
    assert len(model.history_) < cold
    fresh = LogisticRegression(C=2.0, tol=1e-10, runtime=LOCAL).fit(X, y)
    np.testing.assert_allclose(model.coef_, fresh.coef_, rtol=1e-4)
    # Another shape is a cold start, not an error.
    model.fit(X[:, :3], y)
    model.fit(X[:, :3], y == 1)
    assert model.coef_.shape == (1, 3)


@pytest.mark.parametrize("solver", ["newton", "lbfgs", "gd"])
def test_stopping_at_max_iter_is_a_warning(solver):
    X, y, _ = classification("badly scaled")
    with pytest.warns(ConvergenceWarning, match=r"max_iter, 1 iterations.*raise max_iter"):
        model = LogisticRegression(solver=solver, max_iter=1, tol=1e-12, runtime=LOCAL).fit(X, y)
    assert model.n_iter_ == 1
    assert model.coef_.shape == (1, 5)


def test_separable_classes_without_penalty_are_not_certified():
    X = np.array([[0.0], [1.0], [2.0], [3.0]])
    with pytest.warns(ConvergenceWarning):
        model = LogisticRegression(C=np.inf, max_iter=20, runtime=LOCAL).fit(X, [0, 0, 1, 1])
    assert not model.gap_ <= 1e-8


@pytest.mark.parametrize(
    "labels", [["no", "yes"], ["n", "y", "z"], [3, 7, 9], [-1.0, 2.0], [False, True]]
)
def test_labels_of_any_kind_come_back(labels):
    X, codes, _ = classification(n_classes=len(labels))
    y = np.array(labels)[codes]
    model = LogisticRegression(runtime=LOCAL).fit(X, y)
    np.testing.assert_array_equal(model.classes_, np.unique(y))
    predicted = model.predict(X)
    assert predicted.dtype == y.dtype
    assert np.mean(predicted == y) > 0.5


@pytest.mark.parametrize("solver", ["newton", "lbfgs", "gd"])
@pytest.mark.parametrize("make", [LinearRegression, lambda **rest: Ridge(0.0, **rest)])
def test_a_perfect_fit_is_found_without_a_warning(make, solver):
    X = np.random.default_rng(8).normal(size=(100, 3)) + 1.0
    model = make(solver=solver, max_iter=1000, runtime=LOCAL).fit(X, X @ [1.0, 2.0, 3.0] + 4.0)
    np.testing.assert_allclose(model.coef_, [1.0, 2.0, 3.0], rtol=1e-9)
    assert model.intercept_ == pytest.approx(4.0, rel=1e-9)


def test_a_class_whose_rows_weigh_nothing_is_nearly_never_predicted():
    X, y, _ = classification(n_classes=3)
    model = LogisticRegression(runtime=LOCAL).fit(X, y, sample_weight=(y != 2).astype(float))
    assert model.classes_.tolist() == [0, 1, 2]
    assert model.predict_proba(X)[:, 2].max() < 1e-10
    two = reference(X[y != 2], y[y != 2], None)
    np.testing.assert_array_equal(model.predict(X), two.predict(X))


def test_one_class_is_refused():
    X = np.zeros((4, 2))
    with pytest.raises(DataError, match=r"only one class.*\['a'\]"):
        LogisticRegression(runtime=LOCAL).fit(X, ["a"] * 4)


@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_classes_without_weight_are_refused(class_weight):
    X, y, _ = classification()
    weight = (y == 1).astype(float)
    model = LogisticRegression(class_weight=class_weight, runtime=LOCAL)
    with pytest.raises(DataError, match=r"only one class: found \[1\] of \[0, 1\]"):
        model.fit(X, y, sample_weight=weight)
    with pytest.raises(DataError, match="only one class"):
        model.set_params(class_weight={0: 0.0}).fit(X, y)
    with pytest.raises(DataError, match="zero in every row"):
        model.fit(X, y, sample_weight=np.zeros(len(y)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"C": 0.0}, "C=.*positive"),
        ({"C": -1.0}, "C=.*positive"),
        ({"C": np.nan}, "C=.*positive"),
        ({"C": "1"}, "C=.*positive"),
        ({"tol": 0.0}, "tol=.*positive"),
        ({"tol": None}, "tol=.*positive"),
        ({"max_iter": 0}, "max_iter=.*>= 1"),
        ({"max_iter": 2.5}, "max_iter=.*>= 1"),
        ({"max_iter": None}, "max_iter=.*>= 1"),
        ({"class_weight": [1.0, 2.0]}, "class_weight=.*dict"),
        ({"solver": "saga"}, "'saga'.*newton, lbfgs, gd"),
        ({"l1_ratio": 0.5, "solver": "gd"}, r"l1_ratio=0.5, solver='gd'.*proximal"),
        ({"class_weight": "heavy"}, "class_weight=.*'balanced'"),
        ({"class_weight": {0: -1.0}}, r"class_weight=.*>= 0"),
        ({"class_weight": {9: 1.0}}, r"class_weight=.*\[9\].*it has \[0, 1\]"),
        ({"fit_intercept": "no"}, "fit_intercept=.*True or False, got 'no'"),
        ({"warm_start": None}, "warm_start=.*True or False, got None"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message):
    X, y, _ = classification()
    with pytest.raises(ValueError, match=message):
        LogisticRegression(runtime=LOCAL, **arguments).fit(X, y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"runtime": "local"}, r"runtime=.*dask_dml\.Runtime.*got 'local'"),
        ({"callbacks": print}, "callbacks=.*list of functions"),
        ({"callbacks": [3]}, r"callbacks=.*list of functions.*got \[3\]"),
        ({"checkpoint": 3}, "checkpoint=.*path"),
    ],
)
def test_arguments_of_the_wrong_type_are_named(arguments, message):
    X, y, _ = classification()
    with pytest.raises(TypeError, match=message):
        LogisticRegression(**arguments).fit(X, y)


@pytest.mark.parametrize("alpha", [-1.0, np.inf, np.nan, "1"])
def test_a_ridge_penalty_that_makes_no_sense_is_refused(alpha):
    with pytest.raises(ValueError, match=r"alpha=.*finite number >= 0"):
        Ridge(alpha, runtime=LOCAL).fit([[0.0], [1.0]], [0.0, 1.0])


def test_what_does_not_go_together_is_refused_before_data_is_read():
    class Unread:
        def __array__(self, *args, **kwargs):
            raise AssertionError("the data was read")

    for arguments in ({"solver": "saga"}, {"l1_ratio": 1.0, "solver": "lbfgs"}):
        with pytest.raises(IncompatibleError):
            LogisticRegression(**arguments).fit(Unread(), Unread())


def test_a_dataset_of_other_columns_is_not_scored(tmp_path):
    X, y = np.arange(12.0).reshape(6, 2), np.arange(6.0)
    fitted = dml.write_dataset(tmp_path / "fitted.zarr", X, y, feature_names=["a", "b"])
    other = dml.write_dataset(tmp_path / "other.zarr", X, y, feature_names=["b", "a"])
    model = Ridge().fit(fitted)
    assert model.score(fitted).compute() > 0.9
    with pytest.raises(DataError, match="'b'"):
        model.score(other)
