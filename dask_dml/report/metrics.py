"""How good predictions are, added up block by block."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score

from dask_dml.errors import DataError

Array = NDArray[np.float64]


class ClassificationMetrics:
    """Log loss and accuracy of a classifier and, for two classes, ROC AUC.

    Sums are kept, and for two classes also the score and class of each row, which the exact AUC
    needs: 9 bytes a row, 17 with weights, and three times that while it is computed.

    Parameters
    ----------
    classes : ndarray of shape (K,)
        Sorted labels, those of the model.
    """

    def __init__(self, classes: NDArray[Any]) -> None:
        self._classes = classes
        self._n_rows = 0
        self._weight = 0.0
        self._loss = 0.0
        self._hits = 0.0
        self._ranked: list[tuple[NDArray[np.bool_], Array, Array | None]] = []

    def add(self, y: NDArray[Any], scores: Array, sample_weight: Array | None = None) -> None:
        """Add a block.

        Parameters
        ----------
        y : ndarray of shape (n,)
            True labels.
        scores : ndarray of shape (n,) for two classes, else (n, K)
            What `decision_function` gives.
        sample_weight : ndarray of shape (n,), optional

        Raises
        ------
        DataError
            If y has labels that the model does not know.
        """
        codes = np.searchsorted(self._classes, y)
        known = self._classes[np.minimum(codes, len(self._classes) - 1)] == y
        if not known.all():
            raise DataError(
                f"y holds {sorted(set(y[~known].tolist()))[:5]}, which the model does not know: "
                f"it was fitted on the classes {self._classes[:10].tolist()}"
            )
        if scores.ndim == 1:
            losses = np.logaddexp(0.0, np.where(codes == 1, -scores, scores))
            hits = (scores > 0.0) == (codes == 1)
            self._ranked.append((codes == 1, scores, sample_weight))
        else:
            losses = logsumexp(scores, axis=1) - scores[np.arange(len(y)), codes]
            hits = scores.argmax(axis=1) == codes
        weight = np.ones(len(y)) if sample_weight is None else sample_weight
        self._n_rows += len(y)
        self._weight += float(weight.sum())
        self._loss += float(weight @ losses)
        self._hits += float(weight @ hits)

    def result(self) -> dict[str, float]:
        """Return n_rows, log_loss, accuracy and, for two classes, roc_auc.

        The AUC is nan where all rows have one class.
        """
        weight = self._weight or np.nan
        values: dict[str, float] = {
            "n_rows": self._n_rows,
            "log_loss": self._loss / weight,
            "accuracy": self._hits / weight,
        }
        if len(self._classes) == 2:
            values["roc_auc"] = self._roc_auc()
        return values

    def _roc_auc(self) -> float:
        if not self._ranked:
            return float("nan")
        y = np.concatenate([part[0] for part in self._ranked])
        if y.all() or not y.any():
            return float("nan")
        scores = np.concatenate([part[1] for part in self._ranked])
        weights = [part[2] for part in self._ranked if part[2] is not None]
        weight = np.concatenate(weights) if weights else None
        return float(roc_auc_score(y, scores, sample_weight=weight))


class RegressionMetrics:
    """R2, root mean squared error and mean absolute error of a regressor, from sums."""

    def __init__(self) -> None:
        self._n_rows = 0
        self._weight = 0.0
        self._mean = 0.0
        self._spread = 0.0  # sum of squares about the mean
        self._squared = 0.0
        self._absolute = 0.0

    def add(self, y: NDArray[Any], predicted: Array, sample_weight: Array | None = None) -> None:
        """Add a block.

        Parameters
        ----------
        y, predicted : ndarray of shape (n,)
        sample_weight : ndarray of shape (n,), optional
        """
        y = np.asarray(y, dtype=np.float64)
        weight = np.ones(len(y)) if sample_weight is None else sample_weight
        total = float(weight.sum())
        self._n_rows += len(y)
        if total == 0.0:
            return
        mean = float(weight @ y) / total
        apart = mean - self._mean
        both = self._weight + total
        # Merged like Chan, Golub and LeVeque (1979), which cancels nothing.
        self._spread += float(weight @ (y - mean) ** 2) + apart**2 * self._weight * total / both
        self._mean += apart * total / both
        self._weight = both
        self._squared += float(weight @ (y - predicted) ** 2)
        self._absolute += float(weight @ np.abs(y - predicted))

    def result(self) -> dict[str, float]:
        """Return n_rows, r2, rmse and mae; r2 is nan where y is constant."""
        weight = self._weight or np.nan
        return {
            "n_rows": self._n_rows,
            "r2": 1.0 - self._squared / (self._spread or np.nan),
            "rmse": float(np.sqrt(self._squared / weight)),
            "mae": self._absolute / weight,
        }
