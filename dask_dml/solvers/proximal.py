"""Proximal Newton: a smooth function plus weighted absolute values.

The quadratic model plus the absolute values is minimised here. Most coordinates are zero at the
optimum, so of many columns the Hessian is formed on those few that are not, or may not be: the
gradient, which comes along for all of them, tells which are missing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from dask_dml.objective.losses import Array
from dask_dml.objective.problem import Evaluation, Problem
from dask_dml.solvers.core import (
    CONVERGED,
    MAX_ITER,
    Ask,
    Goal,
    StoredState,
    is_negligible,
    largest_change,
    newton_direction,
    relative_gap,
    self_concordant_gaps,
)
from dask_dml.solvers.line import LineState, shortened

# Terms up to which a Hessian of all of them costs little more than a gradient.
NARROW_TERMS = 150
# Of its weight, from which the gradient of a coordinate that is zero keeps its term in the Hessian.
_NEAR = 0.75
# Terms that join in one round: this many, or so many times those that are not zero.
_LEAST_JOINING = 100
_JOINING = 2
# Rows of the sample that comes first, and the least and largest share of all that it may be.
_SAMPLE_ROWS = 20_000
_LEAST_SHARE = 0.02
_LARGEST_SHARE = 0.3
# Of the statistical error of the sample's optimum, what may be left of its objective.
_ERROR_SHARE = 0.1

_UNKNOWN = np.empty((0, 0))

_SWEEPS = 10
_ROUNDS = 200
# Coordinates that join the minimisation of a model at least, while there are any.
_LEAST_WORKING = 20
# Of the largest coordinate, what a sweep that changes no more has settled.
_SETTLED = 1e-4
# Of the diagonal's mean, what makes a singular matrix one that can be solved with.
_RIDGE = 1e-13
# Of the largest term of a coordinate's condition, what is rounding.
_ROUNDING = 1e-13


@dataclass(frozen=True)
class ProximalNewtonState(LineState):
    """State of `ProximalNewton`.

    Attributes
    ----------
    stage : int
        Which of the solver's shares of the rows.
    terms : ndarray of int
        Terms that the Hessian is of, in order.
    known : ndarray of shape (m, m)
        That Hessian, where it is known already: of a quadratic function it stays as it is. Empty
        where it has to be asked for.
    margin : float
        Added to all weights in this stage.
    """

    stage: int
    terms: NDArray[np.intp]
    known: Array
    margin: float


@dataclass(frozen=True)
class ProximalNewton:
    r"""Proximal Newton method with backtracking, on few columns and, at first, on few rows.

    Parameters
    ----------
    goal : Goal
    absolute : ndarray of shape (d,)
        Weights of the absolute values of the coordinates, 0 where there is none. Values that it is
        told include their sum; gradients and Hessians do not.
    curvature : ndarray of shape (d,)
        Bounds of the diagonal of the loss's Hessian, everywhere; inf where there is none.
    n_rows : int
        Of the data.
    shares : tuple of float
        Shares of the rows that are looked at one after the other; the last is all.
    is_screened : bool
        Whether Hessians are of some terms only; for losses of one output.
    name : str

    Notes
    -----
    The gap is the objective less the value of a dual point. Let e be the subgradient of least norm
    and S some coordinates, outside of which e is zero. With :math:`d = -H_{SS}^{-1} e_S` and the
    rows' scores :math:`\delta_i = x_{iS}^T d`, add :math:`\phi''_i \delta_i` to the derivatives of
    the losses. That makes the conditions of the coordinates in S exact; those of the others are
    that derivatives are within the weights, :math:`|g_j + H_{jS} d| \le l_j`, and hold without
    these rows of the Hessian where :math:`|g_j| + \sqrt{H_{jj}} \lambda \le l_j` with
    :math:`\lambda^2 = e_S^T H_{SS}^{-1} e_S`, by Cauchy and Schwarz.

    For a squared loss the gap is :math:`\lambda^2 / 2`. For logarithmic losses it is a divergence
    of the probabilities :math:`p_k (1 + u_k)` from :math:`p_k`, with :math:`|u_k|` at most the
    largest difference a of a row's :math:`\delta`; from
    :math:`(1 + u) \log(1 + u) - u \le u^2 (a + (1 - a) \log(1 - a)) / a^2` it is at most
    :math:`\lambda^2 (a + (1 - a) \log(1 - a)) / a^2`, which is little more than
    :math:`\lambda^2 / 2`.

    References
    ----------
    Lee, Sun & Saunders 2014; Friedman, Hastie & Tibshirani 2010 for the coordinate descent;
    Lee, Battle, Raina & Ng 2006 for the steps on a support with fixed signs; Tibshirani et al.
    2012 for leaving out coordinates and looking at their conditions afterwards; Johnson & Guestrin
    2015 for sets that grow; Fercoq, Gramfort & Salmon 2015 for what a gap says of coordinates.
    """

    goal: Goal
    absolute: Array
    curvature: Array
    n_rows: int
    shares: tuple[float, ...] = (1.0,)
    is_screened: bool = False
    name: str = "proximal-newton"

    @classmethod
    def of(cls, problem: Problem, tol: float, max_iter: int) -> Self:
        """The method for a problem: screened where it is wide, with a sample of many rows."""
        goal, n_rows = Goal.of(problem, tol, max_iter), problem.survey.n_rows
        is_screened = problem.n_terms > NARROW_TERMS and problem.loss.n_outputs == 1
        share = max(_LEAST_SHARE, _SAMPLE_ROWS / n_rows)
        # Where one Hessian is the whole of the function, it is enough to have it.
        is_one_pass = goal.self_concordance == 0.0 and not is_screened
        shares = (1.0,) if share > _LARGEST_SHARE or is_one_pass else (share, 1.0)
        weights, bounds = problem.absolute_weights, problem.curvature
        return cls(goal, weights, bounds, n_rows, shares, is_screened)

    @property
    def _n_terms(self) -> int:
        return len(self.goal.row_extent)

    def start(self, point: Array) -> ProximalNewtonState:
        """State before the first round."""
        terms = np.arange(self._n_terms)
        if self.is_screened:
            terms = np.flatnonzero((point != 0.0) | (self.absolute == 0.0))
        return ProximalNewtonState(
            point, np.inf, np.nan, 0, "", np.zeros_like(point), 0.0, 1.0, 0, terms, _UNKNOWN, 0.0
        )

    def ask(self, state: ProximalNewtonState) -> Ask:
        """The next trial point, with the Hessian of its terms."""
        if state.known.size:
            return Ask(state.trial, 1, self.shares[state.stage])
        terms = None if len(state.terms) == self._n_terms else state.terms
        return Ask(state.trial, 2, self.shares[state.stage], terms=terms)

    def restore(self, stored: StoredState) -> ProximalNewtonState:
        """The state that was stored."""
        return stored.restored(ProximalNewtonState)

    def tell(self, state: ProximalNewtonState, evaluation: Evaluation) -> ProximalNewtonState:
        """Accept the trial and minimise the next model, or shorten the step."""
        hessian = state.known if state.known.size else evaluation.hessian
        if hessian is None:
            raise ValueError("ProximalNewton.tell(evaluation=...) needs the Hessian it asked for")
        evaluation = replace(evaluation, hessian=hessian)
        first = not np.isfinite(state.value)
        if first and self.is_screened and not self._is_last(state):
            # What columns that say nothing gain in a sample: with less, many of them would join.
            margin = float(np.sqrt(2.0 * abs(evaluation.value) / self._n_sampled(state)))
            state = replace(state, margin=margin)
        point = state.trial
        value = evaluation.value + float((self._weights(state) - self.absolute) @ np.abs(point))
        if (shorter := shortened(state, value)) is not None:
            return shorter
        n_iter = state.n_iter + (0 if first else 1)
        accepted = replace(state, point=point, value=value, n_iter=n_iter)
        if not self._is_last(state):
            return self._turn(accepted, evaluation, hessian, np.zeros(len(point), dtype=bool))
        gap, unsure = self._certificate(point, evaluation, self._coordinates(state.terms))
        gap = np.nan if unsure.any() else relative_gap(value, gap, gap)
        if gap <= self.goal.tol:
            return replace(accepted, gap=gap, reason=CONVERGED)
        return self._turn(replace(accepted, gap=gap), evaluation, hessian, unsure)

    def _turn(
        self,
        state: ProximalNewtonState,
        evaluation: Evaluation,
        hessian: Array,
        unsure: NDArray[np.bool_],
    ) -> ProximalNewtonState:
        """From an accepted point to the minimum of its model."""
        point, absolute = state.point, self._weights(state)
        own = self._coordinates(state.terms)
        linear = evaluation.gradient[own] - hessian @ point[own]
        better = point.copy()
        better[own] = minimum_of_model(hessian, linear, absolute[own], point[own])
        direction = better - point
        change = float(absolute @ (np.abs(better) - np.abs(point)))
        slope = float(evaluation.gradient @ direction) + change
        is_quadratic = self.goal.self_concordance == 0.0
        if is_quadratic and self._is_last(state) and len(own) == len(point):
            return self._finished(state, evaluation, better, slope)
        is_still = is_negligible(state.value, -slope)
        excess = np.abs(evaluation.gradient) - absolute
        # Where nothing but the certificate is missing, that is for want of terms.
        sought = (excess > _ROUNDING * absolute) | (unsure & is_still)
        sought[own] = False
        is_missing = self.is_screened and bool(sought.any())
        if is_quadratic and not is_missing:
            state = replace(state, known=hessian)
        elif self.is_screened:
            near = self._is_last(state) & (excess > (_NEAR - 1.0) * absolute)
            state = replace(
                state, terms=self._chosen(better, excess, near | sought), known=_UNKNOWN
            )
        state = replace(state, direction=direction, slope=slope, step=1.0)
        if is_still and self._is_last(state) and not is_missing:
            return replace(state, reason=CONVERGED)
        if state.n_iter >= self.goal.max_iter:
            return replace(state, reason=MAX_ITER)
        n_support = max(int(np.count_nonzero(better)), 1)
        enough = _ERROR_SHARE * n_support / self._n_sampled(state) * abs(state.value)
        if self._is_last(state) or is_missing or -slope > enough:
            return state
        return replace(self.start(better), n_iter=state.n_iter + 1, stage=state.stage + 1)

    def _is_last(self, state: ProximalNewtonState) -> bool:
        return state.stage == len(self.shares) - 1

    def _n_sampled(self, state: ProximalNewtonState) -> float:
        return max(self.shares[state.stage] * self.n_rows, 1.0)

    def _weights(self, state: ProximalNewtonState) -> Array:
        """Weights of the absolute values in this stage."""
        return self.absolute + np.where(self.absolute > 0.0, state.margin, 0.0)

    def _coordinates(self, terms: NDArray[np.intp]) -> NDArray[np.intp]:
        """Coordinates of terms, outputs outermost."""
        starts = np.arange(0, len(self.absolute), self._n_terms)
        return (starts[:, None] + terms).ravel()

    def _finished(
        self, state: ProximalNewtonState, evaluation: Evaluation, better: Array, slope: float
    ) -> ProximalNewtonState:
        """The minimum of a model that is the function itself needs no other round."""
        if evaluation.hessian is None:
            raise ValueError("the model of a quadratic function has a Hessian")
        direction = better - state.point
        curved = evaluation.hessian @ direction
        value = evaluation.value + slope + 0.5 * float(direction @ curved)
        there = Evaluation(value, evaluation.gradient + curved, evaluation.hessian)
        gap, _ = self._certificate(better, there, self._coordinates(state.terms))
        return replace(
            state,
            point=better,
            value=value,
            gap=relative_gap(value, gap, gap),
            n_iter=state.n_iter + 1,
            reason=CONVERGED,
        )

    def _certificate(
        self, point: Array, evaluation: Evaluation, own: NDArray[np.intp]
    ) -> tuple[float, NDArray[np.bool_]]:
        """The bound on the gap, and the coordinates whose conditions it does not cover.

        Parameters
        ----------
        point : ndarray of shape (d,)
        evaluation : Evaluation
        own : ndarray of int
            Coordinates that its Hessian is of.
        """
        if evaluation.hessian is None:
            raise ValueError("the gap is bounded with a Hessian")
        least = least_subgradient(point, evaluation.gradient, self.absolute)
        is_needed = (point[own] != 0.0) | (least[own] != 0.0) | (self.absolute[own] == 0.0)
        part = np.flatnonzero(is_needed)
        gap, decrement2, moved = 0.0, 0.0, evaluation.gradient.copy()
        if len(part):
            rows = evaluation.hessian[part]
            step_of = Evaluation(evaluation.value, least[own[part]], rows[:, part])
            direction, rounding = newton_direction(step_of, self.goal.self_concordance == 0.0)
            decrement2 = max(float(-(step_of.gradient @ direction)), 0.0)
            extent = np.tile(self.goal.row_extent, len(least) // self._n_terms)[own[part]]
            change = self.goal.self_concordance * largest_change(direction, extent)
            gap = decrement2 * _growth(change) + rounding
            moved[own] += direction @ rows
        # A dual point that is beyond by rounding is one when it is scaled, for as little.
        gap += _ROUNDING * abs(evaluation.value)
        slack = (1.0 + _ROUNDING) * self.absolute - np.abs(moved)
        unsure = slack < np.sqrt(self.curvature * decrement2)
        unsure[own] = slack[own] < 0.0
        unsure[own[part]] = False
        return gap, unsure

    def _chosen(self, better: Array, excess: Array, joining: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Terms of the next Hessian: those not zero, and of others those that lack most."""
        kept = (better != 0.0) | (self.absolute == 0.0)
        new = np.flatnonzero(joining & ~kept)
        most = max(_LEAST_JOINING, _JOINING * int(np.count_nonzero(kept)))
        kept[new[np.argsort(-excess[new], kind="stable")[:most]]] = True
        return np.flatnonzero(kept)


