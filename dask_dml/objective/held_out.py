"""Scores of held-out rows: what a metric sums over the rows of each fold, of many models at once.

Only metrics that are functions of sums over rows can be taken in a pass over blocks. The sums are
compiled, as those of fits are, so that no choice depends on the type of the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from dask_dml.objective.blas import single_threaded_blas
from dask_dml.objective.blocks import BlockMatrix, design_blocks, product_of_rows, score_blocks
from dask_dml.objective.folds import fold_rows
from dask_dml.objective.losses import Array, LogisticLoss, LossTerms, MultinomialLoss
from dask_dml.objective.survey import HeldOut

# scikit-learn takes probabilities to be at least this far from 0.
_LARGEST_LOG_LOSS = -float(np.log(np.finfo(np.float64).eps))


class Metric(Protocol):
    """A score as a function of sums over rows; greater is better.

    Attributes
    ----------
    n_sums : int
    """

    @property
    def n_sums(self) -> int: ...

    def sums(self, scores: Array, target: NDArray[np.generic], weight: Array) -> Array:
        """Weighted sums over rows, shape (m, n_sums), of scores (n, m, K) by m models."""
        ...

    def value(self, sums: Array) -> Array:
        """Scores of shape (...) from sums of shape (..., n_sums)."""
        ...


@dataclass(frozen=True, slots=True)
class _MeanOfRows:
    """What metrics share that are means of something over rows."""

    @property
    def n_sums(self) -> int:
        """That of the values, and of the weights."""
        return 2

    def value(self, sums: Array) -> Array:
        """The mean."""
        return np.asarray(sums[..., 0] / sums[..., 1])


@dataclass(frozen=True, slots=True)
class Accuracy(_MeanOfRows):
    """Share of rows whose class is predicted right."""

    def sums(self, scores: Array, target: NDArray[np.generic], weight: Array) -> Array:
        """Weight of such rows, and of all."""
        is_binary = scores.shape[2] == 1
        predicted = scores[..., 0] > 0.0 if is_binary else scores.argmax(axis=2)
        is_right = (predicted == target[:, None]).astype(np.float64)
        return _beside_total(_weighted(is_right, weight), weight)


@dataclass(frozen=True, slots=True)
class NegativeLogLoss(_MeanOfRows):
    """Mean logarithm of the probability of a row's own class."""

    def sums(self, scores: Array, target: NDArray[np.generic], weight: Array) -> Array:
        """Minus the log loss, and the weight."""
        losses = np.minimum(_log_loss(scores, target).loss, _LARGEST_LOG_LOSS)
        return _beside_total(-_weighted(losses.reshape(scores.shape[:2]), weight), weight)


@dataclass(frozen=True, slots=True)
class NegativeBrierScore(_MeanOfRows):
    """Minus the mean squared distance of probabilities from the truth; half of it for two classes.

    Half of it is the squared error of the probability of one of two classes.
    """

    def sums(self, scores: Array, target: NDArray[np.generic], weight: Array) -> Array:
        """Minus the squared distance, and the weight."""
        miss = (_log_loss(scores, target).residual ** 2).sum(axis=1)
        return _beside_total(-_weighted(miss.reshape(scores.shape[:2]), weight), weight)


@dataclass(frozen=True, slots=True)
class NegativeMeanSquaredError(_MeanOfRows):
    """Minus the mean squared error."""

    def sums(self, scores: Array, target: NDArray[np.generic], weight: Array) -> Array:
        """Minus the squared error, and the weight."""
        return _beside_total(-_weighted(_squared_errors(scores, target), weight), weight)


@dataclass(frozen=True, slots=True)
class NegativeSquaredErrorPerRow:
    """Minus the sum of weighted squared errors over the number of rows.

    Attributes
    ----------
    n_rows : int
    """

    n_rows: int
    n_sums: int = 1

    def sums(self, scores: Array, target: NDArray[np.generic], weight: Array) -> Array:
        """Minus the squared error."""
        return -_weighted(_squared_errors(scores, target), weight)[:, None]

    def value(self, sums: Array) -> Array:
        """The sum over the rows, whatever they weigh."""
        return np.asarray(sums[..., 0] / self.n_rows)


@dataclass(frozen=True, slots=True)
class Determination:
    """Coefficient of determination, R2.

    Attributes
    ----------
    center : float
        A number near the mean of the target, so that its variance does not cancel.
    """

    center: float
    n_sums: int = 4

    def sums(self, scores: Array, target: NDArray[np.generic], weight: Array) -> Array:
        """Squared error, target and its square, both centred, and weight."""
        away = _numbers(target) - self.center
        errors = _weighted(_squared_errors(scores, target), weight)
        powers = np.column_stack([away, away * away, np.ones_like(away)])
        of_target = _weighted(powers, weight)
        return np.column_stack([errors, np.tile(of_target, (len(errors), 1))])

    def value(self, sums: Array) -> Array:
        """1 minus the residual over the total sum of squares; of a constant target, 1 or 0."""
        residual, first, second, weight = np.moveaxis(sums, -1, 0)
        total = second - first**2 / weight
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = 1.0 - residual / total
        return np.where(total > 0.0, ratio, np.where(residual > 0.0, 0.0, 1.0))


