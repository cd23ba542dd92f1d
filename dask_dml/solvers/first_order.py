"""Gradient descent, every trial an ordinary round."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dask_dml.objective.losses import Array
from dask_dml.objective.problem import Evaluation
from dask_dml.solvers.core import (
    CONVERGED,
    MAX_ITER,
    STALLED,
    Ask,
    Goal,
    SolverState,
    StoredState,
    gradient_gap,
    is_descent,
    is_negligible,
    resolved,
    shorter_step,
)

_REMEMBERED = 10


@dataclass(frozen=True)
class GradientDescentState(SolverState):
    """State of `GradientDescent`.

    Attributes
    ----------
    initial : float
        Objective at the first point.
    gradient : ndarray of shape (d,)
        At `point`.
    step : float
        Trial along the negative gradient.
    recent : ndarray of shape (m,)
        Objectives at the last accepted points, of which a trial must be below the largest.
    """

    initial: float
    gradient: Array
    step: float
    recent: Array


@dataclass(frozen=True)
class GradientDescent:
    """Gradient descent with Barzilai-Borwein steps, safeguarded by non-monotone backtracking.

    Parameters
    ----------
    goal : Goal

    References
    ----------
    Barzilai & Borwein 1988; Raydan 1997.
    """

    goal: Goal
    name: str = "gd"

    def start(self, point: Array) -> GradientDescentState:
        """State before the first round."""
        return GradientDescentState(
            point, np.inf, np.nan, 0, "", np.inf, np.zeros_like(point), 1.0, np.empty(0)
        )

    def ask(self, state: GradientDescentState) -> Ask:
        """The next trial point."""
        return Ask(state.point - state.step * state.gradient, 1)

    def restore(self, stored: StoredState) -> GradientDescentState:
        """The state that was stored."""
        return stored.restored(GradientDescentState)

    def tell(self, state: GradientDescentState, evaluation: Evaluation) -> GradientDescentState:
        """Accept the trial and choose the next step, or shorten the step."""
        if not np.isfinite(state.value):
            state = replace(state, initial=evaluation.value)
            return self._accept(state, evaluation, state.point, 1.0, 0)
        slope = -float(state.gradient @ state.gradient)
        ceiling = float(state.recent.max())
        if not is_descent(ceiling, slope, state.step, evaluation.value):
            step = shorter_step(ceiling, slope, state.step, evaluation.value)
            return replace(state, step=step, reason=STALLED if step < 1e-18 else "")
        moved = -state.step * state.gradient
        change = evaluation.gradient - state.gradient
        curvature = float(moved @ change)
        step = float(moved @ moved) / curvature if curvature > 0.0 else 2.0 * state.step
        return self._accept(state, evaluation, state.point + moved, step, state.n_iter + 1)

    def _accept(
        self,
        state: GradientDescentState,
        evaluation: Evaluation,
        point: Array,
        step: float,
        n_iter: int,
    ) -> GradientDescentState:
        value, gradient = evaluation.value, evaluation.gradient
        # In scaled coordinates the curvature is of the order of one, or less.
        expected = 0.5 * max(step, 1.0) * float(gradient @ gradient)
        reason = ""
        size = resolved(value, state.initial)
        if expected <= self.goal.tol * size or is_negligible(size, expected):
            reason = CONVERGED
        elif n_iter >= self.goal.max_iter:
            reason = MAX_ITER
        return replace(
            state,
            point=point,
            value=value,
            gap=gradient_gap(value, gradient, self.goal),
            n_iter=n_iter,
            reason=reason,
            gradient=gradient,
            step=step,
            recent=np.append(state.recent, value)[-_REMEMBERED:],
        )
