"""What the cross-validated estimators share: solve for all penalties and folds, score, choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from dask_dml.data.source import Source
from dask_dml.errors import IncompatibleError
from dask_dml.estimator import LinearEstimator, Setting, check_survey
from dask_dml.faults.checkpoint import Checkpoint, CheckpointKeeper
from dask_dml.linear_model.folds import check_folds, folds_of
from dask_dml.objective import L2Penalty, Problem, Survey
from dask_dml.objective.blas import single_threaded_blas
from dask_dml.objective.folds import BlockFolds, FoldEncoder
from dask_dml.objective.held_out import HeldOutRequest, LeaveOneOutRequest, Metric
from dask_dml.objective.losses import Array
from dask_dml.objective.survey import TargetEncoder
from dask_dml.report.history import History
from dask_dml.report.progress import default_progress
from dask_dml.runtime import Executor, Listener, Outcome, RunSpec
from dask_dml.runtime.cross_validation import CrossValidation
from dask_dml.runtime.sample import is_worth_solving, optimum_of_sample
from dask_dml.solvers import Goal, Newton, ProximalNewton
from dask_dml.solvers.core import MAX_ITER
from dask_dml.solvers.joint import JointNewton, JointState

T = TypeVar("T")

# Coordinates up to which every fold may have a Hessian of its own.
_MOST_COORDINATES = 2000


class Grid(NamedTuple):
    """Models of every penalty and fold, and how they score on the rows held out.

    Attributes
    ----------
    theta : ndarray of shape (n_folds, n_penalties, K, q)
        Coefficients of centred columns, and the intercept last when there is one.
    scores : ndarray of shape (n_folds, n_penalties)
    is_solved : bool
        Whether all models were found to the tolerance.
    """

    theta: Array
    scores: Array
    is_solved: bool

    @property
    def best(self) -> int:
        """The first penalty whose mean score over the folds is the highest."""
        return int(np.argmax(self.scores.sum(axis=0)))


class CrossValidated(LinearEstimator):
    """Base of the estimators that choose a penalty by cross-validation.

    A subclass says its `_problems`, one a penalty, and its `_metric`, and takes the `Grid` of all
    models in `_take_grid`.
    """

    cv: Any

    # What a single fit lets one choose; a checkpoint of many models there is not.
    solver: str = "newton"
    warm_start: bool = False
    checkpoint: Checkpoint | str | Path | None = None

    def _problems(self, survey: Survey) -> tuple[list[Problem], TargetEncoder]:
        raise TypeError(f"{type(self).__name__} does not say what it minimises")

    def _metric(self, survey: Survey) -> Metric:
        raise TypeError(f"{type(self).__name__} does not say how it scores")

    def _take_grid(self, problems: Sequence[Problem], grid: Grid) -> None:
        raise TypeError(f"{type(self).__name__} does not say what its scores are")

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_folds(type(self).__name__, self.cv)

    def _minimise(
        self,
        source: Source,
        executor: Executor,
        run_id: str,
        keeper: CheckpointKeeper | None,
        history: History,
    ) -> tuple[Setting, Outcome]:
        name, share = type(self).__name__, self._sample_share(source)
        survey = executor.survey(self._target_kind, share)
        check_survey(survey.total)
        problems, encoder = self._problems(survey.total)
        middle, passes = _smooth(problems[len(problems) // 2]), 1.0
        if middle.n_coordinates > _MOST_COORDINATES:
            has_absolute = any(problem.penalty.absolute for problem in problems)
            screened = "l1_ratio=..., which forms a Hessian of few columns"
            around = screened if has_absolute else "solver='lbfgs'"
            raise IncompatibleError(
                f"{name} takes a Hessian of every fold, and {middle.n_coordinates} coefficients "
                f"are more than {_MOST_COORDINATES}: use scikit-learn's GridSearchCV around an "
                f"estimator with {around}"
            )
        n_folds, folds = self._folds(source, survey.total)
        start = middle.start()
        if share and is_worth_solving(middle, share):
            start, passes = optimum_of_sample(middle, encoder, survey)
        executor.encode(FoldEncoder(encoder, folds))
        joint = JointNewton(problems, n_folds, self.max_iter)
        run = RunSpec(
            run_id,
            "joint-newton",
            type(middle.loss).__name__,
            survey.total.n_rows,
            len(source.feature_names),
            len(source.row_chunks),
            self.max_iter,
            self.tol,
        )
        listeners: list[Listener] = [history, *default_progress(), *self.callbacks]
        rounds = CrossValidation(executor, run, survey, listeners, passes)
        rounds.begin()
        state = joint.start(middle.request(start, 1).theta)
        state, grid = self._validated(rounds, joint, state, self._metric(survey.total))
        self._take_grid(problems, grid)
        setting, outcome = self._refitted(rounds, joint, state, grid, encoder)
        rounds.end(outcome.state.reason, outcome.state.gap)
        return setting, outcome

    def _folds(self, source: Source, survey: Survey) -> tuple[int, Sequence[BlockFolds]]:
        return folds_of(type(self).__name__, self.cv, source, survey)

    def _validated(
        self, rounds: CrossValidation, joint: JointNewton, state: JointState, metric: Metric
    ) -> tuple[JointState, Grid]:
        """Models of every penalty, and their scores on rows that they have not seen."""
        tol = self._tol_of_folds(joint.problems[0])
        return models_of_folds(rounds, joint, state, metric, tol)

    def _tol_of_folds(self, problem: Problem) -> float:
        """Relative gap of the models of the folds."""
        return self.tol

    def _refitted(
        self,
        rounds: CrossValidation,
        joint: JointNewton,
        state: JointState,
        grid: Grid,
        encoder: TargetEncoder,
    ) -> tuple[Setting, Outcome]:
        """The model of the best penalty, fitted to all rows from what is known of it on them."""
        problem = joint.problems[grid.best]
        start = (state.trial[joint.at(grid.best, None)] * problem.scale).ravel()
        outcome = rounds.minimise(problem, _finishing(problem, self.tol, self.max_iter), start)
        if not grid.is_solved:
            final = replace(outcome.state, reason=MAX_ITER)
            outcome = Outcome(final, outcome.passes)
        return Setting(problem, encoder, start), outcome


def _smooth(problem: Problem) -> Problem:
    """A problem without absolute values, to start from: penalised as strongly by squares."""
    penalty = problem.penalty
    if not penalty.absolute:
        return problem
    return replace(problem, penalty=L2Penalty(penalty.strength + penalty.absolute))


def _finishing(problem: Problem, tol: float, max_iter: int) -> Newton | ProximalNewton:
    """What takes a point near the optimum there, on all rows, and certifies it."""
    if problem.penalty.absolute:
        return replace(ProximalNewton.of(problem, tol, max_iter), shares=(1.0,))
    return Newton(Goal.of(problem, tol, max_iter))


def models_of_folds(
    rounds: CrossValidation, joint: JointNewton, state: JointState, metric: Metric, tol: float
) -> tuple[JointState, Grid]:
    """Solve for every penalty and fold, and score the models on the rows held out.

    Parameters
    ----------
    rounds : CrossValidation
    joint : JointNewton
    state : JointState
        That of its start.
    metric : Metric
    tol : float
        Relative gap to reach.
    """
    n_penalties, n_folds = len(joint.problems), joint.n_folds
    numbers = np.array([[joint.at(i, k) for i in range(n_penalties)] for k in range(n_folds)])
    wanted, focus = np.sort(numbers.ravel()), joint.at(n_penalties // 2, None)
    state = rounds.solve(joint, state, wanted, tol, focus)
    theta = state.trial[numbers]
    request = HeldOutRequest(metric, theta, joint.problems[0].center)
    scores = rounds.score(request, state, focus)
    return state, Grid(theta, scores, bool(state.is_solved(tol)[wanted].all()))


def models_of_all_rows(
    rounds: CrossValidation, joint: JointNewton, state: JointState, metric: Metric, tol: float
) -> tuple[JointState, Grid]:
    """Solve least squares for every penalty on all rows, and score them leaving each row out.

    Parameters as in `models_of_folds`.
    """
    wanted = np.array([joint.at(i, None) for i in range(len(joint.problems))])
    focus = int(wanted[len(wanted) // 2])
    state = rounds.solve(joint, state, wanted, tol, focus)
    theta = state.trial[wanted]
    with single_threaded_blas():
        request = leave_one_out(joint.problems, state.gram, theta[:, 0], metric)
    scores = rounds.score(request, state, focus)
    return state, Grid(theta[None], scores, bool(state.is_solved(tol)[wanted].all()))


def leave_one_out(
    problems: Sequence[Problem], gram: Array, theta: Array, metric: Metric
) -> LeaveOneOutRequest:
    """What to ask for scores of least squares when each row is left out.

    Parameters
    ----------
    problems : sequence of Problem
        One a penalty.
    gram : ndarray of shape (q, q)
        Weighted, of centred columns, with those of the intercept last.
    theta : ndarray of shape (m, q)
        Solutions.
    metric : Metric
    """
    first = problems[0]
    center, least, intercepts = first.center, 0.0, np.zeros(len(theta))
    coef = theta
    if first.fit_intercept:
        # Columns whose weighted means are zero to the last bit have nothing to do with it.
        total = gram[-1, -1]
        shift = gram[:-1, -1] / total
        gram = gram[:-1, :-1] - total * np.outer(shift, shift)
        coef = theta[:, :-1]
        center, least, intercepts = center + shift, 1.0 / total, theta[:, -1] + coef @ shift
    eigenvalues, basis = scipy.linalg.eigh(gram)
    strengths = np.array([problem.penalty.strength / problem.multiplier for problem in problems])
    inverse = 1.0 / (np.maximum(eigenvalues, 0.0) + strengths[:, None])
    return LeaveOneOutRequest(metric, center, basis, inverse, coef @ basis, intercepts, least)


def coefficients_of(problem: Problem, theta: Array) -> tuple[Array, Array]:
    """Coefficients (..., K, p) and intercepts (..., K) as given, of those of centred columns."""
    if not problem.fit_intercept:
        return theta, np.zeros(theta.shape[:-1])
    coef = theta[..., :-1]
    return coef, theta[..., -1] - coef @ problem.center


def metric_of(name: str, scoring: Any, metrics: Mapping[str, T]) -> T:
    """The metric that `scoring` names, of those that are sums over rows.

    Raises
    ------
    ValueError
        If it is none of them.
    """
    if isinstance(scoring, str) and scoring in metrics:
        return metrics[scoring]
    raise ValueError(
        f"{name}(scoring={scoring!r}) is not a score that can be summed over blocks of rows: use "
        f"one of {', '.join(map(repr, metrics))}, or scikit-learn's GridSearchCV"
    )


def penalty_values(name: str, parameter: str, values: Any, has_zero: bool) -> NDArray[np.float64]:
    """Values of a penalty's parameter, shape (m,).

    Raises
    ------
    ValueError
        If there is none, or one is not a number, is negative, or is 0 and `has_zero` is False.
    """
    numbers = np.asarray(values)
    if numbers.ndim != 1 or not len(numbers) or numbers.dtype.kind not in "iuf":
        raise ValueError(f"{name}({parameter}=...) must be a list of numbers, got {values!r}")
    bad = numbers[~((numbers >= 0.0) if has_zero else (numbers > 0.0))]
    if len(bad):
        least = "at least 0" if has_zero else "positive"
        raise ValueError(f"{name}({parameter}=...): every value must be {least}, found {bad[0]}")
    return numbers.astype(np.float64)