def _weighted(values: Array, weight: Array) -> Array:
    """Weighted sums of columns (n, m), in row order."""
    from dask_dml.objective.kernels import ColumnSums

    sums = ColumnSums(values.shape[1])
    sums.add(np.ascontiguousarray(values), np.require(weight, np.float64, ["C"]))
    return sums.moment1


def _beside_total(sums: Array, weight: Array) -> Array:
    total = _weighted(np.ones((len(weight), 1)), weight)
    return np.column_stack([sums, np.tile(total, len(sums))])


def _log_loss(scores: Array, target: NDArray[np.generic]) -> LossTerms:
    """The log loss of each row by each model, flat."""
    from dask_dml.objective.kernels import row_terms

    n_models, n_outputs = scores.shape[1:]
    loss = LogisticLoss() if n_outputs == 1 else MultinomialLoss(n_outputs)
    return row_terms(loss)(scores.reshape(-1, n_outputs), np.repeat(target, n_models), 1)


def _squared_errors(scores: Array, target: NDArray[np.generic]) -> Array:
    return np.asarray((scores[..., 0] - _numbers(target)[:, None]) ** 2)


def _numbers(target: NDArray[np.generic]) -> Array:
    return np.asarray(target, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class HeldOutSums:
    """What a metric sums, of each fold and model: values of shape (n_folds, n_models, n_sums)."""

    values: Array

    def __add__(self, other: Self) -> Self:
        return type(self)(self.values + other.values)

    @property
    def nbytes(self) -> int:
        """Bytes of its array."""
        return self.values.nbytes


@dataclass(frozen=True, slots=True)
class HeldOutRequest:
    """Asks every block for a metric's sums of held-out rows, by the models of their fold.

    Attributes
    ----------
    metric : Metric
    theta : ndarray of shape (n_folds, n_models, K, q)
        Coefficients, and the intercept last when there is one, for centred columns.
    center : ndarray of shape (p,)
    """

    metric: Metric
    theta: Array
    center: Array

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return self.theta.nbytes + self.center.nbytes

    def of_block(
        self,
        X: BlockMatrix,
        target: NDArray[np.generic],
        weight: Array | None,
        held_out: HeldOut,
    ) -> HeldOutSums:
        """Sums of one block; the training weights play no part."""
        n_folds, n_models, n_outputs, n_terms = self.theta.shape
        values = np.zeros((n_folds, n_models, self.metric.n_sums))
        with single_threaded_blas():
            for k, rows in fold_rows(held_out.fold):
                models = self.theta[k].reshape(-1, n_terms)
                y = target[rows]
                w = np.ones(len(y)) if held_out.weight is None else held_out.weight[rows]
                for start, flat in score_blocks(X[rows], models, self.center):
                    part = slice(start, start + len(flat))
                    scores = flat.reshape(len(flat), n_models, n_outputs)
                    values[k] += self.metric.sums(scores, y[part], w[part])
        return HeldOutSums(values)


@dataclass(frozen=True, slots=True)
class LeaveOneOutRequest:
    r"""Asks every block for a metric's sums when each row is predicted without having been seen.

    Least squares with a squared norm as penalty need not be fitted for that: without row i, its
    residual r is :math:`r / (1 - h)`, with the leverage
    :math:`h = s x^T (X^T S X + \alpha I)^{-1} x` (the PRESS statistic of Allen 1974; Golub, Heath
    & Wahba 1979). In the eigenvectors of the matrix all strengths have theirs at once.

    Attributes
    ----------
    metric : Metric
    center : ndarray of shape (p,)
        Means of the columns, or zeros without an intercept.
    basis : ndarray of shape (p, p)
        Eigenvectors of the centred columns' Gram matrix.
    inverse : ndarray of shape (n_models, p)
        Eigenvalues of the inverses, with each penalty.
    coefficients : ndarray of shape (n_models, p)
        In the basis.
    intercepts : ndarray of shape (n_models,)
        Of centred columns.
    least_leverage : float
        That of the intercept for a row of weight 1; 0 without one.
    """

    metric: Metric
    center: Array
    basis: Array
    inverse: Array
    coefficients: Array
    intercepts: Array
    least_leverage: float

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return self.basis.nbytes + 2 * self.inverse.nbytes + self.center.nbytes

    def of_block(
        self,
        X: BlockMatrix,
        target: NDArray[np.generic],
        weight: Array | None,
        held_out: HeldOut,
    ) -> HeldOutSums:
        """Sums of one block, whose folds play no part."""
        n_models = len(self.intercepts)
        values = np.zeros((1, n_models, self.metric.n_sums))
        y, start = _numbers(target), 0
        with single_threaded_blas(), np.errstate(divide="ignore", over="ignore"):
            for design in design_blocks(X, X.shape[1], self.center):
                part = slice(start, start + len(design))
                w = np.ones(len(design)) if weight is None else weight[part]
                rotated = product_of_rows(design, self.basis)
                predicted = product_of_rows(rotated, self.coefficients.T) + self.intercepts
                residual = y[part, None] - predicted
                rotated *= rotated
                leverages = product_of_rows(rotated, self.inverse.T) + self.least_leverage
                leverage = w[:, None] * leverages
                unseen = y[part, None] - residual / (1.0 - leverage)
                values[0] += self.metric.sums(unseen[..., None], y[part], w)
                start = part.stop
        return HeldOutSums(values)
