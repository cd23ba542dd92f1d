from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_dml.objective import (
    L2Penalty,
    LogisticLoss,
    MultinomialLoss,
    Problem,
    SquaredLoss,
    TargetKind,
    block_statistics,
    survey_block,
)

LOSSES = [LogisticLoss(), MultinomialLoss(3), SquaredLoss()]
SCALES = np.array([1e-3, 1.0, 50.0, 1.0])
OFFSETS = np.array([0.0, 3.0, -400.0, 0.0])


class Case:
    """A problem and the rows it is of."""

    def __init__(self, loss, fit_intercept=True, strength=1.0, isotropic=False, seed=0, n=90):
        rng = np.random.default_rng(seed)
        self.X = rng.normal(size=(n, 4)) * SCALES + OFFSETS
        self.weight = rng.random(n)
        if isinstance(loss, SquaredLoss):
            self.target, kind = rng.normal(5.0, 2.0, n), TargetKind.NUMBERS
        else:
            self.target = rng.integers(0, max(2, loss.n_outputs), n).astype(np.int32)
            kind = TargetKind.CLASSES
        names = tuple("abcd")
        survey = survey_block(kind, names, 0, self.X, self.target, self.weight)
        self.problem = Problem(
            loss, L2Penalty(strength), 0.7, survey, fit_intercept, isotropic=isotropic
        )

    def evaluate(self, point, order=2):
        request = self.problem.request(point, order)
        return self.problem.evaluation(
            point, block_statistics(request, self.X, self.target, self.weight)
        )

    def random_point(self, seed=1):
        rng = np.random.default_rng(seed)
        K = self.problem.loss.n_outputs
        return self.problem.point(rng.normal(size=(K, 4)) / SCALES, rng.normal(size=K))


CASES = [
    pytest.param(loss, intercept, strength, isotropic, id=f"{type(loss).__name__}-{n}")
    for loss in LOSSES
    for n, (intercept, strength, isotropic) in enumerate(
        [(True, 1.0, False), (False, 2.5, False), (True, 0.0, False), (True, 0.0, True)]
    )
]


@pytest.mark.parametrize(("loss", "intercept", "strength", "isotropic"), CASES)
def test_gradient_and_hessian_are_the_derivatives_in_the_solvers_coordinates(
    loss, intercept, strength, isotropic
):
    case = Case(loss, intercept, strength, isotropic)
    point = case.random_point()
    found = case.evaluate(point)
    extent = np.tile(case.problem.row_extent, loss.n_outputs)
    gradient, hessian = np.empty_like(point), np.empty_like(found.hessian)
    for j in range(len(point)):
        h = 1e-5 / extent[j]
        step = np.zeros_like(point)
        step[j] = h
        up, down = case.evaluate(point + step, 1), case.evaluate(point - step, 1)
        gradient[j] = (up.value - down.value) / (2 * h)
        hessian[j] = (up.gradient - down.gradient) / (2 * h)
    size = np.abs(found.gradient).max()
    np.testing.assert_allclose(found.gradient, gradient, atol=1e-6 * size + 1e-7)
    expected = found.hessian
    if loss.shift_invariant:
        # Equal shifts are given a curvature; points and gradients have no part in them.
        K, q = loss.n_outputs, case.problem.n_terms
        shift = np.kron(np.full((K, 1), K**-0.5), np.eye(q))
        np.testing.assert_allclose(shift.T @ point, 0.0, atol=1e-12 * np.abs(point).max())
        np.testing.assert_allclose(shift.T @ found.gradient, 0.0, atol=1e-9)
        expected = expected - shift @ shift.T
    np.testing.assert_allclose(expected, hessian, atol=1e-6 * np.abs(hessian).max())


@pytest.mark.parametrize(("loss", "intercept", "strength", "isotropic"), CASES)
def test_the_value_is_the_objective_of_the_coefficients(loss, intercept, strength, isotropic):
    case = Case(loss, intercept, strength, isotropic)
    point = case.random_point()
    coef, constant = case.problem.coefficients(point)
    scores = case.X @ coef.T + constant
    losses = loss.evaluate(scores, case.target, 1).loss
    expected = 0.7 * case.weight @ losses + strength / 2 * np.sum(coef**2)
    assert case.evaluate(point).value == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("intercept", [False, True])
@given(st.integers(0, 10_000))
def test_coefficients_survive_the_way_to_a_point_and_back(intercept, seed):
    case = Case(MultinomialLoss(3), intercept)
    rng = np.random.default_rng(seed)
    coef = rng.normal(size=(3, 4)) * 10.0 ** rng.integers(-6, 6)
    constant = rng.normal(size=3) * intercept
    there = case.problem.point(coef, constant)
    assert there.shape == (case.problem.n_coordinates,)
    back, back_constant = case.problem.coefficients(there)
    # Of several classes those are kept that add up to zero; the rest changes no probability.
    np.testing.assert_allclose(back, coef - coef.mean(axis=0), atol=1e-14 * np.abs(coef).max())
    np.testing.assert_allclose(
        back_constant, constant - constant.mean(), atol=1e-12 * (1.0 + 400.0 * np.abs(coef).max())
    )


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_the_start_is_the_best_constant_model(loss):
    case = Case(loss)
    coef, _ = case.problem.coefficients(case.problem.start())
    np.testing.assert_array_equal(coef, 0.0)
    gradient = case.evaluate(case.problem.start()).gradient.reshape(loss.n_outputs, -1)
    np.testing.assert_allclose(gradient[:, -1], 0.0, atol=1e-12)


@pytest.mark.parametrize(("loss", "intercept", "strength", "isotropic"), CASES)
def test_no_row_is_outside_the_extent_and_no_curvature_below_the_bound(
    loss, intercept, strength, isotropic
):
    case = Case(loss, intercept, strength, isotropic)
    problem = case.problem
    design = case.X - problem.center
    if intercept:
        design = np.column_stack([design, np.ones(len(design))])
    assert np.all(np.abs(design / problem.scale) <= problem.row_extent)
    for seed in range(5):
        hessian = case.evaluate(case.random_point(seed)).hessian
        assert np.linalg.eigvalsh(hessian - np.diag(problem.convexity))[0] >= -1e-9


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_coordinates_are_scaled_so_that_the_curvature_of_each_is_at_most_one(loss):
    case = Case(loss, strength=0.1)
    for seed in range(3):
        diagonal = np.diagonal(case.evaluate(case.random_point(seed)).hessian)
        assert np.all(diagonal <= 1.0 + 1.0 / loss.n_outputs + 1e-9)
    at_start = np.diagonal(case.evaluate(case.problem.start()).hessian)
    assert np.all(at_start > 0.1)


@pytest.mark.parametrize("strength", [-1.0, np.nan, np.inf])
def test_a_penalty_that_is_not_convex_is_refused(strength):
    with pytest.raises(ValueError, match="finite number >= 0"):
        L2Penalty(strength)


def test_the_penalty_and_its_gradient():
    coef = np.array([[1.0, -2.0], [0.5, 0.0]])
    assert L2Penalty(3.0).value(coef) == 1.5 * 5.25
    np.testing.assert_array_equal(L2Penalty(3.0).gradient(coef), 3.0 * coef)
    assert L2Penalty(0.0).value(coef) == 0.0
