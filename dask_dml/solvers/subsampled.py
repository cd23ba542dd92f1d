"""Quasi-Newton over growing samples: the Hessian of a sample is the metric, pairs correct it.

The optimum on a random sample is within statistical error of that on all rows, so samples of
growing size are solved no closer than that error, each from the point of the last. Rounds ask for
a gradient of all rows; for Hessians they look at the first sample again, and seldom at all rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg

from dask_dml.objective.blocks import GramDtype, certain_share
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
    about_least_eigenvalue,
    certified_finish,
    gradient_gap,
    is_descent,
    is_negligible,
    lower_bound_gap,
    resolved,
    shorter_step,
)

# Of the first sample, and rows of it for each coordinate of an output: with few, classes separate,
# and the sample's optimum is far away.
_LEAST_SHARE = 1 / 64
_ROWS_A_TERM = 25
_GROWTH = 10.0
# A sample that is nearly everything is not worth a stage.
_LARGEST_SHARE = 0.7
# A stage is over when the decrease that is expected is within this multiple of the relative error
# of the sample's optimum.
_ERROR_SHARE = 0.1
# Rows for each coordinate of an output of the first Hessian, which pairs correct, and of one that
# is to certify a point.
_FIRST_ROWS_A_TERM = 6
# Multiplications of a Hessian that takes no longer than a few gradients of a sample.
_QUICK = 2.5e8
_CERTAIN_ROWS_A_TERM = 8
# What a Gram matrix of all rows costs for each coordinate of an output, in passes for a gradient;
# and the entries that are passed over in the time that a round costs beyond its rows.
_GRAM_COST = 1 / 22
_ROUND_ENTRIES = 2e7
# How much larger than predicted the bound of a gap may turn out.
_CAUTION = 2.0
# How much larger a bound may be than the decrease that is expected, and the Newton decrement, in
# units in which there is no bound from 1 on, at which it is about that.
_MARGIN = 1.5
_DECREMENT = 0.7
# How many times more rows are taken where those of the last Hessian could not certify a point; and
# where they made a poor metric. Those of a sample are as likely as any; later ones are more so
# where curvature is, and need not be many more.
_MORE_ROWS = 2.0
_MORE_OF_METRIC = 1.25
# Accepted steps after which a metric is judged by them.
_STEPS_TO_JUDGE = 3
_MAX_TRIALS = 30
# Of a column whose values are squared in float32.
_LEAST_EXTENT = 1e-12


def growing_shares(n_rows: int, n_terms: int) -> tuple[float, ...]:
    """Shares of the rows that are solved one after the other; the last is all of them.

    Parameters
    ----------
    n_rows : int
    n_terms : int
        Coordinates an output.
    """
    share = max(_LEAST_SHARE, _ROWS_A_TERM * n_terms / n_rows)
    shares = []
    while share <= _LARGEST_SHARE:
        shares.append(share)
        share *= _GROWTH
    return (*shares, 1.0)


@dataclass(frozen=True)
class SubsampledState(SolverState):
    """State of `SubsampledNewton`.

    Attributes
    ----------
    stage : int
        Which of the samples.
    gram_share : float
        Share of the stage's rows of which the next round forms a Hessian; 0 for none.
    look : float
        Share of the first sample's rows of which the next round forms a Hessian at `point`, beside
        what is known of that point; 0 for an ordinary round.
    metric_share : float
        Share of all rows that the metric was formed of; 0 while there is none.
    certified_share : float
        The same of the last Hessian that was to certify a point, and could not.
    least_eigenvalue : float
        Of the metric in units of the rows' extent; inf while all rows are not looked at.
    initial : float
        Objective at the stage's first point.
    expected, relative : float
        Relative decrease that was expected when the metric was new, and that is at `point`.
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
    gram_share: float
    look: float
    metric_share: float
    certified_share: float
    least_eigenvalue: float
    initial: float
    expected: float
    relative: float
    gradient: Array
    factor: Array
    steps: Array
    changes: Array
    direction: Array
    step: float
    n_trials: int


