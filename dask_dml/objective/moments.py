"""Means and second moments of columns and target: all that least squares has to know of the rows.

They are about the means, so that nothing cancels when columns are far from zero for their spread,
and two of them add up as Chan, Golub & LeVeque (1983) say. Sums of squared residuals at any
coefficients follow without another pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dask_dml.objective.blocks import BlockMatrix, Request, Statistics, block_statistics
from dask_dml.objective.losses import Array, SquaredLoss

# The first rows of a block, about whose means its sums are taken.
_PILOT_ROWS = 256


@dataclass(frozen=True, slots=True)
class Moments:
    """Weighted moments of the columns and, last, the target; they add up.

    Attributes
    ----------
    n_rows : int
    weight : float
        Sum of the weights.
    mean : ndarray of shape (p + 1,)
    scatter : ndarray of shape (p + 1, p + 1)
        ``sum_i s_i (x_i - mean) (x_i - mean)^T``.
    """

    n_rows: int
    weight: float
    mean: Array
    scatter: Array

    def __add__(self, other: Self) -> Self:
        weight = self.weight + other.weight
        share = other.weight / weight if weight > 0.0 else 0.0
        apart = other.mean - self.mean
        between = (self.weight * share) * (apart[:, None] * apart)
        return type(self)(
            self.n_rows + other.n_rows,
            weight,
            self.mean + share * apart,
            (self.scatter + other.scatter) + between,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return self.mean.nbytes + self.scatter.nbytes

    def statistics(self, request: Request) -> Statistics:
        """What the blocks would give together for a request of the squared loss.

        The loss has an error of about 1e-16 times the sum of squares of target and predictions, so
        digits are lost where residuals are very small beside both.

        Parameters
        ----------
        request : Request
            Of `SquaredLoss` and all rows.
        """
        n_columns, n_terms = len(request.center), request.theta.shape[1]
        coef, constant = request.theta[0, :n_columns], request.theta[0, n_columns:].sum()
        apart = self.mean[:-1] - request.center
        mean_residual = float(coef @ apart + constant - self.mean[-1])
        along = self.scatter[:, :-1] @ coef - self.scatter[:, -1]
        square = float(along[:-1] @ coef - along[-1])
        # A column of ones has no scatter, and a mean of one.
        scatter = np.zeros((n_terms, n_terms))
        scatter[:n_columns, :n_columns] = self.scatter[:-1, :-1]
        mean = np.append(apart, np.ones(n_terms - n_columns))
        gradient = (self.weight * mean_residual) * mean
        gradient[:n_columns] += along[:-1]
        gram = None
        if request.order == 2:
            gram = scatter + self.weight * (mean[:, None] * mean)
        loss = 0.5 * (square + self.weight * mean_residual**2)
        return Statistics(self.n_rows, loss, gradient[None], gram)


def block_moments(X: BlockMatrix, target: NDArray[np.generic], weight: Array | None) -> Moments:
    """Moments of one block.

    Parameters
    ----------
    X : ndarray or CSR matrix of shape (n, p), any real dtype
    target : ndarray of shape (n,)
    weight : ndarray of shape (n,) or None

    Returns
    -------
    Moments
    """
    n_columns = X.shape[1]
    values: Array = np.require(target, np.float64, ["C", "A"])
    first = np.arange(min(len(values), _PILOT_ROWS))
    if weight is not None:
        first = np.flatnonzero(weight > 0.0)[:_PILOT_ROWS]
    if not len(first):
        empty = np.zeros(n_columns + 1)
        return Moments(len(values), 0.0, empty, np.zeros((n_columns + 1,) * 2))
    # Where coefficients are zero and all targets -1, the gradient is the sum of the columns.
    ones = Request(SquaredLoss(), np.zeros((1, n_columns)), np.zeros(n_columns), 1)
    center = block_statistics(ones, X[first], -np.ones(len(first)), None).gradient[0] / len(first)
    shift = math.fsum(values[first]) / len(first)
    # An intercept takes from the target as well, without a copy of it.
    theta = np.zeros((1, n_columns + 1))
    theta[0, -1] = shift
    sums = block_statistics(Request(SquaredLoss(), theta, center, 2), X, values, weight)
    if sums.gram is None:
        raise RuntimeError("a request of order 2 was answered without a Gram matrix")
    total = sums.gram[-1, -1]
    # Of the target in place of the column of ones.
    products = sums.gram.copy()
    products[-1] = products[:, -1] = -sums.gradient[0]
    products[-1, -1] = 2.0 * sums.loss
    mean = np.append(sums.gram[-1, :-1], -sums.gradient[0, -1]) / total
    scatter = products - total * (mean[:, None] * mean)
    return Moments(len(values), float(total), np.append(center, shift) + mean, scatter)
