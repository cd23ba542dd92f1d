"""Quantile regression: the vertex that scikit-learn's linear programme finds, and a gap to it."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import scipy.sparse
import sklearn.linear_model as sk

import dask_dml as dml
from dask_dml.errors import IncompatibleError
from dask_dml.linear_model import QuantileRegressor
from dask_dml.objective import ElasticNetPenalty, HuberLoss, TargetKind, WidthProblem, survey_block
from dask_dml.objective.blocks import block_statistics
from dask_dml.solvers import Goal, SmoothingNewton, StoredState
from dask_dml.solvers.core import state_arrays, state_reasons

LOCAL = dml.Runtime(client="local")


def made(n=250, p=4, seed=3):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p)) + 1.0
    return X, X @ rng.normal(size=p) + rng.standard_t(3, n) + 2.0, rng.uniform(0.0, 2.0, n)


def objective(model, X, y, weight):
    weight = np.ones(len(y)) if weight is None else weight
    error = y - X @ model.coef_ - model.intercept_
    loss = np.where(error > 0.0, model.quantile * error, (model.quantile - 1.0) * error)
    return weight @ loss / weight.sum() + model.alpha * np.abs(model.coef_).sum()


@pytest.mark.parametrize("quantile", [0.5, 0.1, 0.95])
@pytest.mark.parametrize("alpha", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_optimum_is_that_of_the_linear_programme(quantile, alpha, fit_intercept, weighted):
    X, y, weight = made()
    weight = weight if weighted else None
    arguments = {"quantile": quantile, "alpha": alpha, "fit_intercept": fit_intercept}
    model = QuantileRegressor(**arguments).fit(X, y, weight)
    expected = sk.QuantileRegressor(**arguments, solver="highs").fit(X, y, weight)
    least = objective(expected, X, y, weight)
    assert model.gap_ <= 1e-8
    assert objective(model, X, y, weight) <= least * (1.0 + 1e-8)
    if weighted:  # rows of equal weights may have many optima
        np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e-6)
        np.testing.assert_allclose(model.intercept_, expected.intercept_, atol=1e-6)


@pytest.mark.parametrize(("quantile", "alpha"), [(0.5, 0.0), (0.85, 0.01)])
def test_of_many_rows_some_fill_wide_kinks(quantile, alpha):
    X, y, weight = made(n=3000, p=3)
    arguments = {"quantile": quantile, "alpha": alpha}
    model = QuantileRegressor(**arguments, runtime=LOCAL).fit(X, y, weight)
    expected = sk.QuantileRegressor(**arguments, solver="highs").fit(X, y, weight)
    assert model.gap_ <= 1e-8
    least = objective(expected, X, y, weight)
    assert objective(model, X, y, weight) <= least * (1.0 + 1e-8)
    assert model.history_["what"].str.contains("% of the rows").any()
    assert model.n_passes_ < 1 + len(model.history_)


@pytest.mark.parametrize("max_iter", [1, 2, 4, 8, 12])
@pytest.mark.parametrize("alpha", [0.0, 0.05])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_gap_bounds_what_is_left_wherever_a_fit_stops(max_iter, alpha):
    X, y, weight = made()
    best = sk.QuantileRegressor(quantile=0.7, alpha=alpha, solver="highs").fit(X, y, weight)
    least = objective(best, X, y, weight)
    model = QuantileRegressor(quantile=0.7, alpha=alpha, max_iter=max_iter).fit(X, y, weight)
    value = objective(model, X, y, weight)
    assert (value - least) / value <= model.gap_ + 1e-13


@pytest.mark.parametrize("kind", ["counts", "repeated rows", "collinear", "wide", "constant"])
@pytest.mark.parametrize("alpha", [0.0, 0.05])
def test_where_the_optimum_is_degenerate_or_not_unique_its_value_is_found(kind, alpha):
    X, y, _ = made()
    if kind == "counts":
        X, y = np.round(X), np.round(y)
    if kind == "repeated rows":
        X, y = np.repeat(X[:50], 5, axis=0), np.repeat(y[:50], 5)
    if kind == "collinear":
        X = np.column_stack([X, X[:, 0] - X[:, 1], np.full(len(X), 3.0)])
    if kind == "wide":
        X, y = np.random.default_rng(0).normal(size=(25, 60)), y[:25]
    if kind == "constant":
        y = np.full(len(y), 7.0)
    model = QuantileRegressor(quantile=0.3, alpha=alpha).fit(X, y)
    expected = sk.QuantileRegressor(quantile=0.3, alpha=alpha, solver="highs").fit(X, y)
    scale = np.abs(y).mean()
    assert objective(model, X, y, None) <= objective(expected, X, y, None) + 1e-8 * scale


def test_units_do_not_matter():
    X, y, weight = made()
    scales = np.array([1e-8, 1.0, 1e4, 1e8])
    model = QuantileRegressor(alpha=0.0).fit(X * scales, y, weight)
    expected = QuantileRegressor(alpha=0.0).fit(X, y, weight)
    np.testing.assert_allclose(model.coef_ * scales, expected.coef_, rtol=1e-6)


@pytest.mark.parametrize("kind", ["blocks", "sparse"])
def test_blocks_and_sparse_rows_give_the_same_model(kind):
    X, y, weight = made()
    weight[80:160] = 0.0
    expected = QuantileRegressor(alpha=0.01).fit(X, y, weight)
    model = QuantileRegressor(alpha=0.01, runtime=LOCAL)
    if kind == "blocks":
        blocks = da.from_array(X, chunks=(80, 4)), da.from_array(y, chunks=80)
        model.fit(*blocks, da.from_array(weight, chunks=80))
    else:
        model.fit(scipy.sparse.csr_array(X), y, weight)
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e-6)


def test_a_state_that_was_stored_goes_on_to_the_same_bits():
    X, y, weight = made()
    survey = survey_block(TargetKind.NUMBERS, tuple("abcd"), 0, X, y, weight)
    penalty = ElasticNetPenalty(0.0, 0.01 * survey.weight)
    problem = WidthProblem(HuberLoss(-0.4, 0.6, 2.0), penalty, 1.0, survey, True)
    mean = np.append(survey.mean - problem.center, 1.0) / problem.scale
    goal = Goal.of(problem, 1e-8, 100)
    solver = SmoothingNewton(goal, problem.absolute_weights, 0.4, survey.weight, len(y), mean)
    state = kept = solver.start(problem.start())
    while not state.reason:
        ask = solver.ask(state)
        assert solver.ask(kept).order == ask.order
        sums = block_statistics(problem.request(ask.point, ask.order), X, y, weight)
        state = solver.tell(state, problem.evaluation(ask.point, sums))
        kept = solver.tell(kept, problem.evaluation(solver.ask(kept).point, sums))
        kept = solver.restore(StoredState(state_arrays(kept), state_reasons(kept)))
    assert kept.reason == state.reason
    np.testing.assert_array_equal(kept.point, state.point)
    assert kept.gap == state.gap


@pytest.mark.parametrize("arguments", [{"quantile": 0.0}, {"quantile": 1.0}, {"alpha": -1.0}])
def test_arguments_that_make_no_sense_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        QuantileRegressor(**arguments).fit([[0.0], [1.0]], [0.0, 1.0])


def test_a_solver_that_needs_a_gradient_is_refused():
    with pytest.raises(IncompatibleError, match="kink"):
        QuantileRegressor(solver="lbfgs").fit([[0.0], [1.0]], [0.0, 1.0])
