"""Limited-memory BFGS with a weak Wolfe line search, every trial an ordinary round."""

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
)

_WOLFE = 0.9
_MAX_TRIALS = 40


@dataclass(frozen=True)
class LBFGSState(SolverState):
    """State of `LBFGS`.

    Attributes
    ----------
    initial : float
        Objective at the first point.
    gradient : ndarray of shape (d,)
        At `point`.
    steps, changes : ndarray of shape (m, d)
        Differences of the last m points and of their gradients, oldest first.
    direction : ndarray of shape (d,)
    step, shortest, longest : float
        Trial along the direction, and the bracket it is in.
    n_trials : int
        Trials along this direction.
    """

    initial: float
    gradient: Array
    steps: Array
    changes: Array
    direction: Array
    step: float
    shortest: float
    longest: float
    n_trials: int


@dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS; stops when its model expects to gain less than ``tol * |value|``.

    Parameters
    ----------
    goal : Goal
    memory : int
        Pairs kept.

    References
    ----------
    Nocedal & Wright 2006, algorithm 7.5. The bracketing of the weak Wolfe conditions is that of
    Lewis & Overton 2013, which needs no interpolation and no nested evaluations.
    """

    goal: Goal
    memory: int = 10
    name: str = "lbfgs"

    def start(self, point: Array) -> LBFGSState:
        """State before the first round."""
        none = np.empty((0, len(point)))
        zero = np.zeros_like(point)
        unknown = (np.inf, np.nan, 0, "", np.inf)
        return LBFGSState(point, *unknown, zero, none, none, zero, 1.0, 0.0, np.inf, 0)

    def ask(self, state: LBFGSState) -> Ask:
        """The next trial point."""
        return Ask(state.point + state.step * state.direction, 1)

    def restore(self, stored: StoredState) -> LBFGSState:
        """The state that was stored."""
        return stored.restored(LBFGSState)

    def tell(self, state: LBFGSState, evaluation: Evaluation) -> LBFGSState:
        """Accept the trial and build the next direction, or narrow the bracket."""
        if not np.isfinite(state.value):
            value, gradient = evaluation.value, evaluation.gradient
            return self._turn(replace(state, value=value, initial=value, gradient=gradient))
        slope = float(state.gradient @ state.direction)
        if not is_descent(state.value, slope, state.step, evaluation.value):
            return self._bracket(replace(state, longest=state.step))
        if float(evaluation.gradient @ state.direction) < _WOLFE * slope:
            return self._bracket(replace(state, shortest=state.step))
        return self._accept(state, evaluation)

    def _bracket(self, state: LBFGSState) -> LBFGSState:
        if state.n_trials >= _MAX_TRIALS:
            return replace(state, reason=STALLED)
        if np.isfinite(state.longest):
            step = 0.5 * (state.shortest + state.longest)
        else:
            step = 2.0 * state.shortest
        return replace(state, step=step, n_trials=state.n_trials + 1)

    def _accept(self, state: LBFGSState, evaluation: Evaluation) -> LBFGSState:
        moved = state.step * state.direction
        change = evaluation.gradient - state.gradient
        steps, changes = state.steps, state.changes
        # Wolfe's condition makes the product positive; rounding may not.
        if float(moved @ change) > 0.0:
            steps = np.vstack([steps, moved])[-self.memory :]
            changes = np.vstack([changes, change])[-self.memory :]
        return self._turn(
            replace(
                state,
                point=state.point + moved,
                value=evaluation.value,
                gradient=evaluation.gradient,
                steps=steps,
                changes=changes,
                n_iter=state.n_iter + 1,
            )
        )

    def _turn(self, state: LBFGSState) -> LBFGSState:
        direction = -_times_inverse_hessian(state.gradient, state.steps, state.changes)
        expected = -0.5 * float(state.gradient @ direction)
        state = replace(
            state,
            direction=direction,
            step=1.0,
            shortest=0.0,
            longest=np.inf,
            n_trials=0,
            gap=gradient_gap(state.value, state.gradient, self.goal),
        )
        size = resolved(state.value, state.initial)
        if expected <= self.goal.tol * size or is_negligible(size, expected):
            return replace(state, reason=CONVERGED)
        if state.n_iter >= self.goal.max_iter:
            return replace(state, reason=MAX_ITER)
        return state


def _times_inverse_hessian(gradient: Array, steps: Array, changes: Array) -> Array:
    """The two-loop recursion; the unit matrix without pairs, as coordinates are scaled."""
    vector = gradient.copy()
    if not len(steps):
        return vector
    inverse = 1.0 / np.einsum("ij,ij->i", steps, changes)
    alpha = np.empty(len(steps))
    for i in reversed(range(len(steps))):
        alpha[i] = inverse[i] * float(steps[i] @ vector)
        vector -= alpha[i] * changes[i]
    last = changes[-1]
    vector /= inverse[-1] * float(last @ last)
    for i in range(len(steps)):
        beta = inverse[i] * float(changes[i] @ vector)
        vector += (alpha[i] - beta) * steps[i]
    return vector
