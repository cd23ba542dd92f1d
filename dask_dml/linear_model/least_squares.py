"""Least squares, plain and penalised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from dask.base import is_dask_collection
from sklearn.base import RegressorMixin

from dask_dml.data.source import Source
from dask_dml.estimator import (
    LinearEstimator,
    Setting,
    as_dask,
    is_dataset,
    is_number,
)
from dask_dml.faults.checkpoint import Checkpoint
from dask_dml.linear_model.cross_validation import (
    CrossValidated,
    Grid,
    metric_of,
    models_of_all_rows,
    penalty_values,
)
from dask_dml.linear_model.scoring import plain_scores, scored
from dask_dml.objective import (
    L2Penalty,
    Problem,
    SquaredLoss,
    Survey,
    TargetKind,
)
from dask_dml.objective.folds import BlockFolds, consecutive_folds
from dask_dml.objective.held_out import (
    Determination,
    Metric,
    NegativeMeanSquaredError,
    NegativeSquaredErrorPerRow,
)
from dask_dml.objective.losses import Array
from dask_dml.objective.survey import TargetEncoder
from dask_dml.runtime import Listener, Outcome, Runtime
from dask_dml.runtime.cross_validation import CrossValidation
from dask_dml.solvers.core import CONVERGED, SolverState
from dask_dml.solvers.joint import JointNewton, JointState

# Columns up to which second moments come with the survey: beyond, sums this large go from worker to
# worker and not through the client.
_MOMENT_COLUMNS = 700


class LeastSquares(RegressorMixin, LinearEstimator):
    """What the regressors with a squared loss share."""

    _target_kind = TargetKind.NUMBERS

    def _penalty(self) -> L2Penalty:
        raise TypeError(f"{type(self).__name__} does not say its penalty")

    def _setting(self, survey: Survey) -> Setting:
        penalty = self._penalty()
        # Without a penalty the solution may not be unique; that of least norm is found in
        # coordinates that are scaled alike.
        alike = penalty.strength == 0.0 and self.solver in ("auto", "newton")
        problem = Problem(SquaredLoss(), penalty, 2.0, survey, self.fit_intercept, isotropic=alike)
        shape = np.empty(len(survey.moment1))
        return Setting(problem, TargetEncoder(), self._warm(problem, shape, shape))

    def _take(self, setting: Setting, point: Array) -> None:
        coef, intercept = setting.problem.coefficients(point)
        self.coef_ = coef[0]
        self.intercept_ = float(intercept[0])

    def predict(self, X: Any) -> Any:
        """Predicted values of shape (n,): lazy for dask input, NumPy otherwise.

        Parameters
        ----------
        X : array-like, sparse matrix, dask array, dask DataFrame, Dataset, path or URL
            Shape (n, p).
        """
        return self._map_scores(X, plain_scores, np.float64)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Coefficient of determination R2; a lazy number for dask input.

        Parameters
        ----------
        X : see `predict`
        y : array-like or dask array of shape (n,); left out with a dataset
        sample_weight : array-like or dask array of shape (n,), optional
        """
        X, y, sample_weight = scored(X, y, sample_weight)
        if not (is_dataset(X) or is_dask_collection(X)):
            return super().score(X, y, sample_weight)
        predicted = self.predict(X)
        y = as_dask(y, predicted.chunks)
        weight = da.ones_like(y, dtype=np.float64) if sample_weight is None else sample_weight
        weight = as_dask(weight, predicted.chunks)
        mean = (weight * y).sum() / weight.sum()
        left = (weight * (y - predicted) ** 2).sum()
        return 1.0 - left / (weight * (y - mean) ** 2).sum()


class _NormalEquations(LeastSquares):
    """What plain and ridge regression share: the survey tells all there is to know of the rows."""

    def _sample_share(self, source: Source) -> float:
        return 0.0

    def _is_known_by_moments(self, source: Source) -> bool:
        # What a warm start has left to do would be lost in the moments' rounding.
        is_newton = self.solver in ("auto", "newton") and not self._is_warm()
        return is_newton and len(source.feature_names) <= _MOMENT_COLUMNS


