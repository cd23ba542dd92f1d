"""Linear support vector machines: scikit-learn's coefficients and a certified gap."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.svm as sk

from dask_dml.linear_model import LinearSVC, LinearSVR


def made(n_classes=2, n=500, p=6, seed=1):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p)) + 0.5
    scores = X @ rng.normal(size=(p, n_classes)) + rng.gumbel(size=(n, n_classes))
    return X, scores.argmax(axis=1), rng.uniform(0.0, 2.0, n)


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("C", [0.01, 1.0])
@pytest.mark.parametrize("weighted", [True, False])
def test_classification_agrees_with_scikit_learn(n_classes, fit_intercept, C, weighted):
    X, y, weight = made(n_classes)
    weight = weight if weighted else None
    arguments = {"C": C, "fit_intercept": fit_intercept, "intercept_scaling": 2.0}
    model = LinearSVC(**arguments, tol=1e-13).fit(X, y, weight)
    expected = sk.LinearSVC(**arguments, dual=False, tol=1e-12, max_iter=100_000)
    expected.fit(X, y, weight)
    assert model.gap_ <= 1e-12
    np.testing.assert_allclose(model.coef_, expected.coef_, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(model.intercept_, expected.intercept_, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(model.predict(X), expected.predict(X))
    np.testing.assert_allclose(
        model.decision_function(X), expected.decision_function(X), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("epsilon", [0.0, 0.5])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_regression_agrees_with_scikit_learn(epsilon, fit_intercept, weighted):
    X, y, weight = made(5)
    weight = weight if weighted else None
    arguments = {"C": 0.3, "epsilon": epsilon, "fit_intercept": fit_intercept}
    model = LinearSVR(**arguments, tol=1e-13).fit(X, y, weight)
    expected = sk.LinearSVR(
        **arguments, loss="squared_epsilon_insensitive", dual=False, tol=1e-12, max_iter=100_000
    ).fit(X, y, weight)
    assert model.gap_ <= 1e-12
    np.testing.assert_allclose(model.coef_, expected.coef_, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(model.intercept_, expected.intercept_, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("max_iter", [1, 2, 3])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_gap_bounds_what_is_left_wherever_a_fit_stops(max_iter):
    X, y, _ = made()

    def objective(m):
        short = np.maximum(1.0 - np.where(y, 1.0, -1.0) * m.decision_function(X), 0.0)
        return short @ short + 0.5 * float((m.coef_**2).sum() + m.intercept_[0] ** 2)

    best = objective(LinearSVC(tol=1e-14).fit(X, y))
    model = LinearSVC(tol=1e-14, max_iter=max_iter).fit(X, y)
    assert (objective(model) - best) / objective(model) <= model.gap_ + 1e-14


@pytest.mark.parametrize("arguments", [{"C": 0.0}, {"C": np.inf}, {"intercept_scaling": -1.0}])
def test_arguments_that_make_no_sense_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        LinearSVC(**arguments).fit([[0.0], [1.0]], [0, 1])


def test_a_negative_margin_is_refused():
    with pytest.raises(ValueError, match="epsilon"):
        LinearSVR(epsilon=-0.1).fit([[0.0], [1.0]], [0.0, 1.0])
