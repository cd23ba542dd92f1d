"""Newton's method for many problems on the same rows: penalties times folds.

The sums over rows at one point serve every problem: each takes its own training rows' share of
them, fold by fold, and adds its own penalty. So all problems step from a few shared points, and a
step is good enough where its certificate says so; only problems for which it does not get points
of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_dml.objective.blocks import Request, Statistics
from dask_dml.objective.folds import FoldRequest, FoldStatistics, FoldSums
from dask_dml.objective.losses import Array
from dask_dml.objective.problem import Problem
from dask_dml.solvers.core import (
    Goal,
    is_negligible,
    newton_step,
    relative_gap,
)

# Most bytes of sums that one round asks for.
_LARGEST_ANSWER_BYTES = 64_000_000
# Of the allowed gap, what is hoped for when a point is shared: the forecast is a forecast.
_HOPE = 0.25
_SHORTENED = 0.3
_NOISE = 1e-14


class Member(NamedTuple):
    """One of the problems: which penalty, and which fold is held out (None: all rows train)."""

    penalty: int
    held_out: int | None


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
    gap_before, gap : ndarray of shape (m,)
        Upper bounds of the relative gap at `theta` and at the next point; nan while there is none.
    is_settled : ndarray of shape (m,)
        Whether what is left is rounding.
    gram : ndarray of shape (K * q, K * q)
        Hessian of the sum of losses near by, which tells distances.
    n_iter : ndarray of shape (m,)
        Steps that each has taken.
    """

    theta: Array
    direction: Array
    step: Array
    value: Array
    gap_before: Array
    gap: Array
    is_settled: NDArray[np.bool_]
    gram: Array
    n_iter: NDArray[np.intp]

    @property
    def trial(self) -> Array:
        """The next point of each member, the result once its gap is small: (m, K, q)."""
        return np.asarray(self.theta + self.step[:, None, None] * self.direction)

    def is_solved(self, tol: float) -> NDArray[np.bool_]:
        """Members whose next point is known to be within a relative gap."""
        return np.asarray((self.gap <= tol) | self.is_settled)


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
            np.full(m, np.nan),
            np.zeros(m, dtype=bool),
            np.zeros((theta.size, theta.size)),
            np.zeros(m, dtype=np.intp),
        )

    def is_exact(self, state: JointState, number: int, tol: float) -> bool:
        """Whether a member was within the tolerance before its last step, which took it further.

        So `Newton` stops. A certificate of the step's end alone leaves it fewer digits.
        """
        is_quadratic = self.problems[0].loss.self_concordance == 0.0
        is_near = is_quadratic or bool(state.gap_before[number] <= tol)
        return is_near or bool(state.is_settled[number] or state.n_iter[number] > self.max_iter)

    def reopened(self, state: JointState, number: int) -> JointState:
        """The state with one more round to come for a member."""
        gap = state.gap.copy()
        gap[number] = np.nan
        return replace(state, gap=gap)

    def unsolved(self, state: JointState, wanted: NDArray[np.intp], tol: float) -> NDArray[np.intp]:
        """Members among those wanted that need another round."""
        is_open = ~state.is_solved(tol) & (state.n_iter <= self.max_iter)
        return wanted[is_open[wanted]]

    def ask(self, state: JointState, wanted: NDArray[np.intp], tol: float) -> FoldRequest:
        """Sums at points that promise the most for the members wanted."""
        first = self.problems[0]
        points = self._points(state, self.unsolved(state, wanted, tol), tol)
        return FoldRequest(
            tuple(Request(first.loss, theta, first.center, 2) for theta in points), self.n_folds
        )

    def tell(
        self, state: JointState, request: FoldRequest, sums: FoldSums, tol: float
    ) -> JointState:
        """Move every member that is not solved to the best of the points, and find its step."""
        theta, direction = state.theta.copy(), state.direction.copy()
        step, value = state.step.copy(), state.value.copy()
        gap_before, gap = state.gap_before.copy(), state.gap.copy()
        is_settled, n_iter = state.is_settled.copy(), state.n_iter.copy()
        points = np.stack([asked.theta for asked in request.requests])
        training = _Training(sums.answers)
        for number in np.flatnonzero(~state.is_solved(tol)):
            penalty, held_out = self.members[number]
            problem, goal = self.problems[penalty], self._goals[penalty]
            found = np.array(
                [
                    problem.multiplier * training.loss(at, held_out)
                    + problem.penalty.value(point[:, :-1] if problem.fit_intercept else point)
                    for at, point in enumerate(points)
                ]
            )
            best = int(np.argmin(np.where(np.isfinite(found), found, np.inf)))
            if not found[best] <= value[number] * (1.0 + _NOISE):
                step[number] *= _SHORTENED
                gap[number] = np.nan
                is_settled[number] = step[number] < 1e-6
                continue
            at = (points[best] * problem.scale).ravel()
            evaluation = problem.evaluation(at, training.sums(best, held_out))
            newton = newton_step(evaluation, goal)
            is_whole = newton.decrement2 <= 2.0 * evaluation.value
            theta[number], value[number] = points[best], evaluation.value
            direction[number] = newton.direction.reshape(points[best].shape) / problem.scale
            step[number] = 1.0 if is_whole else 2.0 * evaluation.value / newton.decrement2
            gap_before[number] = relative_gap(evaluation.value, newton.gap, newton.gap)
            gap_after = relative_gap(evaluation.value, newton.gap, newton.gap_after)
            gap[number] = gap_after if is_whole else np.nan
            is_settled[number] = is_negligible(evaluation.value, 0.5 * newton.decrement2)
            n_iter[number] += 1
        gram = training.sums(0, None).gram
        return replace(
            state,
            theta=theta,
            direction=direction,
            step=step,
            value=value,
            gap_before=gap_before,
            gap=gap,
            is_settled=is_settled,
            gram=state.gram if gram is None else gram,
            n_iter=n_iter,
        )

    @cached_property
    def _held_out(self) -> list[int | None]:
        return [*range(self.n_folds), None] if self.n_folds > 1 else [None]

    @cached_property
    def _goals(self) -> list[Goal]:
        return [Goal.of(problem, 0.0, self.max_iter) for problem in self.problems]

    @cached_property
    def _extent(self) -> Array:
        """Bounds of a row's entries, in centred columns."""
        return self.problems[0].row_extent * self.problems[0].scale

    def _points(self, state: JointState, members: NDArray[np.intp], tol: float) -> list[Array]:
        """Few points such that a step from one of them is likely to solve each member.

        A step over a distance that changes scores by at most r leaves a gap of about
        ``r^2 lambda^2 / 8`` (see `contracted_gap`). Where that is too much from any other member's
        next point, so it may be from the own: there, another's serves as well that is nearer than
        what the own next step will have left to go.
        """
        trial = state.trial
        if not np.all(np.isfinite(state.value[members])):
            return [trial[members[0]]]
        multiplier = np.array([self.problems[self.members[i].penalty].multiplier for i in members])
        allowed = _HOPE * tol * np.abs(state.value[members])
        own = self._change(state.step[members, None, None] * state.direction[members])
        reach = 0.5 * np.minimum(own, 1.0) ** 2
        # Of a full fit the estimate is amid those of its folds.
        centers = [self.at(penalty, None) for penalty in {self.members[i].penalty for i in members}]
        candidates = np.unique([*members, *centers])
        covers = np.empty((len(candidates), len(members)), dtype=bool)
        for row, candidate in enumerate(candidates):
            away = trial[members] - trial[candidate]
            flat = away.reshape(len(members), -1)
            change = self._change(away)
            decrement2 = multiplier * np.einsum("ij,ij->i", flat @ state.gram, flat)
            covers[row] = (change**2 * decrement2 / 8.0 <= allowed) | (change <= reach)
        nbytes = 8 * state.gram.size * self.n_folds
        points: list[Array] = []
        while covers.any() and (not points or (len(points) + 1) * nbytes <= _LARGEST_ANSWER_BYTES):
            best = int(covers.sum(axis=1).argmax())
            points.append(trial[candidates[best]])
            covers[:, covers[best]] = False
        return points

    def _change(self, away: Array) -> Array:
        """Bounds of self-concordance times the change of scores, shape (m,), along (m, K, q)."""
        concordance = self.problems[0].loss.self_concordance
        return np.asarray(concordance * np.linalg.norm(np.abs(away) @ self._extent, axis=1))


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
