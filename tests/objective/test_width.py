"""A loss with a width: its derivatives in coefficients and width together."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from dask_dml.objective import (
    HuberLoss,
    L2Penalty,
    TargetKind,
    WidthProblem,
    block_statistics,
    survey_block,
)


@pytest.mark.parametrize("slopes", [(-1.35, 1.35), (-0.2, 0.8)])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_derivatives(slopes, fit_intercept):
    rng = np.random.default_rng(0)
    X, y, weight = rng.normal(size=(90, 3)) + 4.0, rng.normal(size=90), rng.uniform(0, 2, 90)
    survey = survey_block(TargetKind.NUMBERS, ("a", "b", "c"), 0, X, y, weight)
    problem = WidthProblem(
        HuberLoss(*slopes, 0.9), L2Penalty(0.3), 2.0, survey, fit_intercept, price=1.7
    )

    def at(point, order=1):
        return problem.evaluation(
            point, block_statistics(problem.request(point, order), X, y, weight)
        )

    point = problem.start() + 0.1 * rng.normal(size=problem.n_coordinates) ** 2
    here = at(point, 2)
    for j, e in enumerate(1e-6 * np.eye(len(point))):
        forth, back = at(point + e), at(point - e)
        np.testing.assert_allclose(here.gradient[j], (forth.value - back.value) / 2e-6, rtol=1e-5)
        np.testing.assert_allclose(
            here.hessian[j], (forth.gradient - back.gradient) / 2e-6, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_sparse_rows_give_the_same_sums(fit_intercept, offset):
    rng = np.random.default_rng(1)
    X = rng.normal(size=(200, 4)) * (rng.random((200, 4)) < 0.4)
    X[:, 0] = rng.normal(size=200) + offset  # all there: centred value by value
    y, weight = rng.normal(size=200), rng.uniform(0, 2, 200)
    survey = survey_block(TargetKind.NUMBERS, tuple("abcd"), 0, X, y, weight)
    problem = WidthProblem(HuberLoss(-1.0, 1.5, 0.7), L2Penalty(0.1), 2.0, survey, fit_intercept)
    request = problem.request(problem.start() + 0.1, 2)
    dense = block_statistics(request, X, y, weight)
    sparse = block_statistics(request, scipy.sparse.csr_array(X), y, weight)
    np.testing.assert_allclose(sparse.loss, dense.loss, rtol=1e-12)
    np.testing.assert_allclose(sparse.gradient, dense.gradient, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(sparse.gram, dense.gram, rtol=1e-9, atol=1e-11)


@given(
    quantile=st.floats(0.01, 0.99),
    width=st.floats(1e-6, 1e3),
    error=st.floats(-1e3, 1e3),
)
def test_smoothing_takes_at_most_half_the_width_from_the_pinball_loss(quantile, width, error):
    loss = HuberLoss(-quantile, 1.0 - quantile, width)
    smooth = loss.evaluate(np.array([[-error]]), np.zeros(1), 1).loss[0]
    pinball = max(quantile * error, (quantile - 1.0) * error)
    most = 0.5 * width * max(quantile, 1.0 - quantile) ** 2
    assert pinball - most - 1e-12 * (1.0 + pinball + most) <= smooth <= pinball + 1e-12 * pinball
