"""Regression that a few wild targets do not move: Huber's loss, and quantiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from dask.base import is_dask_collection

from dask_dml.data.source import Source
from dask_dml.errors import IncompatibleError
from dask_dml.estimator import Setting, as_dask, is_dataset, is_number
from dask_dml.faults.checkpoint import Checkpoint
from dask_dml.linear_model.least_squares import LeastSquares
from dask_dml.linear_model.scoring import scored
from dask_dml.objective import ElasticNetPenalty, HuberLoss, L2Penalty, Survey, WidthProblem
from dask_dml.objective.losses import Array
from dask_dml.objective.survey import TargetEncoder
from dask_dml.runtime import Listener, Runtime
from dask_dml.solvers import Goal, PerspectiveNewton, SmoothingNewton
from dask_dml.solvers.perspective import NO_SCALE


class _SolverOfItsOwn(LeastSquares):
    """What they share: a solver that looks at samples where they are."""

    def _sample_share(self, source: Source) -> float:
        return 0.0


class HuberRegressor(_SolverOfItsOwn):
    r"""Linear regression with Huber's loss, and the scale of the errors estimated with it.

    Minimises ``sum_i s_i * (scale + H((y_i - z_i) / scale) * scale) + alpha * |coef|^2`` over
    coefficients, intercept and scale, where ``H(u) = u^2`` for ``|u| <= epsilon`` and
    ``2 * epsilon * |u| - epsilon^2`` beyond; the intercept is not penalised. This is
    scikit-learn's objective.

    Parameters
    ----------
    epsilon : float
        Errors beyond this many scales count linearly; at least 1.
    alpha : float
        Strength of the penalty, not negative.
    solver : {"auto", "newton"}
    fit_intercept, tol, max_iter, warm_start, runtime, checkpoint, callbacks
        See `LinearRegression`.

    Attributes
    ----------
    coef_ : ndarray of shape (p,)
    intercept_ : float
    scale_ : float
        Of the errors.
    outliers_ : ndarray or dask array of shape (n,)
        Rows with errors beyond ``epsilon * scale_``. For dask input and datasets it is lazy, and
        refers to them; it is not saved.
    n_features_in_, n_iter_ : int
    gap_, n_passes_ : float
    history_, faults_ : DataFrame
        See `LogisticRegression`.

    References
    ----------
    Huber & Ronchetti 2009, *Robust Statistics*, section 7.7.

    Examples
    --------
    >>> from dask_dml.linear_model import HuberRegressor
    >>> X = [[0.0], [1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [7.0]]
    >>> y = [0.1, 0.9, 2.2, 2.9, 4.1, 4.9, 6.2, 70.0]
    >>> model = HuberRegressor(alpha=0.0, epsilon=2.0).fit(X, y)
    >>> model.outliers_
    array([False, False, False, False, False, False, False,  True])
    >>> model.coef_.round(1)
    array([1.1])
    """

    _fitted = ("coef", "intercept", "scale")
    _advice: ClassVar[dict[str, str]] = {NO_SCALE: "use a larger epsilon, or QuantileRegressor"}

    def __init__(
        self,
        *,
        epsilon: float = 1.35,
        alpha: float = 0.0001,
        fit_intercept: bool = True,
        tol: float = 1e-8,
        solver: str = "auto",
        max_iter: int = 100,
        warm_start: bool = False,
        runtime: Runtime | None = None,
        checkpoint: Checkpoint | str | Path | None = None,
        callbacks: Sequence[Listener] = (),
    ) -> None:
        self.epsilon = epsilon
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.solver = solver
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.runtime = runtime
        self.checkpoint = checkpoint
        self.callbacks = callbacks

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit the model; see `LinearRegression.fit`."""
        super().fit(X, y, sample_weight)
        X, y, _ = scored(X, y, sample_weight)
        predicted = self.predict(X)
        if is_dataset(X) or is_dask_collection(X):
            y = as_dask(y, predicted.chunks)
        else:
            y = np.asarray(y, dtype=np.float64)
        self.outliers_ = abs(y - predicted) > self.epsilon * self.scale_
        return self

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if not (is_number(self.epsilon) and 1.0 <= self.epsilon < np.inf):
            raise ValueError(
                f"HuberRegressor(epsilon=...) must be a finite number >= 1, got {self.epsilon!r}"
            )
        if not (is_number(self.alpha) and 0.0 <= self.alpha < np.inf):
            raise ValueError(
                f"HuberRegressor(alpha=...) must be a finite number >= 0, got {self.alpha!r}"
            )
        if self.solver not in ("auto", "newton"):
            raise IncompatibleError(
                f"HuberRegressor(solver={self.solver!r}): this solver does not know the scale, "
                "which is minimised over too; use solver='newton'"
            )

    def _setting(self, survey: Survey) -> Setting:
        epsilon = float(self.epsilon)
        shape = np.empty(len(survey.moment1))
        is_warm = self._is_warm() and self.coef_.shape == shape.shape
        scale = self.scale_ if is_warm else _spread_of_target(survey)
        loss = HuberLoss(-epsilon, epsilon, scale)
        problem = WidthProblem(
            loss,
            L2Penalty(2.0 * float(self.alpha)),
            2.0,
            survey,
            self.fit_intercept,
            price=survey.weight,
        )
        goal = Goal.of(problem, self.tol, self.max_iter)
        solver = PerspectiveNewton(goal, epsilon)
        return Setting(problem, TargetEncoder(), self._warm(problem, shape, shape), solver)

    def _take(self, setting: Setting, point: Array) -> None:
        super()._take(setting, point)
        self.scale_ = float(point[-1])


class QuantileRegressor(_SolverOfItsOwn):
    r"""Linear regression of a quantile, penalised by the sum of absolute coefficients.

    Minimises ``sum_i s_i * pinball(y_i - z_i) / sum_i s_i + alpha * |coef|_1``, with ``pinball(r) =
    quantile * r`` for positive errors and ``(quantile - 1) * r`` for others; the intercept is not
    penalised. This is scikit-learn's objective.

    Parameters
    ----------
    quantile : float
        Between 0 and 1.
    alpha : float
        Strength of the penalty, not negative.
    solver : {"auto", "newton"}
        Newton's method on the loss smoothed over a width, which shrinks until its end is the vertex
        of the linear programme that is the optimum.
    fit_intercept, tol, max_iter, warm_start, runtime, checkpoint, callbacks
        See `LinearRegression`.

    Attributes
    ----------
    coef_ : ndarray of shape (p,)
    intercept_ : float
    n_features_in_, n_iter_ : int
    gap_, n_passes_ : float
    history_, faults_ : DataFrame
        See `LogisticRegression`.

    References
    ----------
    Koenker & Bassett 1978; Madsen & Nielsen 1993 for the method.

    Examples
    --------
    >>> from dask_dml.linear_model import QuantileRegressor
    >>> X = [[0.0], [1.0], [2.0], [3.0], [4.0]]
    >>> model = QuantileRegressor(alpha=0.0).fit(X, [1.0, 3.0, 5.0, 7.0, 90.0])
    >>> model.predict([[5.0]]).round(6)
    array([11.])
    """

    def __init__(
        self,
        *,
        quantile: float = 0.5,
        alpha: float = 1.0,
        fit_intercept: bool = True,
        tol: float = 1e-8,
        solver: str = "auto",
        max_iter: int = 100,
        warm_start: bool = False,
        runtime: Runtime | None = None,
        checkpoint: Checkpoint | str | Path | None = None,
        callbacks: Sequence[Listener] = (),
    ) -> None:
        self.quantile = quantile
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
        if not (is_number(self.quantile) and 0.0 < self.quantile < 1.0):
            raise ValueError(
                f"QuantileRegressor(quantile=...) must be between 0 and 1, got {self.quantile!r}"
            )
        if not (is_number(self.alpha) and 0.0 <= self.alpha < np.inf):
            raise ValueError(
                f"QuantileRegressor(alpha=...) must be a finite number >= 0, got {self.alpha!r}"
            )
        if self.solver not in ("auto", "newton"):
            raise IncompatibleError(
                f"QuantileRegressor(solver={self.solver!r}): this solver needs a gradient, which "
                "the pinball loss does not have at its kink; use solver='newton'"
            )

    def _setting(self, survey: Survey) -> Setting:
        quantile, shape = float(self.quantile), np.empty(len(survey.moment1))
        problem = WidthProblem(
            HuberLoss(-quantile, 1.0 - quantile, _spread_of_target(survey)),
            ElasticNetPenalty(0.0, float(self.alpha) * survey.weight),
            1.0,
            survey,
            self.fit_intercept,
        )
        goal = Goal.of(problem, self.tol, self.max_iter)
        mean = survey.mean - problem.center
        mean = (np.append(mean, 1.0) if self.fit_intercept else mean) / problem.scale
        solver = SmoothingNewton(
            goal, problem.absolute_weights, quantile, survey.weight, survey.n_rows, mean
        )
        return Setting(problem, TargetEncoder(), self._warm(problem, shape, shape), solver)


def _spread_of_target(survey: Survey) -> float:
    """Standard deviation of the target, about; 1 where all are zero."""
    square = survey.target_moment2 / survey.weight
    mean = survey.target_moment1 / survey.weight
    # What little is left after cancellation is rounding.
    spread = float(np.sqrt(max(square - mean**2, 1e-12 * square)))
    return spread if spread > 0.0 else 1.0