@dataclass(frozen=True, eq=False)
class SubsampledNewton:
    """Sub-sampled quasi-Newton, which forms Hessians of no more rows than it needs.

    Where the Hessian of all rows gives no bound it stops without one.

    Parameters
    ----------
    goal : Goal
    n_rows : int
        Of the data.
    n_terms : int
        Coordinates an output.
    shares : tuple of float
        Shares of the rows that the stages look at; the last is all.
    name : str

    Notes
    -----
    The gap is bounded without a Hessian of all rows: that of some, not scaled up, is below it, and
    the bounds of `newton_step` with it hold, only larger by the inverse of their share. A further
    pass pays for that, since each lowers the gap by more. The first sample does where its share is
    large enough; otherwise a Hessian of more rows comes along with a gradient of all of them, as
    soon as that costs less than one more gradient.

    References
    ----------
    Erdogdu & Montanari 2015; Bollapragada, Byrd & Nocedal 2019; the pairs as in Nocedal & Wright
    2006, algorithm 7.4, with the sample's Hessian as the first matrix.
    """

    goal: Goal
    n_rows: int
    n_terms: int
    shares: tuple[float, ...]
    name: str = "subsampled-newton"

    def start(self, point: Array) -> SubsampledState:
        """State before the first round."""
        zero, none = np.zeros_like(point), np.empty((0, len(point)))
        # As many rows as pairs can make up for, or as take next to no time.
        n_rows = self.shares[0] * self.n_rows
        most = max(_FIRST_ROWS_A_TERM * self.n_terms, _QUICK / (self.n_terms * len(point)))
        first = most / n_rows
        return SubsampledState(
            point=point,
            value=np.inf,
            gap=np.nan,
            n_iter=0,
            reason="",
            stage=0,
            gram_share=1.0 if first > 0.5 else first,
            look=0.0,
            metric_share=0.0,
            certified_share=0.0,
            least_eigenvalue=np.inf,
            initial=np.inf,
            expected=np.inf,
            relative=np.inf,
            gradient=zero,
            factor=np.zeros((len(point),) * 2),
            steps=none,
            changes=none,
            direction=zero,
            step=1.0,
            n_trials=0,
        )

    def ask(self, state: SubsampledState) -> Ask:
        """Value and gradient at the next trial point, and a Hessian where one is due."""
        if state.look:
            dtype = np.float64 if np.isfinite(state.value) else self._metric_dtype
            return Ask(state.point, 2, self.shares[0], state.look, gram_dtype=dtype)
        point = state.point + state.step * state.direction
        share = self.shares[state.stage]
        if not state.gram_share:
            return Ask(point, 1, share)
        dtype = np.float64 if self._is_last(state) else self._metric_dtype
        return Ask(point, 2, share, state.gram_share, gram_dtype=dtype)

    @property
    def _metric_dtype(self) -> GramDtype:
        """What a metric is formed in: float32, unless its squares might be too large or small."""
        extent = self.goal.row_extent[self.goal.row_extent > 0.0]
        is_usual = bool(np.all((extent > _LEAST_EXTENT) & (extent < 1.0 / _LEAST_EXTENT)))
        return np.float32 if is_usual else np.float64

    def restore(self, stored: StoredState) -> SubsampledState:
        """The state that was stored."""
        return stored.restored(SubsampledState)

    def tell(self, state: SubsampledState, evaluation: Evaluation) -> SubsampledState:
        """Accept the trial and turn, or shorten the step."""
        if state.look:
            return self._seen(state, evaluation)
        if np.isfinite(state.value):
            slope = float(state.gradient @ state.direction)
            if not is_descent(state.value, slope, state.step, evaluation.value):
                return self._shortened(state, slope, evaluation.value)
            fallen = state.value - evaluation.value
            if state.n_trials and is_negligible(resolved(state.value, state.initial), fallen):
                return self._exhausted(state)
            state = self._moved(state, evaluation)
        else:
            state = replace(state, initial=evaluation.value)
        state = replace(state, value=evaluation.value, gradient=evaluation.gradient)
        # About as many rows as made the metric, and at a better point.
        share = state.gram_share * self.shares[state.stage]
        if share > 0.9 * state.metric_share:
            state = self._with_metric(state, share, evaluation)
        return self._turn(state, evaluation)

    def _shortened(
        self, state: SubsampledState, slope: float, trial_value: float
    ) -> SubsampledState:
        if state.n_trials >= _MAX_TRIALS:
            return replace(state, reason=STALLED) if self._is_last(state) else self._next(state)
        step = shorter_step(state.value, slope, state.step, trial_value)
        return replace(state, step=step, n_trials=state.n_trials + 1, gram_share=0.0)

    def _exhausted(self, state: SubsampledState) -> SubsampledState:
        """The state where what a step gains is lost in the rounding of the objective."""
        if not self._is_last(state):
            return self._next(state)
        # What a bound lacks is for Newton's method to find.
        return replace(state, reason=CONVERGED if self._is_certifiable else STALLED)

    def _is_last(self, state: SubsampledState) -> bool:
        return state.stage == len(self.shares) - 1

    def _moved(self, state: SubsampledState, evaluation: Evaluation) -> SubsampledState:
        moved = state.step * state.direction
        change = evaluation.gradient - state.gradient
        steps, changes = state.steps, state.changes
        # Backtracking does not see to it that the curvature along the step is positive.
        if float(moved @ change) > 1e-10 * float(np.linalg.norm(moved) * np.linalg.norm(change)):
            steps, changes = np.vstack([steps, moved]), np.vstack([changes, change])
        return replace(
            state,
            point=state.point + moved,
            steps=steps,
            changes=changes,
            n_iter=state.n_iter + 1,
        )

    def _with_metric(
        self, state: SubsampledState, share: float, evaluation: Evaluation
    ) -> SubsampledState:
        if evaluation.hessian is None:
            raise ValueError("SubsampledNewton.tell(evaluation=...) needs the Hessian it asked for")
        none = np.empty((0, len(state.point)))
        factor, least = _cholesky(evaluation.hessian), np.inf
        if self._is_last(state) and self._is_certifiable:
            extent = np.tile(self.goal.row_extent, len(factor) // len(self.goal.row_extent))
            least = about_least_eigenvalue(factor, extent)
        return replace(
            state,
            metric_share=share,
            least_eigenvalue=least,
            factor=factor,
            steps=none,
            changes=none,
        )

    def _turn(self, state: SubsampledState, evaluation: Evaluation) -> SubsampledState:
        direction = -_times_inverse(state.gradient, state.factor, state.steps, state.changes)
        expected = -0.5 * float(state.gradient @ direction)
        size = resolved(state.value, state.initial)
        relative = expected / size
        is_rounding = is_negligible(size, expected)
        if self._is_last(state):
            state = self._certified(state, evaluation, direction, relative)
            if is_rounding and (state.gram_share or not self._is_certifiable):
                state = replace(state, reason=CONVERGED)
        if state.reason:
            return state
        if state.n_iter >= self.goal.max_iter:
            return replace(state, reason=MAX_ITER)
        if not self._is_last(state) and (relative <= self._enough(state) or is_rounding):
            return self._next(state)
        state = replace(
            state,
            direction=direction,
            # No objective is below zero: where the model says so, the step is too long.
            step=min(1.0, state.value / expected) if expected > 0.0 else 1.0,
            n_trials=0,
            expected=state.expected if len(state.steps) else relative,
            relative=relative,
        )
        return self._planned(state)

    def _planned(self, state: SubsampledState) -> SubsampledState:
        """The state with what rows the next round forms a Hessian of."""
        ratio = self._ratio(state)
        look = self._look(state, ratio)
        return replace(state, look=look, gram_share=0.0 if look else self._gram_share(state, ratio))

    def _seen(self, state: SubsampledState, evaluation: Evaluation) -> SubsampledState:
        """After a Hessian of the first sample's rows, which is the metric, or certifies a point."""
        share, certain = (self.shares[0] * s for s in (state.look, certain_share(state.look)))
        state = replace(state, look=0.0)
        if not np.isfinite(state.value):
            return self._with_metric(state, share, evaluation)
        state = replace(state, certified_share=max(share, state.certified_share))
        here = replace(evaluation, value=state.value, gradient=state.gradient)
        gap = float(np.fmin(state.gap, lower_bound_gap(here, certain, self.goal)))
        if not gap <= self.goal.tol:
            # For more rows of the sample it is not too late.
            return self._planned(replace(state, gap=gap))
        point, gap = self._bettered(state, here, state.direction, gap)
        return replace(state, point=point, gap=gap, reason=CONVERGED)

    def _certified(
        self, state: SubsampledState, evaluation: Evaluation, direction: Array, relative: float
    ) -> SubsampledState:
        """The state with the gap at its point, converged where that is small enough."""
        tol, certain = self.goal.tol, certain_share(state.gram_share)
        point = state.point
        gap = gradient_gap(evaluation.value, evaluation.gradient, self.goal)
        # What is expected to be gained, over the share, is what the bound is about.
        if self._is_certifiable and state.gram_share and relative <= tol * certain:
            gap = float(np.fmin(gap, lower_bound_gap(evaluation, certain, self.goal)))
            if gap <= tol:
                point, gap = self._bettered(state, evaluation, direction, gap)
            state = replace(state, certified_share=state.gram_share)
            if certain == 1.0:
                # As close as a metric leads; what a bound lacks is for Newton's method to find.
                state = replace(state, reason=CONVERGED)
        reason = CONVERGED if gap <= tol else state.reason
        return replace(state, point=point, gap=gap, reason=reason)

    def _bettered(
        self, state: SubsampledState, evaluation: Evaluation, direction: Array, gap: float
    ) -> tuple[Array, float]:
        """The point that the last step leads to, with its gap, where that is still small enough.

        Nobody has been there; but what a step may raise the objective by at most is known.
        """
        if state.gram_share == 1.0:
            _, point, gap_after = certified_finish(state.point, evaluation, self.goal)
            return (point, gap_after) if gap_after <= gap else (state.point, gap)
        slope = float(state.gradient @ direction)
        rise = slope + 0.5 * self.goal.smoothness * float(direction @ direction)
        gap_after = gap + max(rise, 0.0) / resolved(state.value, state.initial)
        is_better = gap_after <= self.goal.tol
        return (state.point + direction, gap_after) if is_better else (state.point, gap)

    def _next(self, state: SubsampledState) -> SubsampledState:
        none = np.empty((0, len(state.point)))
        return replace(
            state,
            stage=state.stage + 1,
            gram_share=0.0,
            # The first stage's metric is that of its first point, which may have been anywhere.
            look=1.0 if state.stage == 0 else 0.0,
            value=np.inf,
            direction=np.zeros_like(state.point),
            n_trials=0,
            steps=none,
            changes=none,
        )

    @property
    def _is_certifiable(self) -> bool:
        return bool(np.isfinite(self.goal.self_concordance))

    @property
    def _round_cost(self) -> float:
        return _ROUND_ENTRIES / (self.n_rows * self.n_terms)

    def _gram_cost(self, n_coordinates: int) -> float:
        """What a Hessian of all rows costs, in passes for a gradient."""
        return _GRAM_COST * max(self.n_terms, n_coordinates - self.n_terms)

    def _enough(self, state: SubsampledState) -> float:
        """Relative decrease that is not worth expecting at the state's stage."""
        if self._is_last(state):
            return self.goal.tol
        error = len(state.point) / (self.shares[state.stage] * self.n_rows)
        return max(self.goal.tol, _ERROR_SHARE * error)

    def _ratio(self, state: SubsampledState) -> float:
        """By how much a step lowers what the next one is expected to gain."""
        if n_steps := len(state.steps):
            return float(min((state.relative / state.expected) ** (1.0 / n_steps), 0.99))
        return min(2.0 * self.n_terms / (state.metric_share * self.n_rows), 0.5)

    def _look(self, state: SubsampledState, ratio: float) -> float:
        """Share of the first sample's rows whose Hessian certifies the point; 0 for no look.

        None where they are too few, or where it costs less to take one more step first.
        """
        sample = self.shares[0]
        if not self._is_last(state) or not self._is_certifiable or sample == 1.0:
            return 0.0
        least = _CERTAIN_ROWS_A_TERM * self.n_terms / (sample * self.n_rows)
        least = min(max(least, 1.0 / self._gram_cost(len(state.point))), 1.0)
        least = max(least, _MORE_ROWS * state.certified_share / sample)

        def share(relative: float) -> float:
            needed = self._needed(state, relative) / sample
            some = max(2.0 * needed, least)
            # All of them count twice as much as some, see `certain_share`.
            return some if some <= 0.5 else max(needed, least, 1.0)

        now, later = share(state.relative), share(state.relative * ratio)
        saved = self._gram_cost(len(state.point)) * sample * (now - later)
        return now if now <= 1.0 and saved <= 1.0 + self._round_cost else 0.0

    def _needed(self, state: SubsampledState, relative: float) -> float:
        """Share of the rows whose Hessian is enough for a bound within the tolerance, about."""
        goal, decrement2 = self.goal, 2.0 * relative * abs(state.value)
        size = len(goal.row_extent) * decrement2 / state.least_eigenvalue
        decrement = goal.self_concordance * float(np.sqrt(max(size, 0.0)))
        return max(_MARGIN * relative / goal.tol, decrement / _DECREMENT)

    def _gram_share(self, state: SubsampledState, ratio: float) -> float:
        """Share of the stage's rows to form a Hessian of in the next round; 0 for none."""
        gram_cost = self._gram_cost(len(state.point))
        if self._is_last(state) and self._is_certifiable:
            predicted = _CAUTION * state.relative * ratio
            share = self._certifying_share(state, predicted, ratio, gram_cost)
            if share:
                return share
        enough = self._enough(state)
        if len(state.steps) < _STEPS_TO_JUDGE or state.relative <= enough:
            return 0.0
        # A metric of more rows has to save more than it costs, with half the steps.
        share = self.shares[state.stage]
        n_left = np.log(enough / state.relative) / np.log(ratio)
        more = min(_MORE_OF_METRIC * state.metric_share, share)
        is_worth_it = 0.5 * n_left * (share + self._round_cost) > gram_cost * more
        return more / share if is_worth_it else 0.0

    def _certifying_share(
        self, state: SubsampledState, predicted: float, ratio: float, gram_cost: float
    ) -> float:
        """Share of the rows whose Hessian at the next point ends the fit at the least cost.

        0 where the first sample will do, or where it costs less to take one more step first.
        """
        is_rounding = is_negligible(state.value, state.relative * abs(state.value))
        sample = 0.0 if self.shares[0] == 1.0 else self.shares[0]
        least = _CERTAIN_ROWS_A_TERM * self.n_terms / self.n_rows
        least = min(max(least, _MORE_ROWS * state.certified_share), 1.0)
        needed = self._needed(state, predicted)
        if needed <= sample and state.certified_share < sample:
            return 0.0
        now = max(needed, least)
        if is_rounding:
            return min(now, 1.0)
        later = max(self._needed(state, predicted * ratio), least)
        if now > 1.0 or gram_cost * (now - later) > 1.0 + self._round_cost:
            return 0.0
        # For less than a round costs, that of all rows also leads to a better point.
        return 1.0 if gram_cost * (1.0 - now) <= self._round_cost else now


def _cholesky(hessian: Array) -> Array:
    """Lower Cholesky factor; of what is singular to rounding, with more of its diagonal."""
    diagonal = np.diagonal(hessian)
    mean = float(diagonal.mean())
    for relative in (0.0, 1e-12, 1e-9, 1e-6, 1e-3):
        try:
            shifted = hessian + np.diag(relative * np.where(diagonal > 0.0, diagonal, mean))
            return np.asarray(scipy.linalg.cholesky(shifted, lower=True))
        except scipy.linalg.LinAlgError:
            continue
    return np.eye(len(hessian)) * float(np.sqrt(max(mean, 1e-300)))


def _times_inverse(gradient: Array, factor: Array, steps: Array, changes: Array) -> Array:
    """The two-loop recursion around the inverse of the metric, in units of the first pair."""
    vector = gradient.copy()
    inverse = 1.0 / np.einsum("ij,ij->i", steps, changes)
    alpha = np.empty(len(steps))
    for i in reversed(range(len(steps))):
        alpha[i] = inverse[i] * float(steps[i] @ vector)
        vector -= alpha[i] * changes[i]
    vector = np.asarray(scipy.linalg.cho_solve((factor, True), vector))
    if len(steps):
        # The Hessian at a sample's own optimum is too small where that has separated classes.
        change = scipy.linalg.cho_solve((factor, True), changes[0])
        vector *= float(steps[0] @ changes[0]) / float(changes[0] @ change)
    for i in range(len(steps)):
        beta = inverse[i] * float(changes[i] @ vector)
        vector += (alpha[i] - beta) * steps[i]
    return vector
