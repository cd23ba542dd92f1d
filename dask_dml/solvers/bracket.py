"""A bound of the gap from gradients alone, with one coordinate that nothing makes convex.

Where Hessians are too large, the penalty bounds the gap; but not where an intercept is free of it.
Then one more point, on the other side of the minimum along the intercept, takes its place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dask_dml.objective.losses import Array
from dask_dml.objective.problem import Evaluation
from dask_dml.solvers.core import (
    CONVERGED,
    Ask,
    Goal,
    SolverState,
    StoredState,
    gradient_gap,
    relative_gap,
)

_MAX_TRIALS = 30


@dataclass(frozen=True)
class BracketState(SolverState):
    """State of `Bracket`.

    Attributes
    ----------
    gradient : ndarray of shape (d,)
        At `point`.
    step : float
        To the other point, along the free coordinate.
    n_trials : int
        Points that were on the same side.
    """

    gradient: Array
    step: float
    n_trials: int


@dataclass(frozen=True)
class Bracket:
    r"""Bounds the gap at a point that a gradient method has found; leaves the point as it is.

    Parameters
    ----------
    goal : Goal
        `convexity` is zero for at most one coordinate.
    name : str

    Notes
    -----
    At every point x the function is above :math:`m_x(y) = f(x) + g_x^T (y - x) + (y - x)^T P (y -
    x) / 2` with P the diagonal `convexity`, zero for the free coordinate b. So it is above every
    mean of two such models, and of two points that differ by a step t along b alone, with slopes
    there of different sign, there is one mean with no slope along b: with weights :math:`\lambda =
    g'_b / (g'_b - g_b)` and :math:`1 - \lambda`. Its minimum leaves

    .. math:: f(x) - f^* \le (1 - \lambda) (f - f') - \lambda g_b t + \tfrac12 \sum_{j \ne b}
        (\lambda g_j + (1 - \lambda) g'_j)^2 / P_j.
    """

    goal: Goal
    name: str = "bracket"

    @property
    def _free(self) -> Array:
        return np.where(self.goal.convexity > 0.0, 0.0, 1.0)

    def start(self, point: Array) -> BracketState:
        """State before the first round."""
        return BracketState(point, np.inf, np.nan, 0, "", np.zeros_like(point), 0.0, 0)

    def ask(self, state: BracketState) -> Ask:
        """The point itself, then points away from it along the free coordinate."""
        return Ask(state.point + state.step * self._free, 1)

    def restore(self, stored: StoredState) -> BracketState:
        """The state that was stored."""
        return stored.restored(BracketState)

    def tell(self, state: BracketState, evaluation: Evaluation) -> BracketState:
        """Bound the gap, or go farther."""
        value, gradient = evaluation.value, evaluation.gradient
        if not np.isfinite(state.value):
            state = replace(state, value=value, gradient=gradient)
            slope = float(gradient @ self._free)
            if slope == 0.0:
                gap = gradient_gap(value, gradient, replace(self.goal, convexity=self._filled))
                return replace(state, gap=gap, reason=CONVERGED)
            # The curvature is at most about one: about as far again as the minimum, or less.
            return replace(state, step=-2.0 * slope)
        slopes = float(state.gradient @ self._free), float(gradient @ self._free)
        if np.isfinite(value) and slopes[0] * slopes[1] <= 0.0:
            return replace(state, gap=self._gap(state, evaluation, *slopes), reason=CONVERGED)
        reason = CONVERGED if state.n_trials >= _MAX_TRIALS else ""
        farther = 2.0 if np.isfinite(value) else 0.3
        return replace(state, step=farther * state.step, n_trials=state.n_trials + 1, reason=reason)

    @property
    def _filled(self) -> Array:
        return np.where(self.goal.convexity > 0.0, self.goal.convexity, 1.0)

    def _gap(self, state: BracketState, evaluation: Evaluation, here: float, there: float) -> float:
        share = there / (there - here)
        mean = share * state.gradient + (1.0 - share) * evaluation.gradient
        mean[self._free > 0.0] = 0.0
        gap = (1.0 - share) * (state.value - evaluation.value) - share * here * state.step
        gap += 0.5 * float(np.sum(mean**2 / self._filled))
        # What the difference of the two values has lost to rounding is in `relative_gap`.
        return relative_gap(state.value, max(gap, 0.0), max(gap, 0.0))
