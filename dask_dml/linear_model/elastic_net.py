"""Least squares with a penalty that makes coefficients zero."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dask_dml.data.source import Source
from dask_dml.errors import IncompatibleError
from dask_dml.estimator import (
    Setting,
    is_number,
)
from dask_dml.faults.checkpoint import Checkpoint
from dask_dml.linear_model.least_squares import LeastSquares
from dask_dml.objective import (
    ElasticNetPenalty,
    Problem,
    SquaredLoss,
    Survey,
)
from dask_dml.objective.survey import TargetEncoder
from dask_dml.runtime import Listener, Runtime
from dask_dml.solvers.proximal import NARROW_TERMS


class _SparseLeastSquares(LeastSquares):
    """What they share: the mean of half the squared residuals, and the penalty's two parts."""

    alpha: float

    def _parts(self) -> ElasticNetPenalty:
        raise TypeError(f"{type(self).__name__} does not say its penalty")

    def _check_arguments(self) -> None:
        super()._check_arguments()
        name = type(self).__name__
        if not (is_number(self.alpha) and np.isfinite(self.alpha) and self.alpha >= 0.0):
            raise ValueError(f"{name}(alpha=...) must be a finite number >= 0, got {self.alpha!r}")
        if self.solver not in ("auto", "newton"):
            raise IncompatibleError(
                f"{name}(solver={self.solver!r}) lacks the proximal step that an L1 penalty needs: "
                "use solver='newton'"
            )

    def _sample_share(self, source: Source) -> float:
        # The proximal Newton method looks at a sample where it is.
        return 0.0

    def _is_known_by_moments(self, source: Source) -> bool:
        # What a warm start has left to do would be lost in the moments' rounding.
        n_terms = len(source.feature_names) + self.fit_intercept
        return n_terms <= NARROW_TERMS and not self._is_warm()

    def _setting(self, survey: Survey) -> Setting:
        factor = 1.0 / survey.weight
        problem = Problem(SquaredLoss(), self._parts(), factor, survey, self.fit_intercept)
        shape = np.empty(len(survey.moment1))
        return Setting(problem, TargetEncoder(), self._warm(problem, shape, shape))


class Lasso(_SparseLeastSquares):
    """Least squares penalised by the sum of absolute values.

    Minimises ``sum_i s_i * (y_i - x_i coef - intercept)^2 / (2 sum_i s_i) + alpha * |coef|_1``; the
    intercept is not penalised.

    Parameters
    ----------
    alpha : float
        Strength of the penalty, not negative.
    fit_intercept, tol, max_iter, warm_start, runtime, checkpoint, callbacks
        See `LinearRegression`.
    solver : {"auto", "newton"}
        Proximal Newton: for up to 150 columns no pass but the survey, beyond two or three more.

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
    >>> from dask_dml.linear_model import Lasso
    >>> Lasso(alpha=0.5).fit([[-1.0, 1.0], [1.0, 1.0]], [-1.0, 1.0]).coef_.round(6)
    array([0.5, 0. ])
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

    def _parts(self) -> ElasticNetPenalty:
        return ElasticNetPenalty(0.0, float(self.alpha))


class ElasticNet(_SparseLeastSquares):
    """Least squares penalised by absolute values and squares.

    Minimises ``sum_i s_i * (y_i - x_i coef - intercept)^2 / (2 sum_i s_i) + alpha * (l1_ratio *
    |coef|_1 + (1 - l1_ratio) / 2 * |coef|^2)``; the intercept is not penalised.

    Parameters
    ----------
    alpha : float
        Strength of the penalty, not negative.
    l1_ratio : float
        Share of the absolute values, from 0 to 1.
    fit_intercept, tol, max_iter, warm_start, runtime, checkpoint, callbacks
        See `LinearRegression`.
    solver : {"auto", "newton"}
        Proximal Newton: for up to 150 columns no pass but the survey, beyond two or three more.

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
    >>> from dask_dml.linear_model import ElasticNet
    >>> ElasticNet(alpha=0.5).fit([[-1.0, 1.0], [1.0, 1.0]], [-1.0, 1.0]).coef_.round(6)
    array([0.6, 0. ])
    """

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        l1_ratio: float = 0.5,
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
        self.l1_ratio = l1_ratio
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
        if not (is_number(self.l1_ratio) and 0.0 <= self.l1_ratio <= 1.0):
            raise ValueError(f"ElasticNet(l1_ratio=...) must be from 0 to 1, got {self.l1_ratio!r}")

    def _parts(self) -> ElasticNetPenalty:
        ratio, alpha = float(self.l1_ratio), float(self.alpha)
        return ElasticNetPenalty(alpha * (1.0 - ratio), alpha * ratio)
