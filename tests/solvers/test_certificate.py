from __future__ import annotations

from decimal import Decimal, getcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_dml.objective.problem import Evaluation
from dask_dml.solvers.core import (
    Goal,
    contracted_gap,
    gradient_gap,
    is_descent,
    largest_change,
    newton_step,
    relative_gap,
    self_concordant_gaps,
    shorter_step,
)


def quadratic_goal(n, tol=1e-8):
    return Goal(tol, 100, 0.0, np.ones(n), 0.0)


def exact_gaps(a):
    getcontext().prec = 60
    a = Decimal(a)
    gap = a + (1 - a) * (1 - a).ln()
    return gap, a.exp() - a - 1 - a * a + gap


@given(st.floats(1e-7, 0.999))
def test_the_bounds_are_those_of_the_closed_form_and_never_below(a):
    for found, exact in zip(self_concordant_gaps(a), exact_gaps(a), strict=True):
        assert found >= float(exact) * (1.0 - 1e-8)
        assert found <= float(exact) * (1.0 + 0.02)


@pytest.mark.parametrize("a", [0.0099, 0.009999999])
def test_the_series_is_above_the_closed_form_where_it_is_used(a):
    for found, exact in zip(self_concordant_gaps(a), exact_gaps(a), strict=True):
        assert Decimal(found) > exact


@given(st.floats(1e-9, 0.9999), st.floats(1e-9, 0.9999))
def test_the_bounds_grow_with_the_decrement(a, b):
    low, high = sorted((a, b))
    for before, after in zip(self_concordant_gaps(low), self_concordant_gaps(high), strict=True):
        assert before <= after * (1.0 + 1e-9)


@given(st.floats(1e-6, 5.0), st.floats(1e-3, 1.0), st.floats(1e-6, 1e-2))
def test_the_bound_by_the_change_of_scores_is_that_of_the_closed_form(change, M, decrement):
    getcontext().prec = 60
    r, half = Decimal(change), (Decimal(change) / 2).exp()
    left = half * (r.exp() - 1 - r) / r * Decimal(decrement)
    a = Decimal(M) * half * left
    exact = float((a + (1 - a) * (1 - a).ln()) / (Decimal(M) * half) ** 2) if a < 1 else np.inf
    found = contracted_gap(M, decrement, change)
    assert found >= exact * (1.0 - 1e-8)
    assert found <= exact * 1.03


@given(st.integers(0, 200), st.floats(0.01, 3.0))
def test_no_gap_after_a_step_is_above_its_bounds(seed, size):
    rng = np.random.default_rng(seed)
    X = np.column_stack([rng.uniform(-1.0, 1.0, size=(60, 3)), np.ones(60)])
    y = rng.integers(0, 2, 60).astype(float)

    def evaluated(point):
        z = X @ point
        p = 1.0 / (1.0 + np.exp(-z))
        value = np.logaddexp(0.0, z).sum() - y @ z + 0.5 * point @ point
        return Evaluation(value, X.T @ (p - y) + point, (X.T * (p * (1 - p))) @ X + np.eye(4))

    goal = Goal(1e-8, 100, 1.0, np.ones(4), np.ones(4))
    optimum = np.zeros(4)
    for _ in range(20):
        optimum = optimum + newton_step(evaluated(optimum), goal).direction
    start = optimum + size * rng.normal(size=4)
    step = newton_step(evaluated(start), goal)
    left = evaluated(start + step.direction).value - evaluated(optimum).value
    assert left <= step.gap_after + 1e-12
    M = np.sqrt(4 / np.linalg.eigvalsh(evaluated(start).hessian)[0])
    change = largest_change(step.direction, np.ones(4))
    assert np.abs(X @ step.direction).max() <= change
    assert left <= contracted_gap(M, np.sqrt(step.decrement2), change) + 1e-12


def test_the_step_lowers_the_bound_when_it_is_short_and_there_is_none_when_it_is_long():
    gap, after = self_concordant_gaps(0.1)
    assert after < 0.1 * gap
    assert self_concordant_gaps(1.0) == (np.inf, np.inf)
    assert self_concordant_gaps(np.nan) == (np.inf, np.inf)


def quadratic(hessian, optimum, at, floor=1.0):
    d = at - optimum
    return Evaluation(floor + 0.5 * d @ hessian @ d, hessian @ d, hessian)


