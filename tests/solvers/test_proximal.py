"""Proximal Newton on few columns: the optimum of all, a bound that is one, plain state."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
import sklearn.linear_model as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning

from dask_dml.linear_model import ElasticNet, Lasso, LogisticRegression
from dask_dml.objective import (
    ElasticNetPenalty,
    LogisticLoss,
    MultinomialLoss,
    Problem,
    Request,
    SquaredLoss,
    TargetKind,
    block_statistics,
    survey_block,
)
from dask_dml.solvers import ProximalNewton
from dask_dml.solvers.core import StoredState, state_arrays, state_reasons


def made(n, p, n_informative=8, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p)).astype(np.float32)
    coef = np.zeros(p)
    coef[rng.choice(p, n_informative, replace=False)] = rng.choice([-1.0, 1.0], n_informative)
    scores = X @ coef
    return X, scores + rng.normal(size=n), scores + rng.logistic(size=n) > 0.0


@pytest.mark.parametrize("loss", [LogisticLoss(), MultinomialLoss(3)])
@pytest.mark.parametrize("kind", [np.asarray, np.asfortranarray, scipy.sparse.csr_array])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_a_gram_of_some_columns_is_that_part_of_the_whole(loss, kind, share):
    rng = np.random.default_rng(3)
    X, y = kind(rng.normal(size=(300, 7))), rng.integers(0, max(loss.n_outputs, 2), 300)
    columns, terms = np.array([1, 4, 5]), np.array([1, 4, 5, 7])
    theta = np.zeros((loss.n_outputs, 8))
    theta[:, [1, 4, 7]] = rng.normal(size=(loss.n_outputs, 3))
    request = Request(loss, theta, rng.normal(size=7), 2, share)
    weight = rng.random(300)
    whole = block_statistics(request, X, y, weight)
    part = block_statistics(replace(request, columns=columns), X, y, weight)
    first = block_statistics(replace(request, order=1), X, y, weight)
    assert part.loss == first.loss
    np.testing.assert_array_equal(part.gradient, first.gradient)
    own = (8 * np.arange(loss.n_outputs)[:, None] + terms).ravel()
    np.testing.assert_allclose(part.gram, whole.gram[np.ix_(own, own)], rtol=1e-9, atol=1e-9)


def set_up(loss, X, y, penalty, multiplier, kind):
    names = tuple(map(str, range(X.shape[1])))
    survey = survey_block(kind, names, 0, X, y, None)
    problem = Problem(loss, penalty, multiplier, survey, fit_intercept=True)
    solver = ProximalNewton.of(problem, 1e-12, 100)

    def evaluate(ask):
        request = problem.request(ask.point, ask.order, ask.share, terms=ask.terms)
        statistics = block_statistics(request, X, y.astype(np.float64), None)
        return problem.evaluation(ask.point, statistics, ask.terms)

    return problem, solver, evaluate


def minimised(solver, evaluate, start, stored_at=-1):
    state, n_rounds = solver.start(start), 0
    while not state.reason:
        if n_rounds == stored_at:
            arrays = {name: np.array(a) for name, a in state_arrays(state).items()}
            state = solver.restore(StoredState(arrays, state_reasons(state)))
        state = solver.tell(state, evaluate(solver.ask(state)))
        n_rounds += 1
    return state, n_rounds


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    is_logistic=st.booleans(),
    strength=st.sampled_from([0.0, 0.5]),
    absolute=st.floats(0.5, 30.0),
    away=st.floats(0.0, 0.3),
    n_more=st.integers(0, 3),
)
def test_the_bound_with_the_hessian_of_some_columns_is_one(
    seed, is_logistic, strength, absolute, away, n_more
):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(80, 6)) @ (np.eye(6) + 0.5 * rng.normal(size=(6, 6)))
    y = X[:, 0] + rng.normal(size=80)
    loss, kind = SquaredLoss(), TargetKind.NUMBERS
    if is_logistic:
        y, loss, kind = (y > 0.0).astype(np.float64), LogisticLoss(), TargetKind.CLASSES
    penalty = ElasticNetPenalty(strength, absolute)
    problem, solver, evaluate = set_up(loss, X, y, penalty, 1.0, kind)
    best, _ = minimised(solver, evaluate, problem.start())
    point = best.point * (1.0 + away * rng.normal(size=7))
    terms = np.union1d(np.flatnonzero(problem.absolute_weights == 0.0), np.flatnonzero(point))
    terms = np.union1d(terms, rng.choice(7, n_more, replace=False))
    state = replace(solver.start(point), terms=terms)
    told = solver.tell(state, evaluate(solver.ask(state)))
    left = (told.value - best.value) / told.value
    assert np.isnan(told.gap) or left <= told.gap + 1e-13
    if away == 0.0:
        assert np.isnan(told.gap) or told.gap <= 1e-9


@pytest.mark.parametrize("is_logistic", [False, True])
def test_a_state_that_is_stored_between_rounds_goes_on_to_the_same_bits(is_logistic):
    X, y, label = made(30_000, 170)
    kind = TargetKind.CLASSES if is_logistic else TargetKind.NUMBERS
    loss, target = (LogisticLoss(), label * 1.0) if is_logistic else (SquaredLoss(), y)
    penalty = ElasticNetPenalty(0.0, 300.0)
    problem, solver, evaluate = set_up(loss, X, target, penalty, 1.0, kind)
    solver = replace(solver, shares=(0.2, 1.0))
    assert solver.is_screened
    whole, n_rounds = minimised(solver, evaluate, problem.start())
    for stored_at in range(n_rounds):
        state, _ = minimised(solver, evaluate, problem.start(), stored_at)
        np.testing.assert_array_equal(state.point, whole.point)
        assert state.gap == whole.gap


def least_squares_objective(model, X, y, alpha, ratio):
    left = np.mean((y - model.predict(X)) ** 2) / 2.0
    absolute, squares = np.abs(model.coef_).sum(), model.coef_ @ model.coef_
    return left + alpha * (ratio * absolute + (1.0 - ratio) / 2.0 * squares)


@pytest.mark.parametrize("shape", [(3_000, 200), (80, 400)])
@pytest.mark.parametrize("share", [0.5, 0.05, 0.002])
@pytest.mark.parametrize(("ratio", "fit_intercept"), [(1.0, True), (0.7, True), (1.0, False)])
def test_wide_least_squares_agree_with_scikit_learn(shape, share, ratio, fit_intercept):
    X, y, _ = made(*shape)
    X = X.astype(np.float64)
    alpha = share * np.abs(X.T @ (y - y.mean())).max() / len(y)
    arguments = {"alpha": alpha, "l1_ratio": ratio, "fit_intercept": fit_intercept}
    model = ElasticNet(**arguments).fit(X, y)
    expected = sk.ElasticNet(**arguments, tol=1e-11, max_iter=10**6).fit(X, y)
    best = least_squares_objective(expected, X, y, alpha, ratio)
    left = least_squares_objective(model, X, y, alpha, ratio) / best - 1.0
    assert left <= model.gap_ <= 1e-8
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e-6)
    np.testing.assert_array_equal(model.coef_ == 0.0, np.abs(expected.coef_) < 1e-7)


@pytest.mark.parametrize("C", [0.003, 0.1, 3.0])
def test_wide_logistic_regression_agrees_with_scikit_learn(C):
    X, _, y = made(1_500, 180)
    model = LogisticRegression(C=C, l1_ratio=1.0).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        expected = sk.LogisticRegression(
            C=C, l1_ratio=1.0, solver="saga", tol=1e-10, max_iter=10**5, random_state=0
        ).fit(X.astype(np.float64), y)
    assert model.gap_ <= 1e-8
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=2e-5)


def test_few_passes_bring_the_optimum_of_wide_data():
    X, y, label = made(70_000, 160)
    for model, target in ((Lasso(alpha=0.1), y), (LogisticRegression(1e-3, l1_ratio=1.0), label)):
        model.fit(X, target)
        assert model.gap_ <= 1e-8
        spent = np.diff(model.history_["passes"], prepend=1.0)
        assert np.sum(spent == 1.0) <= 3


def test_a_penalty_that_is_too_strong_leaves_exact_zeros():
    X, y, label = made(500, 200)
    largest = np.abs((X - X.mean(axis=0)).T @ (y - y.mean())).max() / len(y)
    model = Lasso(alpha=1.000001 * largest).fit(X, y)
    assert not model.coef_.any()
    assert model.intercept_ == pytest.approx(y.mean())
    assert model.gap_ <= 1e-8
    assert not LogisticRegression(1e-5, l1_ratio=1.0).fit(X, label).coef_.any()


def test_columns_that_are_constant_or_twice_there_leave_the_optimum_as_it_is():
    X, y, label = made(400, 160)
    doubled = np.column_stack([X, X[:, :80], np.full((400, 2), 3.0), np.zeros(400)])
    alpha = 0.05
    one, two = Lasso(alpha=alpha).fit(X, y), Lasso(alpha=alpha).fit(doubled, y)
    values = [least_squares_objective(m, Z, y, alpha, 1.0) for m, Z in ((one, X), (two, doubled))]
    assert values[1] == pytest.approx(values[0], rel=1e-10)
    assert not two.coef_[-3:].any()
    assert two.gap_ <= 1e-8
    one = LogisticRegression(0.1, l1_ratio=1.0).fit(X, label)
    two = LogisticRegression(0.1, l1_ratio=1.0).fit(doubled, label)
    assert two.gap_ <= 1e-8
    np.testing.assert_allclose(two.decision_function(doubled), one.decision_function(X), atol=1e-3)


def test_a_fit_that_stops_early_says_so():
    X, _, y = made(1_000, 180)
    with pytest.warns(ConvergenceWarning, match="max_iter"):
        LogisticRegression(l1_ratio=1.0, max_iter=2).fit(X, y)
