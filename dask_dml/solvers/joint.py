"""Newton's method for many problems on the same rows: penalties times folds.

The sums over rows at one point serve every problem: each takes its own training rows' share of
them, fold by fold, and adds its own penalty. So all problems step from a few shared points. What a
step leaves is estimated, and only problems to which it leaves too much get further points. With
absolute values in the penalty a step is that of the proximal Newton method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, NamedTuple, Self, cast

import numpy as np
from numpy.typing import NDArray

from dask_dml.objective.blocks import Request, Statistics
from dask_dml.objective.folds import FoldRequest, FoldStatistics, FoldSums
from dask_dml.objective.losses import Array
from dask_dml.objective.problem import Evaluation, Problem
from dask_dml.solvers.core import (
    is_negligible,
    newton_direction,
    relative_gap,
)
from dask_dml.solvers.proximal import minimum_of_model

# Most bytes of sums that one round asks for.
_LARGEST_ANSWER_BYTES = 64_000_000
# Of the allowed gap, what is hoped for when a point is shared: the forecast is a forecast.
_HOPE = 0.25
# Fourth over squared second moment of the changes of scores along a step; 3 for normal ones.
_KURTOSIS = 10.0
# Of the coordinates over the rows, the squared error of a step with a Hessian of drawn rows.
_SAMPLING = 4.0
_ROWS_A_COORDINATE = 500
_LARGEST_SHARE = 0.5
_SHORTENED = 0.3
_SHORTEST = 1e-6
_TINY = float(np.finfo(np.float64).tiny)


class Member(NamedTuple):
    """One of the problems: which penalty, and which fold is held out (None: all rows train)."""

    penalty: int
    held_out: int | None


class _Move(NamedTuple):
    """From a point to the minimum of its model.

    Attributes
    ----------
    direction : ndarray of shape (K, q)
        In coefficients of centred columns.
    decrease : float
        By which the model falls.
    length2 : float
        Squared, in the norm of the Hessian.
    rounding : float
        The gap that it may leave by rounding.
    """

    direction: Array
    decrease: float
    length2: float
    rounding: float


class _Step(NamedTuple):
    """A Newton step of one member: see `JointState` for what it becomes there."""

    direction: Array
    length: float
    value: float
    left: float
    is_rounding: bool


@dataclass(frozen=True)
class JointState:
    """What is known of each of m members.

    Attributes
    ----------
    theta : ndarray of shape (m, K, q)
        The best point at which sums were taken, in coefficients of centred columns.
    direction : ndarray of shape (m, K, q)
        Newton's, from there.
    step : ndarray of shape (m,)
        How far along it the next point is.
    value : ndarray of shape (m,)
        Objective at `theta`; inf before the first round.
    left : ndarray of shape (m,)
        Relative gap at the next point, by estimate; nan where it is far.
    is_settled : ndarray of shape (m,)
        Whether what is left is rounding.
    is_alone : ndarray of shape (m,)
        Whether other members' points were of no use, so that the next has to be its own.
    gram : ndarray of shape (K * q, K * q)
        Hessian of the sum of losses near by, which tells distances.
    n_iter : ndarray of shape (m,)
        Steps that each has taken.
    """

    theta: Array
    direction: Array
    step: Array
    value: Array
    left: Array
    is_settled: NDArray[np.bool_]
    is_alone: NDArray[np.bool_]
    gram: Array
    n_iter: NDArray[np.intp]

    def copy(self) -> Self:
        """A state whose arrays are its own."""
        arrays = {each.name: getattr(self, each.name).copy() for each in fields(self)}
        return type(self)(**arrays)

    def take(self, number: int, theta: Array, step: _Step) -> None:
        """Move a member to a point, with the step from there."""
        self.theta[number], self.direction[number] = theta, step.direction
        self.step[number], self.value[number] = step.length, step.value
        self.left[number], self.is_settled[number] = step.left, step.is_rounding
        self.is_alone[number] = False
        self.n_iter[number] += 1

    @property
    def trial(self) -> Array:
        """The next point of each member, the result once its gap is small: (m, K, q)."""
        return np.asarray(self.theta + self.step[:, None, None] * self.direction)

    def is_solved(self, tol: float) -> NDArray[np.bool_]:
        """Members whose next point is within a relative gap, by estimate."""
        return np.asarray((self.left <= tol) | self.is_settled)


@dataclass(frozen=True)
class JointNewton:
    """Newton's method for all members at once.

    Parameters
    ----------
    problems : sequence of Problem
        One a penalty (or multiplier): of the same loss and rows, and centred alike.
    n_folds : int
        With one, all rows train: there is a member a penalty only.
    max_iter : int
        Most steps of a member.
    """

    problems: Sequence[Problem]
    n_folds: int
    max_iter: int
    members: tuple[Member, ...] = field(init=False)

    def __post_init__(self) -> None:
        members = [Member(i, k) for i in range(len(self.problems)) for k in self._held_out]
        object.__setattr__(self, "members", tuple(members))

    def at(self, penalty: int, held_out: int | None) -> int:
        """Number of a member."""
        return penalty * len(self._held_out) + self._held_out.index(held_out)

    def start(self, theta: Array) -> JointState:
        """State before the first round: one point for all, of shape (K, q)."""
        m = len(self.members)
        return JointState(
            np.repeat(theta[None], m, axis=0),
            np.zeros((m, *theta.shape)),
            np.ones(m),
            np.full(m, np.inf),
            np.full(m, np.nan),
            np.zeros(m, dtype=bool),
            np.zeros(m, dtype=bool),
            np.zeros((theta.size, theta.size)),
            np.zeros(m, dtype=np.intp),
        )

    def unsolved(self, state: JointState, wanted: NDArray[np.intp], tol: float) -> NDArray[np.intp]:
        """Members among those wanted that need another round."""
        is_open = ~state.is_solved(tol) & (state.n_iter <= self.max_iter)
        return wanted[is_open[wanted]]

    def ask(self, state: JointState, wanted: NDArray[np.intp], tol: float) -> FoldRequest:
        """Sums at points that promise the most for the members wanted."""
        first = self.problems[0]
        points, share = self._plan(state, self.unsolved(state, wanted, tol), tol)
        asked = (Request(first.loss, at, first.center, 2, gram_share=share) for at in points)
        return FoldRequest(tuple(asked), self.n_folds)

    def tell(
        self, state: JointState, request: FoldRequest, found: FoldSums, tol: float
    ) -> JointState:
        """Move every member that is not solved to the best of the points, and find its step."""
        points = np.stack([asked.theta for asked in request.requests])
        share = request.requests[0].gram_share
        training, trial, told = _Training(found.answers), state.trial, state.copy()
        for number in np.flatnonzero(~state.is_solved(tol)).tolist():
            penalty, held_out = self.members[number]
            problem = self.problems[penalty]
            own = problem.unshifted(points)
            values = self._values(problem, held_out, own, training)
            best = int(np.argmin(np.where(np.isfinite(values), values, np.inf)))
            step = None
            if np.isfinite(values[best]):
                sums = training.sums(best, held_out)
                step = self._step(problem, own[best], trial[number], sums, share)
            # Near the optimum steps from any point lead there, the better the less they leave.
            is_lower = step is not None and step.value < state.value[number]
            if step is not None and (is_lower or step.left < state.left[number]):
                told.take(number, own[best], step)
            elif not (points == trial[number]).all(axis=(1, 2)).any():
                told.is_alone[number] = True
            elif np.isfinite(state.left[number]):
                told.is_settled[number] = True
            else:
                told.step[number] *= _SHORTENED
                told.is_settled[number] = told.step[number] < _SHORTEST
        return replace(told, gram=np.asarray(training.sums(0, None).gram))

    def _values(
        self, problem: Problem, held_out: int | None, points: Array, training: _Training
    ) -> Array:
        """Objective of a member at each of the points."""
        coef = points[..., :-1] if problem.fit_intercept else points
        losses = np.array([training.loss(at, held_out) for at in range(len(points))])
        penalties = np.array([problem.penalty.value(each) for each in coef])
        return np.asarray(problem.multiplier * losses + penalties)

    def _step(
        self, problem: Problem, theta: Array, near: Array, sums: Statistics, share: float
    ) -> _Step:
        """Newton step of a member from a point, likely to somewhere near, and what it leaves."""
        evaluation = problem.evaluation((theta * problem.scale).ravel(), sums)
        value = evaluation.value
        if problem.penalty.absolute:
            move = _proximal_move(problem, theta, near, evaluation)
        else:
            move = _smooth_move(problem, theta, evaluation)
        is_rounding = is_negligible(value, move.decrease)
        if move.decrease > value:
            # No objective is below zero: where the model says so, the step is too long.
            return _Step(move.direction, value / move.decrease, value, np.nan, is_rounding)
        in_loss = move.length2 / problem.multiplier
        change2 = float(self._change2(in_loss, cast("Array", sums.gram)))
        sampling = 0.0
        if share < 1.0:
            sampling = 0.5 * in_loss * _sampling_error2(theta.size, share * sums.n_rows)
        left = problem.multiplier * float(_remainder(change2, in_loss) + sampling) + move.rounding
        left = relative_gap(value, move.decrease, left if change2 <= 1.0 else np.inf)
        return _Step(move.direction, 1.0, value, left, is_rounding)

    @cached_property
    def _held_out(self) -> list[int | None]:
        return [*range(self.n_folds), None] if self.n_folds > 1 else [None]

    @cached_property
    def _spread(self) -> Array:
        """Weighted mean squares of the entries of centred columns, and of the intercept's: (q,)."""
        first = self.problems[0]
        survey, center = first.survey, first.center
        squares = survey.moment2 - 2.0 * center * survey.moment1 + center**2 * survey.weight
        squares = np.append(squares, survey.weight) if first.fit_intercept else squares
        return np.asarray(squares / survey.weight)

    def _change2(self, decrement2: Any, gram: Array) -> Any:
        """Squared scale of the changes of scores along a step, of this decrement in the loss.

        What a step leaves, in the norm of the Hessian, is at most half of the root of the sum of
        curvatures times fourth powers of the changes of scores, as the third derivative is at most
        the second (times the self-concordance). With a kurtosis k that is
        ``sqrt(k) lambda^2 / sqrt(curvature) / 2``, with the sum of curvatures over the rows.
        """
        concordance = self.problems[0].loss.self_concordance
        outputs = np.diagonal(gram).reshape(-1, len(self._spread))
        present = self._spread > 0.0
        curvature = (outputs[:, present] / self._spread[present]).mean(axis=1).min()
        return concordance**2 * _KURTOSIS * decrement2 / max(float(curvature), _TINY)

    def _plan(
        self, state: JointState, members: NDArray[np.intp], tol: float
    ) -> tuple[list[Array], float]:
        """Few points such that a step from one of them is likely to solve each member.

        Where the step would leave too much from any other member's next point, so it may from the
        own: there, another's serves as well that is nearer than what the own will have left to go.
        And the share of the rows whose Hessian errs by less than what the steps leave anyway.
        """
        trial = state.trial
        n_rows, d = self.problems[0].survey.n_rows, trial[0].size
        # What is quadratic is solved by one step with all rows.
        is_quadratic = self.problems[0].loss.self_concordance == 0.0
        least = 1.0 if is_quadratic else _ROWS_A_COORDINATE * d / n_rows
        if not np.all(np.isfinite(state.value[members])):
            return [trial[members[0]]], _whole_or(least)
        multiplier = np.array([self.problems[self.members[i].penalty].multiplier for i in members])
        allowed = _HOPE * tol * np.abs(state.value[members]) / multiplier
        own = self._distance2(state, state.step[members, None, None] * state.direction[members])
        reach = 0.25 * np.minimum(self._change2(own, state.gram), 1.0) * own
        # Of a full fit the estimate is amid those of its folds.
        centers = [self.at(penalty, None) for penalty in {self.members[i].penalty for i in members}]
        candidates = np.unique([*members, *centers])
        covers = np.empty((len(candidates), len(members)), dtype=bool)
        distance2 = np.empty(covers.shape)
        is_shared = ~state.is_alone[members]
        for row, candidate in enumerate(candidates):
            away = self._distance2(state, trial[members] - trial[candidate])
            is_enough = _remainder(self._change2(away, state.gram), away) <= allowed
            distance2[row] = away
            covers[row] = ((is_enough | (away <= reach)) & is_shared) | (members == candidate)
        nbytes = 8 * state.gram.size * self.n_folds
        chosen: list[int] = []
        while covers.any() and (not chosen or (len(chosen) + 1) * nbytes <= _LARGEST_ANSWER_BYTES):
            best = int(covers.sum(axis=1).argmax())
            chosen.append(best)
            covers[:, covers[best]] = False
        to_go = distance2[chosen].min(axis=0) + reach
        bearable = np.maximum(allowed, _remainder(self._change2(to_go, state.gram), to_go))
        share = 0.5 * to_go * _sampling_error2(d, n_rows) / np.maximum(bearable, _TINY)
        points = [trial[candidates[row]] for row in chosen]
        return points, _whole_or(max(float(share.max()), least))

    def _distance2(self, state: JointState, away: Array) -> Array:
        """Squared distances, shape (m,), in the norm of the loss's Hessian: along (m, K, q)."""
        flat = away.reshape(len(away), -1)
        return np.asarray(np.einsum("ij,ij->i", flat @ state.gram, flat))