@given(st.integers(0, 1000), st.integers(1, 8))
def test_the_newton_step_of_a_quadratic_leads_to_its_optimum(seed, n):
    rng = np.random.default_rng(seed)
    scales = 10.0 ** rng.integers(-6, 7, n)
    A = rng.normal(size=(3 * n, n))
    hessian = A.T @ A * np.outer(scales, scales)
    optimum, at = rng.normal(size=(2, n)) / scales
    step = newton_step(quadratic(hessian, optimum, at), quadratic_goal(n))
    np.testing.assert_allclose(at + step.direction, optimum, rtol=1e-6, atol=1e-6 / scales.max())
    exact = 0.5 * (at - optimum) @ hessian @ (at - optimum)
    assert step.gap >= exact * (1 - 1e-9)
    assert step.gap == pytest.approx(exact, rel=1e-6)
    assert step.gap_after <= 1e-9 * exact + 1e-20


def test_equal_columns_get_equal_shares_whatever_the_scales():
    scales = np.array([1.0, 1.0, 1e-7, 1e5])
    A = np.random.default_rng(0).normal(size=(20, 4))
    A[:, 1] = A[:, 0]
    hessian = A.T @ A * np.outer(scales, scales)
    target = np.array([3.0, 0.0, 1e7, 1e-5])
    step = newton_step(quadratic(hessian, target, np.zeros(4)), quadratic_goal(4))
    np.testing.assert_allclose(step.direction, [1.5, 1.5, 1e7, 1e-5], rtol=1e-9)
    assert np.isfinite(step.gap_after)


def test_a_flat_direction_with_a_slope_is_certified_by_nothing():
    hessian = np.array([[1.0, 1.0], [1.0, 1.0]])
    evaluation = Evaluation(1.0, np.array([1.0, 0.999]), hessian)
    step = newton_step(evaluation, quadratic_goal(2))
    assert step.gap == step.gap_after == np.inf
    assert np.isnan(relative_gap(1.0, step.gap, step.gap_after))


def test_a_zero_row_of_the_hessian_is_left_alone():
    hessian = np.diag([2.0, 0.0])
    step = newton_step(Evaluation(1.0, np.array([2.0, 0.0]), hessian), quadratic_goal(2))
    np.testing.assert_allclose(step.direction, [-1.0, 0.0], rtol=1e-15)


def test_a_step_needs_a_hessian():
    with pytest.raises(ValueError, match="order=2"):
        newton_step(Evaluation(1.0, np.zeros(2), None), quadratic_goal(2))


@given(st.floats(0.0, 0.9), st.floats(0.0, 0.9), st.floats(0.1, 100.0))
def test_the_relative_gap_is_above_the_true_one(gap, share, value):
    # The optimum is anywhere within the bound below the value; the step got to `after` above it.
    before = gap * value
    after = share * before
    for optimum in (value - before, value - 0.5 * before):
        objective = optimum + min(after, value - optimum)
        true = (objective - optimum) / objective
        assert relative_gap(value, before, after) >= true


def test_there_is_no_relative_gap_without_a_bound():
    assert np.isnan(relative_gap(1.0, np.inf, np.inf))
    assert relative_gap(0.0, 0.0, 0.0) > 0.0


@given(st.integers(0, 100))
def test_the_bound_of_the_gradient_holds_for_strongly_convex_functions(seed):
    rng = np.random.default_rng(seed)
    hessian = np.diag(rng.random(4) + 0.3)
    evaluation = quadratic(hessian, rng.normal(size=4), rng.normal(size=4), floor=2.0)
    goal = Goal(1e-8, 10, 1.0, np.ones(4), 0.3)
    bound = gradient_gap(evaluation.value, evaluation.gradient, goal)
    assert bound >= (evaluation.value - 2.0) / evaluation.value
    assert np.isnan(gradient_gap(1.0, np.ones(4), quadratic_goal(4)))


def test_a_trial_is_accepted_by_armijo_with_room_for_rounding():
    assert is_descent(1.0, -1.0, 1.0, 0.9)
    assert not is_descent(1.0, -1.0, 1.0, 0.99995)
    assert is_descent(1.0, -1e-18, 1.0, 1.0 + 1e-15)
    assert not is_descent(1.0, -1e-18, 1.0, 1.0 + 1e-12)
    assert not is_descent(1.0, -1.0, 1.0, np.nan)
    assert not is_descent(1.0, -1.0, 1.0, np.inf)


@given(st.floats(1e-3, 10.0), st.floats(-10.0, -1e-3), st.floats(0.0, 1e6))
def test_a_shorter_step_is_the_parabolas_minimum_between_a_tenth_and_a_half(step, slope, rise):
    trial = 1.0 + rise
    shorter = shorter_step(1.0, slope, step, trial)
    assert 0.1 * step <= shorter <= 0.5 * step
    curvature = (trial - 1.0 - step * slope) / step**2
    expected = np.clip(-slope / (2.0 * curvature), 0.1 * step, 0.5 * step)
    assert shorter == pytest.approx(expected, rel=1e-9)
    assert shorter_step(1.0, slope, step, np.inf) == 0.1 * step
