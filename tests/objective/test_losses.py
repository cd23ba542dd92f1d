from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from dask_dml.objective import LogisticLoss, MultinomialLoss, SquaredLoss

MODERATE = st.floats(-30, 30)
ANY_SIZE = st.one_of(MODERATE, st.floats(-800, 800), st.sampled_from([-800.0, 800.0, 0.0]))
LOSSES = [LogisticLoss(), MultinomialLoss(3), MultinomialLoss(5), SquaredLoss()]


def scores_of(loss, elements, n=6):
    return arrays(np.float64, (n, loss.n_outputs), elements=elements)


def targets_of(loss, rng, n):
    if isinstance(loss, SquaredLoss):
        return rng.normal(size=n)
    return rng.integers(0, max(loss.n_outputs, 2), n).astype(np.int32)


def second_derivative(terms, row):
    """The K x K matrix of one row, diag(d) - u u^T."""
    matrix = np.diag(terms.curvature[row])
    if terms.coupling is not None:
        matrix = matrix - np.outer(terms.coupling[row], terms.coupling[row])
    return matrix


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@given(st.data())
def test_residual_is_the_derivative_of_the_loss(loss, data):
    scores = data.draw(scores_of(loss, st.floats(-15, 15)))
    target = targets_of(loss, np.random.default_rng(data.draw(st.integers(0, 99))), len(scores))
    terms = loss.evaluate(scores.copy(), target, 1)
    assert terms.curvature is None
    assert terms.coupling is None
    h = 1e-5
    for k in range(loss.n_outputs):
        step = np.zeros_like(scores)
        step[:, k] = h
        up, down = (loss.evaluate(scores + s, target, 1).loss for s in (step, -step))
        np.testing.assert_allclose((up - down) / (2 * h), terms.residual[:, k], atol=2e-8)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@given(st.data())
def test_second_derivative_is_that_of_the_residual_and_is_within_its_bound(loss, data):
    scores = data.draw(scores_of(loss, st.floats(-15, 15)))
    target = targets_of(loss, np.random.default_rng(data.draw(st.integers(0, 99))), len(scores))
    terms = loss.evaluate(scores.copy(), target, 2)
    np.testing.assert_array_equal(terms.residual, loss.evaluate(scores.copy(), target, 1).residual)
    h = 1e-5
    numeric = np.empty((len(scores), loss.n_outputs, loss.n_outputs))
    for k in range(loss.n_outputs):
        step = np.zeros_like(scores)
        step[:, k] = h
        up, down = (loss.evaluate(scores + s, target, 1).residual for s in (step, -step))
        numeric[:, :, k] = (up - down) / (2 * h)
    for row in range(len(scores)):
        matrix = second_derivative(terms, row)
        np.testing.assert_allclose(matrix, numeric[row], atol=1e-9)
        eigenvalues = np.linalg.eigvalsh(matrix)
        assert eigenvalues[0] >= -1e-15
        assert eigenvalues[-1] <= loss.curvature_bound + 1e-15


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@given(st.data())
def test_the_loss_is_finite_and_convex_for_scores_of_any_size(loss, data):
    a = data.draw(scores_of(loss, ANY_SIZE))
    b = data.draw(scores_of(loss, ANY_SIZE))
    target = targets_of(loss, np.random.default_rng(1), len(a))
    at_a, at_b, between = (loss.evaluate(s, target, 2) for s in (a, b, 0.5 * (a + b)))
    for terms in (at_a, at_b, between):
        assert np.all(np.isfinite(terms.loss))
        assert np.all(np.isfinite(terms.residual))
        assert np.all(terms.curvature >= 0.0)
        assert np.all(terms.loss >= 0.0)
    mean = 0.5 * (at_a.loss + at_b.loss)
    assert np.all(between.loss <= mean + 1e-12 * (1.0 + mean))


@given(arrays(np.float64, 8, elements=ANY_SIZE), st.integers(0, 1))
def test_log_loss_keeps_its_digits_for_scores_of_any_size(scores, label):
    terms = LogisticLoss().evaluate(scores[:, None].copy(), np.full(8, label), 2)
    wide = np.abs(scores).astype(np.longdouble)
    right = (scores >= 0.0) == (label == 1)
    tail = np.log1p(np.exp(-wide))
    expected = np.where(right, tail, tail + wide)
    np.testing.assert_allclose(terms.loss, expected.astype(float), rtol=1e-14)
    probability_of_wrong = np.where(right, np.exp(-wide), 1.0) / (1.0 + np.exp(-wide))
    sign = 1.0 if label == 0 else -1.0
    np.testing.assert_allclose(
        terms.residual[:, 0], sign * probability_of_wrong.astype(float), rtol=1e-14
    )


