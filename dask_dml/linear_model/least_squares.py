"""Least squares, plain and penalised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from dask.base import is_dask_collection
from sklearn.base import RegressorMixin

from dask_dml.estimator import (
    LinearEstimator,
    Setting,
    as_dask,
    is_dataset,
    is_number,
)
from dask_dml.faults.checkpoint import Checkpoint
from dask_dml.linear_model.scoring import plain_scores, scored
from dask_dml.objective import (
    L2Penalty,
    Problem,
    SquaredLoss,
    Survey,
    TargetKind,
)
from dask_dml.objective.losses import Array
from dask_dml.objective.survey import TargetEncoder
from dask_dml.runtime import Listener, Runtime


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


class LinearRegression(LeastSquares):
    """Ordinary least squares.

    Minimises ``sum_i s_i * (y_i - x_i coef - intercept)^2``; where that does not determine the
    coefficients, they are those of least norm.

    Parameters
    ----------
    fit_intercept : bool
    tol : float
        Relative gap to reach: (objective - optimum) / objective.
    solver : {"auto", "newton", "lbfgs", "gd"}
        "auto" solves the normal equations, in one pass after the survey, or is L-BFGS when
        there are many coefficients.
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


class Ridge(LeastSquares):
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