def _growth(change: float) -> float:
    """The gap in units of the squared Newton decrement, a half and more for a change of scores."""
    if change < 1e-6:
        return 0.5 * (1.0 + change)
    return self_concordant_gaps(change)[0] / change**2


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
    root = np.sqrt(np.maximum(np.diagonal(hessian), 0.0))
    usable = root > 0.0
    point = np.where(usable, start, 0.0)
    working = usable & ((point != 0.0) | (absolute == 0.0))
    gradient = hessian @ point + linear
    while True:
        own = np.flatnonzero(working)
        if len(own):
            part = np.ix_(own, own)
            point[own] = _minimum_within(hessian[part], linear[own], absolute[own], point[own])
            gradient = point[own] @ hessian[own] + linear
        excess = np.where(working | ~usable, -np.inf, np.abs(gradient) - absolute)
        size = np.abs(linear) + absolute + root * float(root @ np.abs(point))
        joining = np.flatnonzero(excess > _ROUNDING * size)
        if not len(joining):
            return point
        most = max(_LEAST_WORKING, 2 * len(own))
        working[joining[np.argsort(-excess[joining], kind="stable")[:most]]] = True


def _minimum_within(hessian: Array, linear: Array, absolute: Array, start: Array) -> Array:
    """The same, of coordinates most of which are not zero in the end."""
    point = start.copy()
    root = np.sqrt(np.diagonal(hessian))
    size = np.abs(linear) + absolute
    exact, signs = point, np.full(len(point), np.nan)
    for _ in range(_ROUNDS):
        gradient = hessian @ point + linear
        for _ in range(_SWEEPS):
            change = _sweep(hessian, absolute, point, gradient)
            if change <= _SETTLED * float(np.max(root * np.abs(point))):
                break
        if np.array_equal(signs, np.sign(point)):
            return exact
        point = _settled(hessian, linear, absolute, point)
        wrong = np.abs(least_subgradient(point, hessian @ point + linear, absolute))
        if np.all(wrong <= _ROUNDING * (size + root * float(root @ np.abs(point)))):
            return point
        exact, signs = point.copy(), np.sign(point)
    return point


def _sweep(hessian: Array, absolute: Array, point: Array, gradient: Array) -> float:
    """Minimise along one coordinate after the other, in place; the largest change, scaled."""
    largest = 0.0
    diagonal = np.diagonal(hessian).tolist()
    # Numbers of Python: those of NumPy take three times as long one by one.
    for j, (curvature, weight) in enumerate(zip(diagonal, absolute.tolist(), strict=True)):
        old = point.item(j)
        wanted = curvature * old - gradient.item(j)
        if wanted > weight:
            new = (wanted - weight) / curvature
        elif wanted < -weight:
            new = (wanted + weight) / curvature
        else:
            new = 0.0
        if new != old:
            gradient += (new - old) * hessian[j]
            point[j] = new
            largest = max(largest, (new - old) ** 2 * curvature)
    return float(np.sqrt(largest))


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
