"""Quasi-Newton over growing samples: the Hessian of a sample is the metric, pairs correct it.

The optimum on a random sample is within statistical error of that on all rows, so samples of
growing size are solved no closer than that error, each from the point of the last. A Hessian is
formed on the first sample's share of the rows only; every other round asks for a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg

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
    is_descent,
    is_negligible,
    resolved,
    shorter_step,
)

# Of a sample, and rows of it for each coordinate of an output: with few, classes separate, and the
# sample's optimum is far away.
_LEAST_SHARE = 0.1
_ROWS_A_TERM = 20
_GROWTH = 3.0
# A sample that is nearly everything is not worth a stage.
_LARGEST_SHARE = 0.7
# Of the statistical error of a sample's optimum, what is left when the next stage begins.
_ERROR_SHARE = 0.1
# Accepted steps after which the metric is formed anew, and of how many more rows.
_STEPS_A_METRIC = 10
_METRIC_GROWTH = 2.0
_MAX_TRIALS = 30


@dataclass(frozen=True)
class SubsampledState(SolverState):
    """State of `SubsampledNewton`.

    Attributes
    ----------
    stage : int
        Which of the samples.
    is_metric_due : bool
        Whether the next round forms a Hessian.
    metric_share : float
        Share of the rows that it is formed of.
    initial : float
        Objective at the stage's first point.
    gradient : ndarray of shape (d,)
        At `point`, over the stage's sample.
    factor : ndarray of shape (d, d)
        Lower Cholesky factor of the metric.
    steps, changes : ndarray of shape (m, d)
        Differences of points and gradients since the metric was formed, oldest first.
    direction : ndarray of shape (d,)
    step : float
    n_trials : int
        Trials along this direction.
    """

    stage: int
    is_metric_due: bool
    metric_share: float
    initial: float
    gradient: Array
    factor: Array
    steps: Array
    changes: Array
    direction: Array
    step: float
    n_trials: int


@dataclass(frozen=True)
class SubsampledNewton:
    """Sub-sampled quasi-Newton; stops when its model expects to gain little on all rows.

    Parameters
    ----------
    goal : Goal
    n_rows : int
        Of the data.
    n_terms : int
        Coordinates an output.
    accuracy : float
        Relative decrease that is expected at the end.
    name : str

    References
    ----------
    Erdogdu & Montanari 2015; Bollapragada, Byrd & Nocedal 2019; the pairs as in Nocedal & Wright
    2006, algorithm 7.4, with the sample's Hessian as the first matrix.
    """

    goal: Goal
    n_rows: int
    n_terms: int
    accuracy: float
    name: str = "subsampled-newton"

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares of the rows that the stages look at; the last is all."""
        share = max(_LEAST_SHARE, _ROWS_A_TERM * self.n_terms / self.n_rows)
        shares = []
        while share <= _LARGEST_SHARE:
            shares.append(share)
            share *= _GROWTH
        return (*shares, 1.0)

    def start(self, point: Array) -> SubsampledState:
        """State before the first round."""
        zero, none = np.zeros_like(point), np.empty((0, len(point)))
        factor = np.zeros((len(point),) * 2)
        first = (0, True, self.shares[0], np.inf)
        return SubsampledState(
            point, np.inf, np.nan, 0, "", *first, zero, factor, none, none, zero, 1.0, 0
        )

    def ask(self, state: SubsampledState) -> Ask:
        """The metric, or value and gradient at the next trial point."""
        if state.is_metric_due:
            return Ask(state.point, 2, state.metric_share)
        return Ask(state.point + state.step * state.direction, 1, self.shares[state.stage])

    def restore(self, stored: StoredState) -> SubsampledState:
        """The state that was stored."""
        return stored.restored(SubsampledState)

    def tell(self, state: SubsampledState, evaluation: Evaluation) -> SubsampledState:
        """Take the metric; or accept the trial and turn, or shorten the step."""
        if state.is_metric_due:
            return self._take_metric(state, evaluation)
        if not np.isfinite(state.value):
            return self._turn(self._begun(state, evaluation))
        slope = float(state.gradient @ state.direction)
        if not is_descent(state.value, slope, state.step, evaluation.value):
            step = shorter_step(state.value, slope, state.step, evaluation.value)
            stalled = state.n_trials >= _MAX_TRIALS
            return replace(
                state, step=step, n_trials=state.n_trials + 1, reason=STALLED if stalled else ""
            )
        moved = state.step * state.direction
        change = evaluation.gradient - state.gradient
        steps, changes = state.steps, state.changes
        # Backtracking does not see to it that the curvature along the step is positive.
        if float(moved @ change) > 1e-10 * float(np.linalg.norm(moved) * np.linalg.norm(change)):
            steps, changes = np.vstack([steps, moved]), np.vstack([changes, change])
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

    def _take_metric(self, state: SubsampledState, evaluation: Evaluation) -> SubsampledState:
        if evaluation.hessian is None:
            raise ValueError("SubsampledNewton.tell(evaluation=...) needs the Hessian it asked for")
        none = np.empty((0, len(state.point)))
        state = replace(
            state,
            is_metric_due=False,
            factor=_cholesky(evaluation.hessian),
            steps=none,
            changes=none,
            direction=np.zeros_like(state.point),
        )
        if np.isfinite(state.value):
            return self._turn(state)
        if state.metric_share == self.shares[state.stage]:
            return self._turn(self._begun(state, evaluation))
        return state

    def _begun(self, state: SubsampledState, evaluation: Evaluation) -> SubsampledState:
        value = evaluation.value
        return replace(state, value=value, initial=value, gradient=evaluation.gradient)

    def _turn(self, state: SubsampledState) -> SubsampledState:
        direction = -_times_inverse(state.gradient, state.factor, state.steps, state.changes)
        expected = -0.5 * float(state.gradient @ direction)
        size = resolved(state.value, state.initial)
        share = self.shares[state.stage]
        is_last = state.stage == len(self.shares) - 1
        enough = self.accuracy
        if not is_last:
            enough = max(enough, _ERROR_SHARE * len(state.point) / (share * self.n_rows))
        state = replace(state, direction=direction, step=1.0, n_trials=0)
        if expected <= enough * size or is_negligible(size, expected):
            if is_last:
                return replace(state, reason=CONVERGED)
            return replace(
                state,
                stage=state.stage + 1,
                is_metric_due=True,
                value=np.inf,
                direction=np.zeros_like(direction),
            )
        if state.n_iter >= self.goal.max_iter:
            return replace(state, reason=MAX_ITER)
        if len(state.steps) < _STEPS_A_METRIC:
            return state
        # What so many pairs did not correct wants more rows, as far as the stage has them.
        larger = min(_METRIC_GROWTH * state.metric_share, share)
        return replace(state, is_metric_due=True, metric_share=larger)


