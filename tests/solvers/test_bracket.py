"""The bound from gradients with a free intercept is never below the true gap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression as Reference

import dask_dml as dml
from dask_dml.linear_model import LogisticRegression
from dask_dml.objective.problem import Evaluation
from dask_dml.solvers import Goal
from dask_dml.solvers.bracket import Bracket


@given(
    seed=st.integers(0, 10_000),
    away=st.sampled_from([1e-6, 1e-2, 1.0, 30.0]),
    scale=st.sampled_from([1e-4, 1.0, 1e2]),
)
def test_the_gap_is_not_below_the_true_one(seed, away, scale):
    rng = np.random.default_rng(seed)
    n, p = 40, 3
    X = np.column_stack([rng.normal(size=(n, p)) * 0.3, np.ones(n)])
    y = np.where(rng.random(n) < 0.5, 1.0, -1.0)
    y[:2] = 1.0, -1.0
    convexity = np.append(np.full(p, scale), 0.0)

    def evaluated(theta):
        z = -y * (X @ theta)
        value = np.logaddexp(0.0, z).sum() + 0.5 * convexity @ theta**2
        residual = -y * np.exp(z - np.logaddexp(0.0, z))
        return Evaluation(float(value), X.T @ residual + convexity * theta, None)

    optimum = np.zeros(p + 1)
    for _ in range(100):
        z = X @ optimum
        curvature = 1.0 / (2.0 + np.exp(z) + np.exp(-z))
        hessian = (X.T * curvature) @ X + np.diag(convexity)
        step = np.linalg.solve(hessian, evaluated(optimum).gradient)
        optimum = optimum - step / (1.0 + np.abs(step).max())
    solver = Bracket(Goal(1e-8, 100, 1.0, np.ones(p + 1), convexity))
    state = solver.start(optimum + away * rng.normal(size=p + 1))
    while not state.reason:
        state = solver.tell(state, evaluated(solver.ask(state).point))
    best = evaluated(optimum).value
    assert state.gap >= (state.value - best) / state.value
    assert state.n_trials < 30


@pytest.mark.parametrize("solver", ["lbfgs", "gd"])
def test_a_fit_of_too_many_coefficients_for_a_hessian_has_a_gap(solver, monkeypatch):
    monkeypatch.setattr("dask_dml.solvers.choice._HESSIAN_COORDINATES", 5)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 12)) + 0.5
    y = (X @ rng.normal(size=12) + rng.logistic(size=400) > 1.0).astype(int)
    model = LogisticRegression(
        C=0.1, solver=solver, max_iter=1000, runtime=dml.Runtime(client="local")
    ).fit(X, y)
    reference = Reference(C=0.1, solver="newton-cholesky", tol=1e-12).fit(X, y)

    def objective(coef, intercept):
        z = np.where(y == 1, -1.0, 1.0) * (X @ coef + intercept)
        return 0.1 * np.logaddexp(0.0, z).sum() + 0.5 * coef @ coef

    here = objective(model.coef_[0], model.intercept_[0])
    best = objective(reference.coef_[0], reference.intercept_[0])
    assert (here - best) / here <= model.gap_ <= 1e-7
