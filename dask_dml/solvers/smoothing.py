"""Newton's method on smoothed kinks, down to the vertex where the optimum without smoothing is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

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
    StoredState,
    is_negligible,
    relative_gap,
)
from dask_dml.solvers.line import LineState, shortened
from dask_dml.solvers.proximal import least_subgradient, minimum_of_model

# What is left to gain at a width, as a share of the smoothing, when its minimum has been found.
_SETTLED = 1e-3
# The same where the vertex at the end of the line would not be the optimum yet, and nobody asks: by
# forecast it is above it by so many squares of the smoothing, in units of the objective.
_NEAR = 3e-3
_FORECAST = 0.6
_FAR = 2.0
# Rows in the kink for each of the coordinates with which a line can be trusted unfinished, and of
# the next width, for with fewer nothing holds the coordinates.
_RICH = 4.0
_ROWS_IN_KINK = 2.0
# Shares of a width that the next may be.
_NARROWEST, _WIDEST = 0.1, 0.6
# Rows looked at for each of the coordinates at the first width; with the width they grow, so that
# as many are in the kink, up to a share that is no longer less work than all.
_ROWS_A_TERM = 300
_LARGEST_SHARE = 0.5
# Share of a width from which on it is not shortened less, where that has gone too far.
_LEAST_SHRINKAGE = 0.9
# Factor on the metric while there is nothing in the kink to say how long a step should be.
_LONGER = 0.25
# Of the first width: where nothing is smooth, and where it has to end.
_SHARP = 1e-15
_LEAST_WIDTH = 1e-12
# Of the first width times the weights: an objective that is rounding.
_VANISHING = 1e-13
# Of the largest eigenvalue, what is zero; of a gradient's size, what a solution may leave.
_SINGULAR = 1e-11
_UNSOLVED = 1e-9


@dataclass(frozen=True)
class SmoothingState(LineState):
    """State of `SmoothingNewton`: the smooth minimisation, and the best vertex so far.

    The anchor is the minimum at the last width, with the end of the line from there; the metric is
    the Hessian there, of more rows than there are in a narrower kink; the cut is the share of that
    width that is the next.
    """

    anchor: Array
    end: Array
    vertex: Array
    is_at_vertex: int
    best: Array
    best_value: float
    lower: float
    first_width: float
    metric: Array
    cut: float


@dataclass(frozen=True)
class SmoothingNewton:
    r"""Minimises :math:`\sum_i s_i \rho(r_i) + l^T |x|`, with the pinball loss of a quantile.

    Parameters
    ----------
    goal : Goal
        In the coordinates apart from the width, which is the last one.
    absolute : ndarray of shape (q,)
        Weights of the absolute values of the coordinates.
    quantile : float
    weight : float
        Sum of the weights.
    n_rows : int
        Of the data.
    mean_row : ndarray of shape (q,)
        Weighted mean of the rows, in the solver's coordinates.
    name : str

    Notes
    -----
    Smoothed over a width :math:`\mu`, the loss is piecewise quadratic, and its minimum moves along
    a line as the width shrinks, as long as no row enters or leaves the kink (Madsen & Nielsen
    1993). At the minimum of each width that line is followed to width zero: once the rows in the
    kink are those of the optimum, its end is the optimum itself, a vertex of the linear programme,
    to the last digit. One pass evaluates it.

    The bound: derivatives a of the smoothed losses are a dual point of the linear programme, with
    the value :math:`f_\mu - \mu \partial f_\mu / \partial \mu`, if the subgradient is zero. What is
    left of the subgradient counts by how far the optimum can be: absolute errors and coefficients
    are bounded by the objective.

    References
    ----------
    Madsen & Nielsen 1993, "A finite smoothing algorithm for linear l1 estimation"; Koenker 2005,
    *Quantile Regression*; Nesterov 2005 for bounds of smoothing.
    """

    goal: Goal
    absolute: Array
    quantile: float
    weight: float
    n_rows: int
    mean_row: Array
    name: str = "smoothing-newton"

    def start(self, point: Array) -> SmoothingState:
        """State before the first round."""
        return SmoothingState(
            point,
            np.inf,
            np.nan,
            0,
            "",
            np.zeros_like(point),
            0.0,
            1.0,
            point,
            point,
            point,
            0,
            point,
            np.inf,
            0.0,
            float(point[-1]),
            np.eye(len(point) - 1),
            _NARROWEST,
        )

    def ask(self, state: SmoothingState) -> Ask:
        """The vertex, or the next trial point with its Hessian."""
        if state.is_at_vertex:
            return Ask(state.vertex, 1)
        return Ask(state.trial, 2, self._share(state))

    def restore(self, stored: StoredState) -> SmoothingState:
        """The state that was stored."""
        return stored.restored(SmoothingState)

    def tell(self, state: SmoothingState, evaluation: Evaluation) -> SmoothingState:
        """Take in a vertex, or a trial: go to the next model's minimum, or shorten the step."""
        if state.is_at_vertex:
            return self._with_vertex(state, evaluation)
        first = not np.isfinite(state.value)
        share = float(np.sqrt(state.point[-1] / state.anchor[-1]))
        if (shorter := shortened(state, evaluation.value)) is not None:
            if share < _LEAST_SHRINKAGE:
                return self._restarted(state, share)
            return replace(shorter, reason="", is_at_vertex=int(shorter.reason == STALLED))
        point = state.trial
        width, here = float(point[-1]), point[:-1]
        inner = self._without_width(evaluation)
        better, is_flat = self._minimum(here, inner, state.metric)
        if is_flat and share < _LEAST_SHRINKAGE:
            return self._restarted(state, share)
        direction = better - here
        change = float(self.absolute @ (np.abs(better) - np.abs(here)))
        slope = float(inner.gradient @ direction) + change
        across = cast("Array", evaluation.hessian)[-1, :-1]
        vertex = self._end_of_line(here, direction, width, inner, across)
        smoothing = -width * float(evaluation.gradient[-1])
        left = self._left(here, inner, width)
        n_iter = state.n_iter + (0 if first else 1)
        settled = left <= max(_SETTLED * smoothing, 0.1 * self.goal.tol * evaluation.value)
        is_lost = is_negligible(evaluation.value, -slope) and not (first or is_flat)
        settled = settled or evaluation.value <= self._vanishing(state)
        settled = settled or (is_lost and is_negligible(evaluation.value, -state.slope))
        is_last = n_iter >= self.goal.max_iter
        is_sample = self._share(state) < 1.0
        filling = self._filling(state, inner, better)
        # Few rows may be in the kink for good, as where many are alike, and passes cost little.
        has_many = self._share_at(1.0) < 1.0
        widest = _WIDEST if has_many else _NARROWEST
        cut = float(np.clip(_ROWS_IN_KINK / filling, _NARROWEST, widest))
        lower = evaluation.value + smoothing - left
        told = replace(
            state,
            point=point,
            value=evaluation.value,
            n_iter=n_iter,
            direction=np.append(direction, 0.0),
            slope=slope,
            step=1.0,
            vertex=np.append(vertex, _SHARP * state.first_width),
            is_at_vertex=int(settled or is_last),
            lower=state.lower if is_sample else max(state.lower, lower),
            metric=self._next_metric(state.metric, inner, settled, is_flat),
            cut=cut,
        )
        forecast, value = _FORECAST * smoothing**2, evaluation.value + smoothing
        is_far = forecast > _FAR * self.goal.tol * value**2 and has_many and filling >= _RICH
        is_near = settled or (-slope <= _NEAR * smoothing and not is_flat)
        if is_near and (is_far or is_sample) and not is_last:
            return self._narrowed(replace(told, point=np.append(better, width)))
        return told

    def _share(self, state: SmoothingState) -> float:
        """Share of the rows that fills the kink well enough to go by."""
        return self._share_at(state.first_width / float(state.point[-1]))

    def _share_at(self, narrowing: float) -> float:
        share = _ROWS_A_TERM * len(self.absolute) * narrowing / self.n_rows
        return share if share <= _LARGEST_SHARE else 1.0

    def _filling(self, state: SmoothingState, inner: Evaluation, minimum: Array) -> float:
        """Rows in the kink for each of the coordinates, about."""
        diagonal = np.diagonal(cast("Array", inner.hessian))
        present = diagonal > 0.0
        if not present.any():
            return np.inf
        # The curvature of all rows at the first width is about 1.
        narrowing = state.first_width / float(state.point[-1])
        in_kink = self.n_rows * float(diagonal[present].mean()) / narrowing
        n_moving = int(np.count_nonzero((minimum != 0.0) | (self.absolute == 0.0)))
        return in_kink / max(n_moving, 1)

    def _next_metric(self, metric: Array, inner: Evaluation, settled: bool, is_flat: bool) -> Array:
        """The Hessian of this width for the next; or where it is flat on and on, longer steps."""
        if settled:
            hessian = cast("Array", inner.hessian)
            # In a kink of few rows curvature goes with the inverse of the width, and says nothing
            # of how far the next rows are; that of all rows together is about 1.
            return hessian / max(float(np.diagonal(hessian).mean()), 1.0)
        return _LONGER * metric if is_flat else metric

    def _with_vertex(self, state: SmoothingState, evaluation: Evaluation) -> SmoothingState:
        """Stop at the best vertex, or go on with a smaller width along the line to this one."""
        if evaluation.value < state.best_value:
            state = replace(state, best=state.vertex, best_value=evaluation.value)
        value = state.best_value
        left = max(value - state.lower, 0.0)
        gap = relative_gap(value, left, left)
        if value <= self._vanishing(state):
            # A perfect fit: of what is left, nothing can be told from rounding.
            gap = min(gap, left / (self.weight * state.first_width))
        width = state.cut * float(state.point[-1])
        reason = ""
        if gap <= self.goal.tol or value <= self._vanishing(state):
            reason = CONVERGED
        elif state.n_iter >= self.goal.max_iter:
            reason = MAX_ITER
        elif width <= _LEAST_WIDTH * state.first_width:
            reason = STALLED
        if reason:
            return replace(state, point=state.best, value=value, gap=gap, reason=reason)
        return self._narrowed(replace(state, gap=gap))

    def _narrowed(self, state: SmoothingState) -> SmoothingState:
        """Begin with a smaller width along the line to the vertex."""
        state = replace(state, anchor=state.point, end=state.vertex)
        return self._restarted(state, state.cut)

    def _vanishing(self, state: SmoothingState) -> float:
        """An objective that is rounding of the first one."""
        return _VANISHING * self.weight * state.first_width

    def _restarted(self, state: SmoothingState, share: float) -> SmoothingState:
        """Begin at a share of the anchor's width, where its line says that the minimum is.

        Where a step does not succeed, too few rows are in the kink to say where to go: the share
        was too small.
        """
        return replace(
            state,
            point=state.end + share * (state.anchor - state.end),
            value=np.inf,
            direction=np.zeros_like(state.point),
            slope=0.0,
            step=1.0,
            is_at_vertex=0,
        )

    def _without_width(self, evaluation: Evaluation) -> Evaluation:
        hessian = cast("Array", evaluation.hessian)
        return Evaluation(evaluation.value, evaluation.gradient[:-1], hessian[:-1, :-1])

    def _minimum(self, here: Array, inner: Evaluation, metric: Array) -> tuple[Array, bool]:
        """Minimum of the quadratic model, and whether it is that with the metric added.

        Where too few rows are in the kink, the model itself has none.
        """
        hessian, gradient = cast("Array", inner.hessian), inner.gradient
        better = self._minimum_of(hessian, here, gradient)
        there = gradient + hessian @ (better - here)
        unsolved = np.linalg.norm(least_subgradient(better, there, self.absolute))
        if unsolved <= _UNSOLVED * np.sqrt(inner.value):
            return better, False
        return self._minimum_of(hessian + metric, here, gradient), True

    def _minimum_of(self, hessian: Array, here: Array, gradient: Array) -> Array:
        if self.absolute.any():
            return minimum_of_model(hessian, gradient - hessian @ here, self.absolute, here)
        return here - _least_solution(hessian, gradient)

    def _end_of_line(
        self, here: Array, direction: Array, width: float, inner: Evaluation, across: Array
    ) -> Array:
        """Where the minimum of this width would be at width zero."""
        minimum = here + direction
        moving = np.flatnonzero((minimum != 0.0) | (self.absolute == 0.0))
        hessian = cast("Array", inner.hessian)[np.ix_(moving, moving)]
        minimum[moving] += width * _least_solution(hessian, across[moving])
        return minimum

    def _left(self, here: Array, inner: Evaluation, width: float) -> float:
        """What the subgradient may take from the objective on the way to the optimum."""
        steepest = max(self.quantile, 1.0 - self.quantile)
        value = inner.value + 0.5 * width * self.weight * steepest**2
        # Both at this point and at the optimum, weighted absolute errors are at most these.
        errors = 2.0 * value / min(self.quantile, 1.0 - self.quantile)
        least = least_subgradient(here, inner.gradient, self.absolute)
        if not self.absolute.any():
            hessian = cast("Array", inner.hessian)
            step = _least_solution(hessian, least)
            if np.linalg.norm(least - hessian @ step) > _UNSOLVED * np.sqrt(value):
                return np.inf
            return float(self.goal.row_extent @ np.abs(step)) / width * errors
        is_free = self.absolute == 0.0
        weights = np.where(is_free, 1.0, self.absolute)
        reach = np.where(is_free, 0.0, 2.0 * value / weights)
        left = float(np.max(np.abs(least) / weights, where=~is_free, initial=0.0)) * 2.0 * value
        if is_free.any():
            # The mean of the scores' errors bounds the intercept's.
            mean = np.abs(self.mean_row)
            far = errors / self.weight + float(np.max(mean * reach, initial=0.0))
            left += float(np.sum(np.abs(least[is_free]) * far / mean[is_free]))
        return left


def _least_solution(matrix: Array, vector: Array) -> Array:
    """The solution of least norm of a symmetric system that may be singular."""
    if not len(vector):
        return vector
    values, vectors = scipy.linalg.eigh(matrix)
    steep = values > _SINGULAR * values[-1]
    if not steep.any():
        return np.zeros_like(vector)
    basis = vectors[:, steep]
    return np.asarray(basis @ ((basis.T @ vector) / values[steep]))
