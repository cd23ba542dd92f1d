"""Newton's method with Armijo backtracking, every trial an ordinary round."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dask_dml.objective.losses import Array
from dask_dml.objective.problem import Evaluation
from dask_dml.solvers.core import (
    CONVERGED,
    MAX_ITER,
    VANISHED,
    Ask,
    Goal,
    StoredState,
    certified_finish,
    is_negligible,
    relative_gap,
)
from dask_dml.solvers.line import LineState, shortened

_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Newton:
    """Newton's method.

    Every round asks for the Hessian along with value and gradient, since the whole step is nearly
    always accepted and the next round then needs it.

    Parameters
    ----------
    goal : Goal
    """

    goal: Goal
    name: str = "newton"

    def start(self, point: Array) -> LineState:
        """State before the first round."""
        return LineState(point, np.inf, np.nan, 0, "", np.zeros_like(point), 0.0, 1.0)

    def ask(self, state: LineState) -> Ask:
        """The next trial point, with its Hessian."""
        return Ask(state.trial, 2)

    def restore(self, stored: StoredState) -> LineState:
        """The state that was stored."""
        return stored.restored(LineState)

    def tell(self, state: LineState, evaluation: Evaluation) -> LineState:
        """Accept the trial and turn to the next Newton step, or shorten the step."""
        first = not np.isfinite(state.value)
        if (shorter := shortened(state, evaluation.value)) is not None:
            return shorter
        point = state.trial
        newton, better, gap_after = certified_finish(point, evaluation, self.goal)
        gap_here = relative_gap(evaluation.value, newton.gap, newton.gap)
        n_iter = state.n_iter + (0 if first else 1)
        accepted = replace(
            state,
            point=point,
            value=evaluation.value,
            gap=gap_here,
            n_iter=n_iter,
            direction=newton.direction,
            slope=-newton.decrement2,
            # No objective is below zero: where the model says so, the step is too long.
            step=min(1.0, 2.0 * evaluation.value / max(newton.decrement2, _TINY)),
        )
        # Stop when this point is good enough, and return the better one that its step leads to;
        # for a quadratic that is the optimum, after one round.
        quadratic = self.goal.self_concordance == 0.0
        if gap_here <= self.goal.tol and not gap_after <= gap_here:
            return replace(accepted, reason=CONVERGED)
        if gap_here <= self.goal.tol or (quadratic and gap_after <= self.goal.tol):
            return replace(
                accepted, point=better, gap=gap_after, n_iter=n_iter + 1, reason=CONVERGED
            )
        # Rounds after the first refine a quadratic's solution, until rounding is all that is left;
        # so do those of a loss that is made of quadratics.
        pieced = not np.isfinite(self.goal.self_concordance)
        is_rounding = is_negligible(evaluation.value, 0.5 * newton.decrement2)
        refined = not first and newton.decrement2 > -0.25 * state.slope
        if (quadratic and refined) or (is_rounding and (refined or not pieced)):
            return replace(accepted, reason=CONVERGED)
        if evaluation.value <= self.goal.vanishing:
            # A perfect fit, of which nothing is left but rounding; or one without an optimum.
            return replace(accepted, reason=CONVERGED if np.isfinite(gap_here) else VANISHED)
        if n_iter >= self.goal.max_iter:
            return replace(accepted, reason=MAX_ITER)
        return accepted
