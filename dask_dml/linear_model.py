"""Linear models: scikit-learn's names and objectives, on data of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from dask.base import is_dask_collection
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from dask_dml.data.source import ArraySource
from dask_dml.errors import DataError, IncompatibleError, StoreFormatError
from dask_dml.estimator import (
    MODEL_FORMAT,
    LinearEstimator,
    Setting,
    as_dask,
    as_dataset,
    is_dataset,
    is_number,
    plain_value,
)
from dask_dml.faults.checkpoint import Checkpoint
from dask_dml.objective import (
    L2Penalty,
    LogisticLoss,
    MultinomialLoss,
    Problem,
    SquaredLoss,
    Survey,
    TargetKind,
)
from dask_dml.objective.losses import Array
from dask_dml.objective.survey import TargetEncoder
from dask_dml.runtime import Listener, Runtime

__all__ = ["LinearRegression", "LogisticRegression", "Ridge", "load_model"]


class LogisticRegression(ClassifierMixin, LinearEstimator):
    r"""Logistic regression of two or more classes, penalised by the squared norm.

    Minimises ``C * sum_i s_i * log_loss_i + 0.5 * |coef|^2``, with the weights s_i of the rows
    times those of their classes; the intercept is not penalised. This is scikit-learn's objective.

    Parameters
    ----------
    C : float
        Inverse strength of the penalty, positive; ``inf`` for none.
    l1_ratio : float
        Share of the L1 norm in the penalty. Only 0 so far.
    tol : float
        Relative gap to reach: (objective - optimum) / objective.
    fit_intercept : bool
    class_weight : dict, "balanced" or None
        Factors on the rows of each class; "balanced" makes all classes weigh the same.
    solver : {"auto", "newton", "lbfgs", "gd"}
        "auto" is Newton's method, or L-BFGS when there are many coefficients.
    max_iter : int
        Most iterations.
    warm_start : bool
        Start from the coefficients of the last fit, unless there is a checkpoint to go on from.
    runtime : Runtime or None
        Where to run; None is the current Dask client if there is one, otherwise this process.
    checkpoint : Checkpoint, path, URL or None
        Where to keep checkpoints; a fit that was interrupted goes on from there when it is called
        again in the same way, and ends with the bits of one that was not.
    callbacks : sequence of callable
        Each is called with every event of the fit.

    Attributes
    ----------
    coef_ : ndarray of shape (1, p), or (K, p) for K > 2 classes
    intercept_ : ndarray of shape (1,) or (K,)
    classes_ : ndarray of shape (K,)
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (p,)
        Only where the columns have names.
    n_iter_ : int
    gap_ : float
        Upper bound of (objective - optimum) / objective; nan where none can be given.
    n_passes_ : float
        Passes over the full data.
    history_ : DataFrame
        A row a round.
    faults_ : DataFrame
        A row an event of the workers.

    References
    ----------
    Newton's method with the bounds of generalised self-concordant functions: Bach 2010,
    "Self-concordant analysis for logistic regression"; Sun & Tran-Dinh 2019.

    Examples
    --------
    >>> from dask_dml.linear_model import LogisticRegression
    >>> model = LogisticRegression().fit([[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1])
    >>> model.predict([[0.5], [2.5]])
    array([0, 1])
    """

    _target_kind = TargetKind.CLASSES

    def __init__(
        self,
        C: float = 1.0,
        *,
        l1_ratio: float = 0.0,
        tol: float = 1e-8,
        fit_intercept: bool = True,
        class_weight: Any = None,
        solver: str = "auto",
        max_iter: int = 100,
        warm_start: bool = False,
        runtime: Runtime | None = None,
        checkpoint: Checkpoint | str | Path | None = None,
        callbacks: Sequence[Listener] = (),
    ) -> None:
        self.C = C
        self.l1_ratio = l1_ratio
        self.tol = tol
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.solver = solver
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.runtime = runtime
        self.checkpoint = checkpoint
        self.callbacks = callbacks

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if not (is_number(self.C) and self.C > 0.0):
            raise ValueError(f"LogisticRegression(C=...) must be a positive number, got {self.C!r}")
        if self.l1_ratio:
            raise IncompatibleError(
                f"LogisticRegression(l1_ratio={self.l1_ratio!r}, solver={self.solver!r}): no "
                "solver has the proximal step that an L1 penalty needs; use l1_ratio=0"
            )
        named = isinstance(self.class_weight, str) and self.class_weight == "balanced"
        if not (self.class_weight is None or named or isinstance(self.class_weight, dict)):
            raise ValueError(
                "LogisticRegression(class_weight=...) must be a dict, 'balanced' or None, got "
                f"{self.class_weight!r}"
            )

    def _source(self, X: Any, y: Any, sample_weight: Any) -> Any:
        source, names = super()._source(X, y, sample_weight)
        if isinstance(source, ArraySource):
            check_classification_targets(source.y)
        return source, names

    def _setting(self, survey: Survey) -> Setting:
        classes = survey.classes
        n_classes = len(classes)
        loss = LogisticLoss() if n_classes == 2 else MultinomialLoss(n_classes)
        factors = self._class_factors(survey)
        if factors is not None:
            survey = _reweighted(survey, factors)
        present = classes[survey.class_weight > 0.0].tolist()
        if len(present) < 2:
            raise DataError(
                "LogisticRegression needs samples of at least 2 classes in y with a positive "
                f"weight, but the data contains only one class: found {present} of "
                f"{classes[:10].tolist()}"
            )
        unpenalised = np.isinf(self.C)
        problem = Problem(
            loss,
            L2Penalty(0.0 if unpenalised else 1.0),
            1.0 if unpenalised else float(self.C),
            survey,
            self.fit_intercept,
        )
        shape = np.empty((loss.n_outputs, len(survey.moment1)))
        start = self._warm(problem, shape, shape[:, 0])
        return Setting(problem, TargetEncoder(classes, factors), start)

    def _class_factors(self, survey: Survey) -> Array | None:
        if self.class_weight is None:
            return None
        if isinstance(self.class_weight, str):
            total = survey.class_weight.sum()
            share = np.where(survey.class_weight > 0.0, survey.class_weight, np.inf)
            return np.asarray(total / (len(survey.classes) * share))
        unknown = [label for label in self.class_weight if label not in survey.classes]
        if unknown:
            raise ValueError(
                f"LogisticRegression(class_weight=...) names classes {unknown} that y does not "
                f"have; it has {list(survey.classes[:10])}"
            )
        factors = np.array([float(self.class_weight.get(label, 1.0)) for label in survey.classes])
        if not np.all(np.isfinite(factors) & (factors >= 0.0)):
            raise ValueError(
                "LogisticRegression(class_weight=...) must have finite weights >= 0, got "
                f"{self.class_weight!r}"
            )
        return factors

    def _take(self, setting: Setting, coef: Array, intercept: Array) -> None:
        self.classes_ = np.asarray(setting.encoder.classes)
        self.coef_ = coef
        self.intercept_ = intercept

    def decision_function(self, X: Any) -> Any:
        """Scores of the rows.

        Parameters
        ----------
        X : array-like, sparse matrix, dask array, dask DataFrame, Dataset, path or URL
            Shape (n, p).

        Returns
        -------
        ndarray or dask array of shape (n,), or (n, K) for K > 2 classes
        """
        return self._map_scores(X, _scores, np.float64)

    def predict_proba(self, X: Any) -> Any:
        """Probabilities of the classes, shape (n, K), in the order of `classes_`."""
        return self._map_scores(X, self._loss().probabilities, np.float64)

    def predict_log_proba(self, X: Any) -> Any:
        """Logarithms of the probabilities, shape (n, K)."""
        return self._map_scores(X, self._loss().log_probabilities, np.float64)

    def predict(self, X: Any) -> Any:
        """Labels of the rows, shape (n,): lazy for dask input, NumPy otherwise."""
        return self._map_scores(X, partial(_labels, self._fitted_classes()), self.classes_.dtype)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Share of rows that are predicted right; a lazy number for dask input.

        Parameters
        ----------
        X : see `predict`
        y : array-like or dask array of shape (n,); left out with a dataset
        sample_weight : array-like or dask array of shape (n,), optional
        """
        X, y, sample_weight = _scored(X, y, sample_weight)
        if not (is_dataset(X) or is_dask_collection(X)):
            return super().score(X, y, sample_weight)
        predicted = self.predict(X)
        hit = (predicted == as_dask(y, predicted.chunks)).astype(np.float64)
        if sample_weight is None:
            return hit.mean()
        weight = as_dask(sample_weight, predicted.chunks)
        return (hit * weight).sum() / weight.sum()

    def _fitted_classes(self) -> NDArray[Any]:
        check_is_fitted(self)
        return np.asarray(self.classes_)

    def _loss(self) -> LogisticLoss | MultinomialLoss:
        n_classes = len(self._fitted_classes())
        return LogisticLoss() if n_classes == 2 else MultinomialLoss(n_classes)


class _LeastSquares(RegressorMixin, LinearEstimator):
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

    def _take(self, setting: Setting, coef: Array, intercept: Array) -> None:
        self.coef_ = coef[0]
        self.intercept_ = float(intercept[0])

    def predict(self, X: Any) -> Any:
        """Predicted values of shape (n,): lazy for dask input, NumPy otherwise.

        Parameters
        ----------
        X : array-like, sparse matrix, dask array, dask DataFrame, Dataset, path or URL
            Shape (n, p).
        """
        return self._map_scores(X, _scores, np.float64)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Coefficient of determination R2; a lazy number for dask input.

        Parameters
        ----------
        X : see `predict`
        y : array-like or dask array of shape (n,); left out with a dataset
        sample_weight : array-like or dask array of shape (n,), optional
        """
        X, y, sample_weight = _scored(X, y, sample_weight)
        if not (is_dataset(X) or is_dask_collection(X)):
            return super().score(X, y, sample_weight)
        predicted = self.predict(X)
        y = as_dask(y, predicted.chunks)
        weight = da.ones_like(y, dtype=np.float64) if sample_weight is None else sample_weight
        weight = as_dask(weight, predicted.chunks)
        mean = (weight * y).sum() / weight.sum()
        left = (weight * (y - predicted) ** 2).sum()
        return 1.0 - left / (weight * (y - mean) ** 2).sum()


class LinearRegression(_LeastSquares):
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


class Ridge(_LeastSquares):
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


ESTIMATORS: dict[str, type[LinearEstimator]] = {
    cls.__name__: cls for cls in (LogisticRegression, LinearRegression, Ridge)
}


def load_model(store: Any) -> Any:
    """Read a model that an estimator's `save` wrote.

    Parameters
    ----------
    store : str, Path or zarr store

    Returns
    -------
    estimator
        Fitted, of the class that was saved; its runtime, checkpoint and callbacks are the defaults.

    Raises
    ------
    StoreFormatError
        If there is no such model, or it is of a newer format.
    """
    from dask_dml.data.store import load_arrays

    arrays, attributes = load_arrays(store)
    name, version = attributes.get("estimator"), attributes.get("format")
    if attributes.get("kind") != "model" or name not in ESTIMATORS or version != MODEL_FORMAT:
        raise StoreFormatError(
            f"{store} does not hold a model that this version reads: found kind "
            f"{attributes.get('kind')!r}, estimator {name!r}, format {version!r}; expected "
            f"'model', one of {', '.join(ESTIMATORS)}, and {MODEL_FORMAT}"
        )
    parameters = {key: plain_value(value) for key, value in attributes["parameters"].items()}
    return ESTIMATORS[name](**parameters)._restore(arrays, attributes)


def _reweighted(survey: Survey, factors: Array) -> Survey:
    """The survey with the factors on classes in its weights; the columns' moments are kept."""
    class_weight = survey.class_weight * factors
    weight = float(class_weight.sum())
    ratio = weight / survey.weight
    return replace(
        survey,
        class_weight=class_weight,
        weight=weight,
        moment1=survey.moment1 * ratio,
        moment2=survey.moment2 * ratio,
    )


def _scores(scores: Array) -> Array:
    return scores[:, 0] if scores.shape[1] == 1 else scores


def _labels(classes: NDArray[Any], scores: Array) -> NDArray[Any]:
    if scores.shape[1] == 1:
        return np.asarray(classes[(scores[:, 0] > 0.0).astype(np.intp)])
    return np.asarray(classes[scores.argmax(axis=1)])


def _scored(X: Any, y: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
    """Features, target and weights to score on; a dataset brings its own."""
    if is_dataset(X):
        X = as_dataset(X)
        y = X.y if y is None else y
        sample_weight = X.sample_weight if sample_weight is None else sample_weight
    return X, y, sample_weight
