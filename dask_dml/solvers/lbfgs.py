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
# A stage is over when the decrease that is expected is within this share of the relative error of
# the sample's optimum.
_ERROR_SHARE = 0.1


@dataclass(frozen=True)
class LBFGSState(SolverState):
    """State of `LBFGS`.

    Attributes
    ----------
    stage : int
        Which of the solver's shares of the rows.
    initial : float
        Objective at the stage's first point.
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

    stage: int
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
    shares : tuple of float
        Shares of the rows that are solved one after the other, each from the point of the last and
        no closer than a tenth of its statistical error; the last is all.
    n_rows : int
        Of the data; used where there are several shares.
    memory : int
        Pairs kept.

    References
    ----------
    Nocedal & Wright 2006, algorithm 7.5. The bracketing of the weak Wolfe conditions is that of
    Lewis & Overton 2013, which needs no interpolation and no nested evaluations.
    """

    goal: Goal
    shares: tuple[float, ...] = (1.0,)
    n_rows: int = 1
    memory: int = 10
    name: str = "lbfgs"

    def start(self, point: Array) -> LBFGSState:
        """State before the first round."""
        none = np.empty((0, len(point)))
        zero = np.zeros_like(point)
        unknown = (np.inf, np.nan, 0, "")
        return LBFGSState(point, *unknown, 0, np.inf, zero, none, none, zero, 1.0, 0.0, np.inf, 0)

    def ask(self, state: LBFGSState) -> Ask:
        """The next trial point."""
        return Ask(state.point + state.step * state.direction, 1, self.shares[state.stage])

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

    def _is_last(self, state: LBFGSState) -> bool:
        return state.stage == len(self.shares) - 1

    def _next(self, state: LBFGSState) -> LBFGSState:
        """The next stage, in which curvature along the last steps is about the same."""
        zero = np.zeros_like(state.point)
        return replace(state, stage=state.stage + 1, value=np.inf, direction=zero, n_trials=0)

    def _bracket(self, state: LBFGSState) -> LBFGSState:
        if state.n_trials >= _MAX_TRIALS:
            return replace(state, reason=STALLED) if self._is_last(state) else self._next(state)
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
            state, direction=direction, step=1.0, shortest=0.0, longest=np.inf, n_trials=0
        )
        size = resolved(state.value, state.initial)
        enough = self.goal.tol
        if self._is_last(state):
            state = replace(state, gap=gradient_gap(state.value, state.gradient, self.goal))
        else:
            n_drawn = self.shares[state.stage] * self.n_rows
            enough = max(enough, _ERROR_SHARE * len(state.point) / n_drawn)
        if expected <= enough * size or is_negligible(size, expected):
            return replace(state, reason=CONVERGED) if self._is_last(state) else self._next(state)
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