@given(
    arrays(np.float64, (8, 4), elements=ANY_SIZE), arrays(np.int32, 8, elements=st.integers(0, 3))
)
def test_multinomial_loss_is_that_of_the_softmax_and_keeps_its_digits(scores, target):
    terms = MultinomialLoss(4).evaluate(scores.copy(), target, 1)
    wide = scores.astype(np.longdouble)
    rows = np.arange(8)
    np.testing.assert_allclose(
        terms.loss, -log_softmax(scores, axis=1)[rows, target], rtol=1e-12, atol=1e-15
    )
    # 1 - p of the own class, from the others: no cancellation.
    others = wide.copy()
    others[rows, target] = -np.inf
    top = wide.max(axis=1, keepdims=True)
    miss = np.exp(others - top).sum(axis=1) / np.exp(wide - top).sum(axis=1)
    np.testing.assert_allclose(-terms.residual[rows, target], miss.astype(float), rtol=1e-13)


@given(
    arrays(np.float64, (5, 2), elements=MODERATE), arrays(np.int32, 5, elements=st.integers(0, 1))
)
def test_multinomial_loss_of_two_classes_is_the_binary_loss_of_the_difference(scores, target):
    both = MultinomialLoss(2).evaluate(scores.copy(), target, 1)
    one = LogisticLoss().evaluate(scores[:, 1:] - scores[:, :1], target, 1)
    np.testing.assert_allclose(both.loss, one.loss, rtol=1e-12)
    np.testing.assert_allclose(both.residual[:, 1:], one.residual, rtol=1e-12)


@pytest.mark.parametrize("loss", [LogisticLoss(), MultinomialLoss(3), MultinomialLoss(5)], ids=repr)
@given(st.data())
def test_third_derivative_is_bounded_by_the_self_concordance(loss, data):
    K = loss.n_outputs
    z = data.draw(arrays(np.float64, (1, K), elements=st.floats(-6, 6)))
    u, v = (data.draw(arrays(np.float64, K, elements=st.floats(-1, 1))) for _ in "uv")
    target = np.zeros(1, dtype=np.int32)

    def curvature(t):
        return u @ second_derivative(loss.evaluate(z + t * v, target, 2), 0) @ u

    h = 1e-4
    third = (curvature(h) - curvature(-h)) / (2 * h)
    bound = loss.self_concordance * np.linalg.norm(v) * curvature(0.0)
    assert abs(third) <= bound * (1 + 1e-6) + 1e-9


def test_self_concordance_of_several_classes_is_nearly_reached():
    loss = MultinomialLoss(3)
    z = np.array([[0.0, 12.0, -40.0]])
    u = v = np.array([1.0, -1.0, 0.0]) / np.sqrt(2.0)
    h = 1e-4

    def curvature(t):
        return u @ second_derivative(loss.evaluate(z + t * v, np.zeros(1, np.int32), 2), 0) @ u

    third = abs(curvature(h) - curvature(-h)) / (2 * h)
    assert third > 0.99 * loss.self_concordance * curvature(0.0)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_the_best_constant_minimises_the_loss_without_features(loss):
    rng = np.random.default_rng(2)
    n = 300
    target = targets_of(loss, rng, n)
    weight = rng.random(n)
    if isinstance(loss, SquaredLoss):
        mean = np.array([np.average(target, weights=weight)])
    else:
        mean = np.bincount(target, weights=weight) / weight.sum()

    def objective(constant):
        return weight @ loss.evaluate(np.tile(constant, (n, 1)), target, 1).loss

    best = loss.best_constant(mean)
    found = minimize(objective, np.zeros(loss.n_outputs), method="BFGS", tol=1e-9)
    assert objective(best) <= found.fun + 1e-9
    step = np.full(n, 1.0)[:, None] * best
    gradient = weight @ loss.evaluate(step, target, 1).residual
    np.testing.assert_allclose(gradient, 0.0, atol=1e-10)


def test_squared_loss_is_half_the_square():
    terms = SquaredLoss().evaluate(np.array([[3.0], [-1.0]]), np.array([1, 1], np.int16), 2)
    np.testing.assert_array_equal(terms.loss, [2.0, 2.0])
    np.testing.assert_array_equal(terms.residual, [[2.0], [-2.0]])
    np.testing.assert_array_equal(terms.curvature, [[1.0], [1.0]])


@given(arrays(np.float64, (4, 3), elements=ANY_SIZE))
def test_probabilities_add_up_to_one_and_are_those_of_the_softmax(scores):
    several = MultinomialLoss(3).probabilities(scores)
    np.testing.assert_allclose(several, softmax(scores, axis=1), atol=1e-15)
    two = LogisticLoss().probabilities(scores[:, :1])
    np.testing.assert_allclose(two.sum(axis=1), 1.0, rtol=1e-15)
    assert np.all(two[scores[:, 0] < 0.0, 0] >= 0.5)
