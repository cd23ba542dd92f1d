"""What the linear classifiers share: labels, weights of classes, scores."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from dask.base import is_dask_collection
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from dask_dml.data.source import ArraySource
from dask_dml.errors import DataError
from dask_dml.estimator import (
    LinearEstimator,
    Setting,
    as_dask,
    is_dataset,
)
from dask_dml.linear_model.scoring import plain_scores, scored
from dask_dml.objective import (
    Survey,
    TargetKind,
)
from dask_dml.objective.losses import Array


class LinearClassifier(ClassifierMixin, LinearEstimator):
    """Base of the linear classifiers."""

    _target_kind = TargetKind.CLASSES

    class_weight: Any

    def _check_arguments(self) -> None:
        super()._check_arguments()
        named = isinstance(self.class_weight, str) and self.class_weight == "balanced"
        if not (self.class_weight is None or named or isinstance(self.class_weight, dict)):
            raise ValueError(
                f"{type(self).__name__}(class_weight=...) must be a dict, 'balanced' or None, got "
                f"{self.class_weight!r}"
            )

    def _source(self, X: Any, y: Any, sample_weight: Any) -> Any:
        source, names = super()._source(X, y, sample_weight)
        if isinstance(source, ArraySource):
            check_classification_targets(source.y)
        return source, names

    def _weighted(self, survey: Survey) -> tuple[Survey, Array | None]:
        """The survey with the classes' weights, and those."""
        classes = survey.classes
        factors = self._class_factors(survey)
        if factors is not None:
            survey = _reweighted(survey, factors)
        present = classes[survey.class_weight > 0.0].tolist()
        if len(present) < 2:
            raise DataError(
                f"{type(self).__name__} needs samples of at least 2 classes in y with a positive "
                f"weight, but the data contains only one class: found {present} of "
                f"{classes[:10].tolist()}"
            )
        return survey, factors

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
                f"{type(self).__name__}(class_weight=...) names classes {unknown} that y does not "
                f"have; it has {survey.classes[:10].tolist()}"
            )
        factors = np.array([float(self.class_weight.get(label, 1.0)) for label in survey.classes])
        if not np.all(np.isfinite(factors) & (factors >= 0.0)):
            raise ValueError(
                f"{type(self).__name__}(class_weight=...) must have finite weights >= 0, got "
                f"{self.class_weight!r}"
            )
        return factors

    def _take(self, setting: Setting, point: Array) -> None:
        coef, intercept = setting.problem.coefficients(point)
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
        return self._map_scores(X, plain_scores, np.float64)

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
        X, y, sample_weight = scored(X, y, sample_weight)
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


def _labels(classes: NDArray[Any], scores: Array) -> NDArray[Any]:
    if scores.shape[1] == 1:
        return np.asarray(classes[(scores[:, 0] > 0.0).astype(np.intp)])
    return np.asarray(classes[scores.argmax(axis=1)])
