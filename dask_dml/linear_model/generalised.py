"""Generalised linear models: Poisson, gamma and Tweedie regression."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from dask.base import is_dask_collection
from sklearn.base import RegressorMixin

from dask_dml.errors import DataError, IncompatibleError
from dask_dml.estimator import LinearEstimator, Setting, as_dask, is_dataset, is_number
from dask_dml.faults.checkpoint import Checkpoint
from dask_dml.linear_model.scoring import plain_scores, scored
from dask_dml.objective import L2Penalty, Problem, SquaredLoss, Survey, TargetKind
from dask_dml.objective.losses import Array, GammaLoss, PoissonLoss, TweedieLoss
from dask_dml.objective.survey import TargetEncoder
from dask_dml.runtime import Listener, Runtime
from dask_dml.solvers.escape import NO_OPTIMUM

Deviance = PoissonLoss | GammaLoss | TweedieLoss | SquaredLoss


class _GeneralisedLinear(RegressorMixin, LinearEstimator):
    """What these regressors share: the mean of half the unit deviances, penalised."""

    _target_kind = TargetKind.NUMBERS
    _advice: ClassVar[dict[str, str]] = {
        NO_OPTIMUM: "rows that a plane separates from the others all have a target of 0, for which "
        "no finite coefficients are best; set alpha > 0, or drop those rows"
    }

    alpha: float

    def _deviance(self) -> Deviance:
        raise TypeError(f"{type(self).__name__} does not say its deviance")

    def _check_arguments(self) -> None:
        super()._check_arguments()
        name = type(self).__name__
        if not (is_number(self.alpha) and np.isfinite(self.alpha) and self.alpha >= 0.0):
            raise ValueError(f"{name}(alpha=...) must be a finite number >= 0, got {self.alpha!r}")

    def _setting(self, survey: Survey) -> Setting:
        loss = self._deviance()
        self._check_target(loss, survey)
        penalty = L2Penalty(float(self.alpha))
        problem = Problem(loss, penalty, 1.0 / survey.weight, survey, self.fit_intercept)
        shape = np.empty(len(survey.moment1))
        return Setting(problem, TargetEncoder(), self._warm(problem, shape, shape))

    def _check_target(self, loss: Deviance, survey: Survey) -> None:
        if isinstance(loss, SquaredLoss):
            return
        lowest, block, row = survey.lowest_target
        is_strict = isinstance(loss, GammaLoss)
        if lowest < 0.0 or (is_strict and lowest == 0.0):
            raise DataError(
                f"Some value(s) of y are out of the valid range of {type(self).__name__}: "
                f"y is {lowest:g} in block {block}, row {row} of the block, and must be "
                f"{'positive' if is_strict else 'at least 0'}"
            )
        if survey.target_moment1 <= 0.0:
            raise DataError(
                f"y is 0 in every row that has a weight: the optimum of {type(self).__name__} is "
                "at an intercept of minus infinity; there is nothing to fit"
            )

    def _take(self, setting: Setting, point: Array) -> None:
        coef, intercept = setting.problem.coefficients(point)
        self.coef_ = coef[0]
        self.intercept_ = float(intercept[0])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.positive_only = not isinstance(self._deviance(), SquaredLoss)
        return tags

    def predict(self, X: Any) -> Any:
        """Expected values of shape (n,): lazy for dask input, NumPy otherwise.

        Parameters
        ----------
        X : array-like, sparse matrix, dask array, dask DataFrame, Dataset, path or URL
            Shape (n, p).
        """
        is_linear = isinstance(self._deviance(), SquaredLoss)
        return self._map_scores(X, plain_scores if is_linear else _exponentials, np.float64)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """D2, the share of the deviance that is explained; a lazy number for dask input.

        Parameters
        ----------
        X : see `predict`
        y : array-like or dask array of shape (n,); left out with a dataset
        sample_weight : array-like or dask array of shape (n,), optional
        """
        X, y, sample_weight = scored(X, y, sample_weight)
        predicted = self.predict(X)
        is_lazy = is_dataset(X) or is_dask_collection(X)
        if is_lazy:
            y = as_dask(y, predicted.chunks)
        else:
            y = np.asarray(y, dtype=np.float64)
        if sample_weight is None:
            weight = np.ones_like(predicted)
        else:
            weight = as_dask(sample_weight, predicted.chunks) if is_lazy else sample_weight
        loss = self._deviance()
        mean = (weight * y).sum() / weight.sum()
        left = (weight * loss.half_deviance(y, predicted)).sum()
        whole = (weight * loss.half_deviance(y, mean + np.zeros_like(predicted))).sum()
        return 1.0 - left / whole


def _exponentials(scores: Array) -> Array:
    return np.asarray(np.exp(scores[:, 0]))


class PoissonRegressor(_GeneralisedLinear):
    r"""Poisson regression with a logarithmic link, penalised by the squared norm.

    Minimises ``sum_i s_i * (exp(z_i) - y_i z_i + y_i log(y_i) - y_i) / sum_i s_i + alpha / 2 *
    |coef|^2`` with scores ``z_i = x_i coef + intercept``; the intercept is not penalised.

    Parameters
    ----------
    alpha : float
        Strength of the penalty, not negative.
    fit_intercept, solver, max_iter, warm_start, runtime, checkpoint, callbacks
        See `LogisticRegression`.
    tol : float
        Relative gap to reach: (objective - optimum) / objective.

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
    >>> from dask_dml.linear_model import PoissonRegressor
    >>> model = PoissonRegressor(alpha=0.0).fit([[0.0], [1.0]], [1.0, 2.0])
    >>> model.predict([[0.0], [1.0]]).round(6)
    array([1., 2.])
    """

    def __init__(
        self,
        *,
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
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.solver = solver
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.runtime = runtime
        self.checkpoint = checkpoint
        self.callbacks = callbacks

    def _deviance(self) -> Deviance:
        return PoissonLoss()


class GammaRegressor(_GeneralisedLinear):
    r"""Gamma regression with a logarithmic link, penalised by the squared norm.

    Minimises ``sum_i s_i * (z_i + y_i exp(-z_i) - log(y_i) - 1) / sum_i s_i + alpha / 2 *
    |coef|^2`` with scores ``z_i = x_i coef + intercept``; the intercept is not penalised.

    Parameters
    ----------
    alpha : float
        Strength of the penalty, not negative.
    fit_intercept, solver, max_iter, warm_start, runtime, checkpoint, callbacks
        See `LogisticRegression`.
    tol : float
        Relative gap to reach: (objective - optimum) / objective.

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
    >>> from dask_dml.linear_model import GammaRegressor
    >>> model = GammaRegressor(alpha=0.0).fit([[0.0], [1.0]], [1.0, 2.0])
    >>> model.predict([[0.0], [1.0]]).round(6)
    array([1., 2.])
    """

    def __init__(
        self,
        *,
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
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.solver = solver
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.runtime = runtime
        self.checkpoint = checkpoint
        self.callbacks = callbacks

    def _deviance(self) -> Deviance:
        return GammaLoss()


class TweedieRegressor(_GeneralisedLinear):
    r"""Regression of a Tweedie distribution, penalised by the squared norm.

    Minimises half the mean unit deviance plus ``alpha / 2 * |coef|^2``; the intercept is not
    penalised.

    Parameters
    ----------
    power : float
        Of the mean to which the variance is proportional: 0 (normal), 1 (Poisson), between 1 and
        2 (compound Poisson-gamma), or 2 (gamma). Beyond 2 the objective is not convex.
    link : {"auto", "identity", "log"}
        "auto" is the identity for power 0 and the logarithm otherwise; no other link of these
        powers gives a convex objective.
    alpha : float
        Strength of the penalty, not negative.
    fit_intercept, solver, max_iter, warm_start, runtime, checkpoint, callbacks
        See `LogisticRegression`.
    tol : float
        Relative gap to reach: (objective - optimum) / objective.

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
    >>> from dask_dml.linear_model import TweedieRegressor
    >>> model = TweedieRegressor(power=1.5, alpha=0.0).fit([[0.0], [1.0]], [1.0, 2.0])
    >>> model.predict([[0.0], [1.0]]).round(6)
    array([1., 2.])
    """

    def __init__(
        self,
        *,
        power: float = 0.0,
        link: str = "auto",
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
        self.power = power
        self.link = link
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
        if not is_number(self.power):
            raise ValueError(f"TweedieRegressor(power=...) must be a number, got {self.power!r}")
        if not (self.power == 0.0 or 1.0 <= self.power <= 2.0):
            raise IncompatibleError(
                f"TweedieRegressor(power={self.power!r}): no solver minimises an objective that is "
                "not convex, or a distribution that does not exist; use 0, or 1 to 2"
            )
        links = ("auto", "identity") if self.power == 0.0 else ("auto", "log")
        if self.link not in links:
            raise IncompatibleError(
                f"TweedieRegressor(power={self.power!r}, link={self.link!r}) do not go together: "
                f"use link={' or '.join(map(repr, links))}"
            )

    def _deviance(self) -> Deviance:
        return _of_power(float(self.power))


def _of_power(power: float) -> Deviance:
    if power == 0.0:
        return SquaredLoss()
    if power == 1.0:
        return PoissonLoss()
    return GammaLoss() if power == 2.0 else TweedieLoss(power)
