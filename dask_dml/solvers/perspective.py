"""Newton's method for a loss and its scale together: a sum of perspective functions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import numpy as np

from dask_dml.objective.losses import Array
from dask_dml.objective.problem import Evaluation
from dask_dml.solvers.core import (
    CONVERGED,
    MAX_ITER,
    Ask,
    Goal,
    StoredState,
    is_negligible,
    newton_step,
    relative_gap,
)
from dask_dml.solvers.line import LineState, shortened

NO_SCALE = "the scale falls to zero: too many rows lie exactly on one plane"

# What a step may multiply or divide the scale by.
_MOST_GROWTH = 10.0
_MOST_SHRINKAGE = 1e4
# Of the first scale: below, the objective is that of absolute errors to as many digits.
_LEAST_SCALE = 1e-7
# Relative size of what is left of a linear system that is taken as solved.
_UNSOLVED = 1e-9


@dataclass(frozen=True)
class PerspectiveNewtonState(LineState):
    """State of `PerspectiveNewton`."""

    least_scale: float


class ScaleStep(NamedTuple):
    """Where the model has its minimum, and what Newton's step is.

    Attributes
    ----------
    direction : ndarray of shape (q + 1,)
        From the point to the minimum of the model.
    newton : ndarray of shape (q + 1,) or None
        Newton's step; None where the Hessian is singular and the gradient not in its range.
    """

    direction: Array
    newton: Array | None


@dataclass(frozen=True)
class PerspectiveNewton:
    r"""Newton's method for :math:`\sum_i s_i \sigma (1 + 2 h(r_i / \sigma))`, penalised.

    Parameters
    ----------
    goal : Goal
        In the coordinates apart from the scale, which is the last one.
    threshold : float
        At least 1; h is half squares up to it, straight beyond, and doubled in the objective, to
        which the weighted sum of the scales is added.
    name : str

    Notes
    -----
    The step. Squares over the scale are homogeneous, so that for a step :math:`(d, \delta)` the
    remainder of the linear model is not :math:`\frac12 d^T H d` but exactly that times
    :math:`\lambda = \sigma / (\sigma + \delta)`. With :math:`\lambda d` as unknown, the model is a
    quadratic in :math:`\lambda` divided by :math:`\lambda`, with a minimum in closed form at a
    positive scale; it is exact as long as no row crosses the threshold, but for the penalty, which
    is treated alike. Near the optimum :math:`\lambda` tends to 1, and the step to Newton's.

    The gap. By convexity it is at most :math:`g^T (v - v^*)`. With t Newton's step that is a sum
    over rows within the threshold of curvature times :math:`(x_i t)(x_i (v - v^*))`. The objective
    is at least twice the weighted sum of absolute residuals, so the weighted sum of the
    :math:`|x_i (v - v^*)|` is bounded by the objective itself, and the first factor by what the
    step changes any score.

    References
    ----------
    Huber 1981, *Robust Statistics*, chapter 7, for the objective; Owen 2007.
    """

    goal: Goal
    threshold: float
    name: str = "perspective-newton"

    def start(self, point: Array) -> PerspectiveNewtonState:
        """State before the first round."""
        least = _LEAST_SCALE * float(point[-1])
        return PerspectiveNewtonState(
            point, np.inf, np.nan, 0, "", np.zeros_like(point), 0.0, 1.0, least
        )

    def ask(self, state: PerspectiveNewtonState) -> Ask:
        """The next trial point, with its Hessian."""
        return Ask(state.trial, 2)

    def restore(self, stored: StoredState) -> PerspectiveNewtonState:
        """The state that was stored."""
        return stored.restored(PerspectiveNewtonState)

    def tell(self, state: PerspectiveNewtonState, evaluation: Evaluation) -> PerspectiveNewtonState:
        """Accept the trial and turn to the minimum of the next model, or shorten the step."""
        first = not np.isfinite(state.value)
        if (shorter := shortened(state, evaluation.value)) is not None:
            return shorter
        point = state.trial
        n_iter = state.n_iter + (0 if first else 1)
        found = self._step(float(point[-1]), evaluation)
        gap = self._gap(float(point[-1]), evaluation, found.newton)
        slope = float(evaluation.gradient @ found.direction)
        accepted = replace(
            state,
            point=point,
            value=evaluation.value,
            gap=relative_gap(evaluation.value, gap, gap),
            n_iter=n_iter,
            direction=found.direction,
            slope=slope,
            step=1.0,
        )
        # The gap goes with the step, the descent with its square: a step more when that is lost.
        is_lost = is_negligible(evaluation.value, -slope)
        if accepted.gap <= self.goal.tol or (
            is_lost and not first and is_negligible(evaluation.value, -state.slope)
        ):
            return replace(accepted, reason=CONVERGED)
        if point[-1] <= state.least_scale:
            return replace(accepted, reason=NO_SCALE)
        return replace(accepted, reason=MAX_ITER if n_iter >= self.goal.max_iter else "")

    def _step(self, scale: float, evaluation: Evaluation) -> ScaleStep:
        hessian = cast("Array", evaluation.hessian)
        inner, across = hessian[:-1, :-1], hessian[:-1, -1]
        gradient, slope = evaluation.gradient[:-1], float(evaluation.gradient[-1])
        # Best coefficients for a change e of the scale: down - e * along.
        down = newton_step(Evaluation(evaluation.value, gradient, inner), self.goal).direction
        along = -newton_step(Evaluation(evaluation.value, across, inner), self.goal).direction
        drift = slope + float(across @ down)
        curvature = max(float(hessian[-1, -1] - across @ along), 0.0)
        newton = None
        unsolved = gradient + inner @ down
        if curvature > 0.0 and np.linalg.norm(unsolved) <= _UNSOLVED * self._size(evaluation.value):
            change = -drift / curvature
            newton = np.append(down - change * along, change)
        # The model is (a quadratic of the ratio old to new scale) / ratio.
        constant = scale * drift + 0.5 * scale**2 * curvature + 0.5 * float(gradient @ down)
        square = 0.5 * scale**2 * curvature
        least, most = 1.0 / _MOST_GROWTH, _MOST_SHRINKAGE
        ratio = least
        if constant > 0.0:
            ratio = most if constant >= most**2 * square else np.sqrt(constant / square)
        ratio = max(ratio, least)
        change = scale * (1.0 - ratio)
        direction = np.append(down - change * along, change) / ratio
        return ScaleStep(direction, newton)

    def _size(self, value: float) -> float:
        """About the length of a gradient far from the optimum."""
        return float(np.sqrt(max(abs(value), np.finfo(np.float64).tiny)))

    def _gap(self, scale: float, evaluation: Evaluation, newton: Array | None) -> float:
        if newton is None:
            return np.inf
        value, step = evaluation.value, np.abs(newton)
        reach = float(self.goal.row_extent @ step[:-1]) + self.threshold * step[-1]
        losses = 2.0 / scale * reach * (1.0 + self.threshold) * value
        penalty = np.sqrt(8.0 * value * (self.goal.convexity @ step[:-1] ** 2))
        return float(losses + penalty)
