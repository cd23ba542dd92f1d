"""Proximal Newton: a smooth function plus weighted absolute values.

Every round asks for the Hessian; the quadratic model plus the absolute values is minimised here,
by coordinate descent in turn with exact solutions on the support that it has found.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

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
    newton_step,
    relative_gap,
    shorter_step,
)

_SWEEPS = 1000
# Of the diagonal's mean, what makes a singular matrix one that can be solved with.
_RIDGE = 1e-13
# Of the largest term of a coordinate's condition, what is rounding.
_ROUNDING = 1e-13


@dataclass(frozen=True)
class ProximalNewtonState(SolverState):
    """State of `ProximalNewton`: the accepted point, and the line along which a trial is made."""

    direction: Array
    slope: float
    step: float


@dataclass(frozen=True)
class ProximalNewton:
    r"""Proximal Newton method with backtracking.

    Parameters
    ----------
    goal : Goal
    absolute : ndarray of shape (d,)
        Weights of the absolute values of the coordinates, 0 where there is none. Values that it is
        told include their sum; gradients and Hessians do not.
    name : str

    Notes
    -----
    The gap: for every s with :math:`|s_j| \le l_j` the sum :math:`l^T |x|` is at least
    :math:`s^T x`, so the optimum is at least the minimum of :math:`f(x) + s^T x`, a smooth function
    with the Hessian of f and the gradient g + s. Take :math:`s_j = l_j \operatorname{sign} x_j`
    where x is not zero, which there loses nothing, and the number nearest to :math:`-g_j`
    elsewhere: g + s then is the subgradient of least norm, and the bounds of `newton_step` with it
    in the place of the gradient bound the gap of the whole.

    References
    ----------
    Lee, Sun & Saunders 2014; Friedman, Hastie & Tibshirani 2010 for the coordinate descent;
    Lee, Battle, Raina & Ng 2006 for the steps on a support with fixed signs.
    """

    goal: Goal
    absolute: Array
    name: str = "proximal-newton"

    def start(self, point: Array) -> ProximalNewtonState:
        """State before the first round."""
        return ProximalNewtonState(point, np.inf, np.nan, 0, "", np.zeros_like(point), 0.0, 1.0)

    def ask(self, state: ProximalNewtonState) -> Ask:
        """The next trial point, with its Hessian."""
        return Ask(state.point + state.step * state.direction, 2)

    def restore(self, stored: StoredState) -> ProximalNewtonState:
        """The state that was stored."""
        return stored.restored(ProximalNewtonState)

    def tell(self, state: ProximalNewtonState, evaluation: Evaluation) -> ProximalNewtonState:
        """Accept the trial and minimise the next model, or shorten the step."""
        first = not np.isfinite(state.value)
        if not first and not is_descent(state.value, state.slope, state.step, evaluation.value):
            step = shorter_step(state.value, state.slope, state.step, evaluation.value)
            stalled = is_negligible(state.value, -step * state.slope)
            return replace(state, step=step, reason=STALLED if stalled else "")
        if evaluation.hessian is None:
            raise ValueError("ProximalNewton.tell(evaluation=...) needs the Hessian it asked for")
        point = self.ask(state).point
        n_iter = state.n_iter + (0 if first else 1)
        gap = self._gap(point, evaluation)
        accepted = replace(state, point=point, value=evaluation.value, gap=gap, n_iter=n_iter)
        if gap <= self.goal.tol:
            return replace(accepted, reason=CONVERGED)
        linear = evaluation.gradient - evaluation.hessian @ point
        better = minimum_of_model(evaluation.hessian, linear, self.absolute, point)
        direction = better - point
        change = float(self.absolute @ (np.abs(better) - np.abs(point)))
        slope = float(evaluation.gradient @ direction) + change
        if self.goal.self_concordance == 0.0:
            # The model is the function itself: its minimum needs no other round.
            curved = evaluation.hessian @ direction
            value = evaluation.value + slope + 0.5 * float(direction @ curved)
            there = Evaluation(value, evaluation.gradient + curved, evaluation.hessian)
            return replace(
                accepted,
                point=better,
                value=value,
                gap=self._gap(better, there),
                n_iter=n_iter + 1,
                reason=CONVERGED,
            )
        accepted = replace(accepted, direction=direction, slope=slope, step=1.0)
        if is_negligible(evaluation.value, -slope):
            return replace(accepted, reason=CONVERGED)
        return replace(accepted, reason=MAX_ITER if n_iter >= self.goal.max_iter else "")

    def _gap(self, point: Array, evaluation: Evaluation) -> float:
        least = least_subgradient(point, evaluation.gradient, self.absolute)
        gap = newton_step(replace(evaluation, gradient=least), self.goal).gap
        return relative_gap(evaluation.value, gap, gap)


def least_subgradient(point: Array, gradient: Array, absolute: Array) -> Array:
    """The subgradient of least norm of a smooth function plus weighted absolute values.

    Parameters
    ----------
    point, gradient, absolute : ndarray of shape (d,)
        Gradient of the smooth part there, and the weights.

    Returns
    -------
    ndarray of shape (d,)
    """
    inside = gradient - np.clip(gradient, -absolute, absolute)
    return np.where(point != 0.0, gradient + absolute * np.sign(point), inside)


def minimum_of_model(hessian: Array, linear: Array, absolute: Array, start: Array) -> Array:
    """Minimise ``x^T H x / 2 + linear^T x + absolute^T |x|``.

    Parameters
    ----------
    hessian : ndarray of shape (d, d)
        Positive semidefinite.
    linear, absolute, start : ndarray of shape (d,)

    Returns
    -------
    ndarray of shape (d,)
    """
    point = start.copy()
    diagonal = np.diagonal(hessian)
    point[diagonal <= 0.0] = 0.0
    usable = np.flatnonzero(diagonal > 0.0)
    gradient = hessian @ point + linear
    size = np.abs(linear) + absolute
    for _ in range(_SWEEPS):
        _sweep(usable, hessian, absolute, point, gradient)
        point = _settled(hessian, linear, absolute, point)
        gradient = hessian @ point + linear
        wrong = np.abs(least_subgradient(point, gradient, absolute))
        noise = _ROUNDING * (size + np.abs(hessian) @ np.abs(point))
        if np.all(wrong[usable] <= noise[usable]):
            break
    return point


def _sweep(
    coordinates: NDArray[np.intp], hessian: Array, absolute: Array, point: Array, gradient: Array
) -> None:
    """Minimise along one coordinate after the other, in place."""
    for j in coordinates:
        curvature = hessian[j, j]
        wanted = curvature * point[j] - gradient[j]
        new = np.sign(wanted) * max(abs(wanted) - absolute[j], 0.0) / curvature
        if new != point[j]:
            gradient += (new - point[j]) * hessian[j]
            point[j] = new


def _settled(hessian: Array, linear: Array, absolute: Array, point: Array) -> Array:
    """The minimum over coordinates that are not zero, none of which changes its sign.

    Where one would, it becomes zero, and the rest goes on without it.
    """
    point = point.copy()
    while len(support := np.flatnonzero(point)):
        here, weight = point[support], absolute[support]
        wanted = _solved(hessian[np.ix_(support, support)], linear[support], weight * np.sign(here))
        crosses = (weight > 0.0) & (np.sign(wanted) != np.sign(here))
        if not crosses.any():
            point[support] = wanted
            return point
        # The objective falls along the way to the solution as far as the first that crosses.
        share = here[crosses] / (here[crosses] - wanted[crosses])
        first = float(share.min())
        point[support] = here + first * (wanted - here)
        point[support[np.flatnonzero(crosses)[share <= first]]] = 0.0
    return point


def _solved(matrix: Array, linear: Array, slope: Array) -> Array:
    """Solution of ``matrix x = -(linear + slope)``; far out along what is nearly flat."""
    shift = 0.0
    while True:
        try:
            factor = scipy.linalg.cho_factor(matrix + shift * np.eye(len(matrix)))
            return -np.asarray(scipy.linalg.cho_solve(factor, linear + slope))
        except scipy.linalg.LinAlgError:
            shift = max(10.0 * shift, _RIDGE * float(np.diagonal(matrix).mean()))