def _cholesky(hessian: Array) -> Array:
    """Lower Cholesky factor; of what is singular to rounding, with a little on the diagonal."""
    mean = float(np.diagonal(hessian).mean())
    for relative in (0.0, 1e-12, 1e-9, 1e-6, 1e-3):
        try:
            shifted = hessian + relative * mean * np.eye(len(hessian))
            return np.asarray(scipy.linalg.cholesky(shifted, lower=True))
        except scipy.linalg.LinAlgError:
            continue
    return np.eye(len(hessian)) * float(np.sqrt(max(mean, 1e-300)))


def _times_inverse(gradient: Array, factor: Array, steps: Array, changes: Array) -> Array:
    """The two-loop recursion around the inverse of the metric."""
    vector = gradient.copy()
    inverse = 1.0 / np.einsum("ij,ij->i", steps, changes)
    alpha = np.empty(len(steps))
    for i in reversed(range(len(steps))):
        alpha[i] = inverse[i] * float(steps[i] @ vector)
        vector -= alpha[i] * changes[i]
    vector = np.asarray(scipy.linalg.cho_solve((factor, True), vector))
    for i in range(len(steps)):
        beta = inverse[i] * float(changes[i] @ vector)
        vector += (alpha[i] - beta) * steps[i]
    return vector