class LinearRegression(_NormalEquations):
    """Ordinary least squares.

    Minimises ``sum_i s_i * (y_i - x_i coef - intercept)^2``; where that does not determine the
    coefficients, they are those of least norm.

    Parameters
    ----------
    fit_intercept : bool
    tol : float
        Relative gap to reach: (objective - optimum) / objective.
    solver : {"auto", "newton", "lbfgs", "gd"}
        "auto" solves the normal equations: in one pass, the survey, for up to 700 columns, in one
        more beyond; or it is L-BFGS when there are many coefficients.
    max_iter : int
    warm_start : bool
    runtime : Runtime or None
    checkpoint : Checkpoint, path, URL or None
    callbacks : sequence of callable

    Attributes
    ----------
    coef_ : ndarray of shape (p,)
    intercept_ : float
    n_features_in_, n_iter_ : int
    gap_, n_passes_ : float
    history_, faults_ : DataFrame
        See `LogisticRegression`.

    Examples
    --------
    >>> from dask_dml.linear_model import LinearRegression
    >>> LinearRegression().fit([[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0]).predict([[3.0]])
    array([7.])
    """

    def __init__(
        self,
        *,
        fit_intercept: bool = True,
        tol: float = 1e-8,
        solver: str = "auto",
        max_iter: int = 100,
        warm_start: bool = False,
        runtime: Runtime | None = None,
        checkpoint: Checkpoint | str | Path | None = None,
        callbacks: Sequence[Listener] = (),
    ) -> None:
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.solver = solver
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.runtime = runtime
        self.checkpoint = checkpoint
        self.callbacks = callbacks

    def _penalty(self) -> L2Penalty:
        return L2Penalty(0.0)


class Ridge(_NormalEquations):
    """Least squares penalised by the squared norm.

    Minimises ``sum_i s_i * (y_i - x_i coef - intercept)^2 + alpha * |coef|^2``; the intercept is
    not penalised.

    Parameters
    ----------
    alpha : float
        Strength of the penalty, not negative.
    fit_intercept, tol, solver, max_iter, warm_start, runtime, checkpoint, callbacks
        See `LinearRegression`.

    Attributes
    ----------
    coef_ : ndarray of shape (p,)
    intercept_ : float
    n_features_in_, n_iter_ : int
    gap_, n_passes_ : float
    history_, faults_ : DataFrame
        See `LogisticRegression`.

    Examples
    --------
    >>> from dask_dml.linear_model import Ridge
    >>> Ridge(alpha=2.0).fit([[-1.0], [1.0]], [-1.0, 1.0]).coef_
    array([0.5])
    """

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        fit_intercept: bool = True,
        tol: float = 1e-8,
        solver: str = "auto",
        max_iter: int = 100,
        warm_start: bool = False,
        runtime: Runtime | None = None,
        checkpoint: Checkpoint | str | Path | None = None,
        callbacks: Sequence[Listener] = (),
    ) -> None:
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.solver = solver
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.runtime = runtime
        self.checkpoint = checkpoint
        self.callbacks = callbacks

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if not (is_number(self.alpha) and np.isfinite(self.alpha) and self.alpha >= 0.0):
            raise ValueError(f"Ridge(alpha=...) must be a finite number >= 0, got {self.alpha!r}")

    def _penalty(self) -> L2Penalty:
        return L2Penalty(2.0 * float(self.alpha))


