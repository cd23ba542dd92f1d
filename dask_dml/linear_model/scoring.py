"""What predictions of all estimators share."""

from __future__ import annotations

from typing import Any

from dask_dml.estimator import (
    as_dataset,
    is_dataset,
)
from dask_dml.objective.losses import Array


def plain_scores(scores: Array) -> Array:
    """Scores of shape (n,) where there is one a row, else (n, K)."""
    return scores[:, 0] if scores.shape[1] == 1 else scores


def scored(X: Any, y: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
    """Features, target and weights to score on; a dataset brings its own."""
    if is_dataset(X):
        X = as_dataset(X)
        y = X.y if y is None else y
        sample_weight = X.sample_weight if sample_weight is None else sample_weight
    return X, y, sample_weight