def _smooth_move(problem: Problem, theta: Array, evaluation: Evaluation) -> _Move:
    flat, rounding = newton_direction(evaluation, problem.loss.self_concordance == 0.0)
    decrement2 = max(float(-(evaluation.gradient @ flat)), 0.0)
    direction = flat.reshape(theta.shape) / problem.scale
    return _Move(direction, 0.5 * decrement2, decrement2, rounding)


def _proximal_move(problem: Problem, theta: Array, near: Array, evaluation: Evaluation) -> _Move:
    hessian, weights = cast("Array", evaluation.hessian), problem.absolute_weights
    point, start = (theta * problem.scale).ravel(), (near * problem.scale).ravel()
    better = minimum_of_model(hessian, evaluation.gradient - hessian @ point, weights, start)
    flat = better - point
    length2 = max(float(flat @ hessian @ flat), 0.0)
    slope = float(evaluation.gradient @ flat + weights @ (np.abs(better) - np.abs(point)))
    # What is to be zero is so to the last bit at the end of this direction.
    direction = better.reshape(theta.shape) / problem.scale - theta
    return _Move(direction, max(-slope - 0.5 * length2, 0.0), length2, 0.0)


def _sampling_error2(n_coordinates: int, n_rows: float) -> float:
    """Squared relative error of a step with the Hessian of so many rows, drawn at random."""
    return _SAMPLING * n_coordinates / n_rows


def _whole_or(share: float) -> float:
    """A share of the rows to form the Hessian of; all where it would hardly be less work."""
    return share if share < _LARGEST_SHARE else 1.0


def _remainder(change2: Any, decrement2: Any) -> Any:
    """Gap that a step leaves: half the square of what is left, itself half of change times step."""
    return change2 * decrement2 / 8.0


class _Training:
    """Sums of training rows at each point, each added up once."""

    def __init__(self, answers: Sequence[FoldStatistics]) -> None:
        self._answers = answers
        self._sums: dict[tuple[int, int | None], Statistics] = {}

    def sums(self, point: int, held_out: int | None) -> Statistics:
        answer = self._answers[point]
        if (point, held_out) not in self._sums:
            self._sums[point, held_out] = (
                answer.total if held_out is None else answer.training(held_out)
            )
        return self._sums[point, held_out]

    def loss(self, point: int, held_out: int | None) -> float:
        return self.sums(point, held_out).loss