class RidgeCV(CrossValidated, LeastSquares):
    """Ridge regression whose `alpha` is chosen by cross-validation.

    One pass that keeps folds apart solves it for every alpha and fold, one more scores.

    Parameters
    ----------
    alphas : float or list of float
        Values to try, not negative; positive where each row is left out.
    fit_intercept : bool
    scoring : {"r2", "neg_mean_squared_error"} or None
        What is highest, in the mean over the folds, for the best alpha; None is R2, or the negative
        mean squared error where each row is left out.
    cv : int, splitter, iterable or None
        None leaves each row out, in closed form. Otherwise folds of consecutive rows, as many as
        said; see `LogisticRegressionCV` for what else. Sample weights count in the scores.
    tol, max_iter, runtime, callbacks
        See `Ridge`. There is no `checkpoint`: one of many models is not kept.

    Attributes
    ----------
    alpha_ : float
    best_score_ : float
        Mean score over the folds of the best alpha.
    coef_ : ndarray of shape (p,)
    intercept_ : float
    n_features_in_, n_iter_ : int
    gap_, n_passes_ : float
    history_, faults_ : DataFrame
        See `LogisticRegression`.

    Examples
    --------
    >>> import numpy as np
    >>> from dask_dml.linear_model import RidgeCV
    >>> x = np.arange(6.0)[:, None]
    >>> RidgeCV(alphas=[0.1, 10.0]).fit(x, 2.0 * x[:, 0]).alpha_
    0.1
    """

    def __init__(
        self,
        alphas: Any = (0.1, 1.0, 10.0),
        *,
        fit_intercept: bool = True,
        scoring: str | None = None,
        cv: Any = None,
        tol: float = 1e-8,
        max_iter: int = 100,
        runtime: Runtime | None = None,
        callbacks: Sequence[Listener] = (),
    ) -> None:
        self.alphas = alphas
        self.fit_intercept = fit_intercept
        self.scoring = scoring
        self.cv = cv
        self.tol = tol
        self.max_iter = max_iter
        self.runtime = runtime
        self.callbacks = callbacks

    def _check_arguments(self) -> None:
        super()._check_arguments()
        self._values()
        if self.scoring is not None:
            metric_of("RidgeCV", self.scoring, dict.fromkeys(("r2", "neg_mean_squared_error")))

    def _values(self) -> Array:
        alphas = np.atleast_1d(np.asarray(self.alphas))
        return penalty_values("RidgeCV", "alphas", alphas, has_zero=self.cv is not None)

    def _metric(self, survey: Survey) -> Metric:
        if self.scoring is None and self.cv is None:
            return NegativeSquaredErrorPerRow(survey.n_rows)
        if self.scoring == "neg_mean_squared_error":
            return NegativeMeanSquaredError()
        return Determination(survey.target_moment1 / survey.weight)

    def _problems(self, survey: Survey) -> tuple[list[Problem], TargetEncoder]:
        alphas = self._values()
        # As in `Ridge`, where a solution may not be unique; all centred alike.
        alike = bool(np.any(alphas == 0.0))
        problems = [
            Problem(SquaredLoss(), L2Penalty(2.0 * alpha), 2.0, survey, self.fit_intercept, alike)
            for alpha in alphas
        ]
        return problems, TargetEncoder()

    def _folds(self, source: Source, survey: Survey) -> tuple[int, Sequence[BlockFolds]]:
        if self.cv is None:
            return 1, consecutive_folds(source.row_chunks, 1)
        return super()._folds(source, survey)

    def _validated(
        self, rounds: CrossValidation, joint: JointNewton, state: JointState, metric: Metric
    ) -> tuple[JointState, Grid]:
        if self.cv is None:
            return models_of_all_rows(rounds, joint, state, metric, self.tol)
        return super()._validated(rounds, joint, state, metric)

    def _refitted(
        self,
        rounds: CrossValidation,
        joint: JointNewton,
        state: JointState,
        grid: Grid,
        encoder: TargetEncoder,
    ) -> tuple[Setting, Outcome]:
        # The function is quadratic: the solution for all rows is known with those of the folds.
        problem, number = joint.problems[grid.best], joint.at(grid.best, None)
        point = (state.trial[number] * problem.scale).ravel()
        value, gap = float(state.value[number]), float(state.left[number])
        final = SolverState(point, value, gap, int(state.n_iter[number]), CONVERGED)
        return Setting(problem, encoder, point), Outcome(final, rounds.passes)

    def _take_grid(self, problems: Sequence[Problem], grid: Grid) -> None:
        self.alpha_ = float(self._values()[grid.best])
        self.best_score_ = float(grid.scores.mean(axis=0)[grid.best])
