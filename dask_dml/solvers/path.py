"""Lasso and elastic net along their penalties, from second moments alone.

A squared loss is a quadratic function of the coefficients: sums at one point are all that is to be
known of the rows, for every penalty, and for every training set whose sums are known.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from dask_dml.objective.blocks import Statistics
from dask_dml.objective.losses import Array
from dask_dml.solvers.proximal import minimum_of_model

# Of a column's mean square, the variance that is what rounding leaves of that of a constant.
_CONSTANT = 1e-13
# Where the penalties end, scikit-learn has all of them at this number.
_LEAST_ALPHA = float(np.finfo(np.float64).resolution)


class MeanProducts(NamedTuple):
    """Weighted means of products of columns and target, around their means with an intercept.

    Attributes
    ----------
    products : ndarray of shape (p, p)
    with_target : ndarray of shape (p,)
    mean : ndarray of shape (p,)
        Of the columns; zero without an intercept.
    target_mean : float
        The same of the target.
    """

    products: Array
    with_target: Array
    mean: Array
    target_mean: float

    @classmethod
    def of(cls, sums: Statistics, intercept: float | None, weight: float) -> Self:
        """Mean products, from the sums of a squared loss.

        Parameters
        ----------
        sums : Statistics
            With a Gram matrix, at coefficients of zero.
        intercept : float or None
            The intercept there; None without one.
        weight : float
            Of the rows.

        Raises
        ------
        ValueError
            If there is no Gram matrix.
        """
        if sums.gram is None:
            raise ValueError("MeanProducts.of(sums=...) needs a Gram matrix: ask with order=2")
        p = len(sums.gram) - (intercept is not None)
        products, with_target = sums.gram[:p, :p] / weight, -sums.gradient[0, :p] / weight
        mean, target_mean = np.zeros(p), 0.0
        squares = np.diagonal(products).copy()
        if intercept is not None:
            mean = sums.gram[p, :p] / weight
            above = -float(sums.gradient[0, p]) / weight
            products -= np.multiply.outer(mean, mean)
            with_target -= mean * above
            target_mean = intercept + above
        constant = np.diagonal(products) <= _CONSTANT * squares
        products[constant], products[:, constant], with_target[constant] = 0.0, 0.0, 0.0
        return cls(products, with_target, mean, target_mean)

    def coefficients(self, alphas: NDArray[np.float64], l1_ratio: float) -> Iterator[Array]:
        """Coefficients of each penalty in turn, every one starting from the last.

        Minimises ``w^T products w / 2 - with_target^T w + alpha * (l1_ratio * |w|_1 + (1 -
        l1_ratio) / 2 * |w|^2)``.

        Parameters
        ----------
        alphas : ndarray of shape (m,)
            Best in falling order.
        l1_ratio : float

        Yields
        ------
        ndarray of shape (p,)
        """
        p = len(self.with_target)
        coef = np.zeros(p)
        diagonal = np.arange(p)
        for alpha in alphas:
            hessian = self.products
            if l1_ratio < 1.0:
                hessian = hessian.copy()
                hessian[diagonal, diagonal] += alpha * (1.0 - l1_ratio)
            absolute = np.full(p, alpha * l1_ratio)
            coef = minimum_of_model(hessian, -self.with_target, absolute, coef)
            yield coef

    def intercept(self, coef: Array) -> float:
        """The best intercept, 0 without one."""
        return self.target_mean - float(self.mean @ coef)

    def grid(self, n_alphas: int, eps: float, l1_ratio: float) -> NDArray[np.float64]:
        """Penalties from that which makes all coefficients zero down to its share `eps`.

        They are scikit-learn's, evenly spaced on a logarithmic scale.
        """
        largest = float(np.abs(self.with_target).max(initial=0.0)) / l1_ratio
        if largest <= _LEAST_ALPHA:
            return np.full(n_alphas, _LEAST_ALPHA)
        return np.geomspace(largest, largest * eps, num=n_alphas)


def loss_at(sums: Statistics, move: Array) -> float:
    """Sum of half the squared residuals at the sums' point plus a move, of shape (q,)."""
    if sums.gram is None:
        raise ValueError("loss_at(sums=...) needs a Gram matrix: ask with order=2")
    slope = float(sums.gradient[0] @ move)
    return sums.loss + slope + 0.5 * float(move @ sums.gram @ move)
