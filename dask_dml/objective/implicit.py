"""Sums of a block whose zeros are implicit: sparse rows, or categories in place of indicators.

It never becomes dense: the time is that of the values that are there, and of no others. Every sum
has its order written out, so its bits depend neither on the type of the CPU nor on threads or
alignment:

- the score of a row is summed in the order of its columns, and the intercept is added last;
- gradient and Gram matrix are summed in row order; losses too, within sub-blocks of rows.

Centring is implicit. With columns ``x - c``, scores are ``x w - c w``, gradients ``sum r x - c sum
r``, and the Gram matrix is corrected by outer products of c. That loses digits only where a column
is far from zero for its spread. A column of m rows with a zero among them has a mean of at most
``sqrt(m)`` times its spread; one that has values in all rows is centred value by value.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dask_dml.objective.blocks import Request, Statistics
from dask_dml.objective.losses import Array, HuberLoss, LossTerms

_SUBBLOCK_SCORES = 4096


class Moments(NamedTuple):
    """Sums and bounds of the columns of some rows; see `Survey`."""

    moment1: Array
    moment2: Array
    lower: Array
    upper: Array


class ImplicitRows(Protocol):
    """Rows whose zeros are implicit, and sums over the values that are there.

    `shift`, of shape (p,) or (0,) for none, is subtracted from these values. Sums that are given
    are added to.
    """

    @property
    def shape(self) -> tuple[int, int]: ...

    def take_scores(
        self, start: int, shift: Array, coef: Array, constant: Array, scores: Array
    ) -> None:
        """Put scores (m, K) of the rows from `start` on: coef (p, K), constant (K,) added last."""
        ...

    def add_gradient(self, start: int, shift: Array, residuals: Array, gradient: Array) -> None:
        """Add residuals (m, K) of rows to a gradient (p + 1, K), of a column of ones last."""
        ...

    def add_gram(self, start: int, shift: Array, curvatures: Array, gram: Array) -> None:
        """Add weights (m,) of rows to the upper triangle of (p + 1, p + 1), ones last."""
        ...

    def count_rows(self, count: NDArray[np.int64]) -> None:
        """Count rows with a value in a column: right for columns that have one in all rows."""
        ...

    def add_moments(self, weight: Array, moments: Moments, count: NDArray[np.int64]) -> None:
        """Add to the moments of the values that are there, and count them; weight (n,) or (0,)."""
        ...


class CompiledSums(ABC):
    """Sums of `ImplicitRows` by compiled functions of the arrays that the rows are kept in."""

    __slots__ = ()

    @property
    @abstractmethod
    def _parts(self) -> tuple[Any, ...]: ...

    @property
    @abstractmethod
    def _kernels(self) -> Any: ...

    def take_scores(
        self, start: int, shift: Array, coef: Array, constant: Array, scores: Array
    ) -> None:
        """Put scores of the rows from `start` on."""
        self._kernels.take_scores(*self._parts, start, shift, coef, constant, scores)

    def add_gradient(self, start: int, shift: Array, residuals: Array, gradient: Array) -> None:
        """Add to the gradient."""
        self._kernels.add_gradient(*self._parts, start, shift, residuals, gradient)

    def add_gram(self, start: int, shift: Array, curvatures: Array, gram: Array) -> None:
        """Add to the Gram matrix."""
        self._kernels.add_gram(*self._parts, start, shift, curvatures, gram)


def implicit_statistics(
    request: Request, rows: ImplicitRows, target: NDArray[np.generic], weight: Array | None
) -> Statistics:
    """Sums of one block; see `block_statistics`.

    Parameters
    ----------
    request : Request
        For all rows.
    rows : ImplicitRows
    target : ndarray of shape (n,)
    weight : ndarray of shape (n,) or None
    """
    from dask_dml.objective.kernels import row_terms

    n_rows, n_columns = rows.shape
    theta = request.theta[:, :-1] if isinstance(request.loss, HuberLoss) else request.theta
    n_outputs, n_terms = theta.shape
    shift, center = _split_center(rows, request.center)
    evaluate = row_terms(request.loss)
    loss_sum = 0.0
    # With the sums of the residuals, and of the curvatures, as those of a last column of ones.
    gradient = np.zeros((n_columns + 1, n_outputs))
    gram = _Gram(n_outputs, n_columns + 1) if request.order == 2 else None
    width = _WidthSums(n_columns)
    for start, scores in _score_blocks(rows, theta, shift, center):
        stop = start + len(scores)
        terms = evaluate(scores, target[start:stop], request.order)
        if weight is not None:
            terms = _weighted(terms, weight[start:stop])
        loss_sum += _total(terms.loss)
        residual = np.ascontiguousarray(terms.residual)
        rows.add_gradient(start, shift, residual, gradient)
        if gram is not None:
            for tile, curvature in gram.parts(terms):
                rows.add_gram(start, shift, curvature, tile)
        if terms.width_column is not None:
            across = width.add(terms, terms.width_column)
            rows.add_gradient(start, shift, across, width.across)
    gradient[:-1] -= center[:, None] * gradient[-1]
    sums = Statistics(
        n_rows,
        loss_sum,
        np.ascontiguousarray(gradient[:n_terms].T),
        None if gram is None else gram.whole(center, n_terms),
    )
    return width.beside(sums, center) if isinstance(request.loss, HuberLoss) else sums


class _WidthSums:
    """Sums with the column that a loss with a width puts beside the features.

    Attributes
    ----------
    across : ndarray of shape (p + 1, 1)
        Its row of the Gram matrix.
    """

    def __init__(self, n_columns: int) -> None:
        self.across = np.zeros((n_columns + 1, 1))
        self._gradient = 0.0
        self._square = 0.0

    def add(self, terms: LossTerms, column: Array) -> Array:
        """Add some rows; their factors of the features in `across`."""
        self._gradient += _total(terms.residual[:, 0] * column)
        if terms.curvature is None:
            return np.zeros((len(column), 1))
        across = terms.curvature[:, 0] * column
        self._square += _total(across * column)
        return across[:, None]

    def beside(self, sums: Statistics, center: Array) -> Statistics:
        """Sums of the features, with those of the column last."""
        gradient = np.append(sums.gradient, [[self._gradient]], axis=1)
        if sums.gram is None:
            return replace(sums, gradient=gradient)
        self.across[:-1, 0] -= center * self.across[-1, 0]
        across = self.across[: len(sums.gram)]
        gram = np.block([[sums.gram, across], [across.T, np.array([[self._square]])]])
        return replace(sums, gradient=gradient, gram=gram)


def subblock_rows(n_outputs: int) -> int:
    """Rows of a sub-block, whose losses are added before those of others."""
    return max(_SUBBLOCK_SCORES // n_outputs, 64)


def implicit_scores(rows: ImplicitRows, theta: Array, center: Array) -> Iterator[tuple[int, Array]]:
    """Scores of sub-blocks of rows, and where they begin; see `score_blocks`."""
    return _score_blocks(rows, theta, *_split_center(rows, center))


def _score_blocks(
    rows: ImplicitRows, theta: Array, shift: Array, center: Array
) -> Iterator[tuple[int, Array]]:
    n_rows, n_columns = rows.shape
    coef = np.ascontiguousarray(theta[:, :n_columns].T)
    constant = theta[:, n_columns:].sum(axis=1) - (theta[:, :n_columns] * center).sum(axis=1)
    scores = np.empty((subblock_rows(len(theta)), len(theta)))
    for start in range(0, n_rows, len(scores)):
        part = scores[: min(len(scores), n_rows - start)]
        rows.take_scores(start, shift, coef, constant, part)
        yield start, part


def _total(values: Array) -> float:
    """Sum in order."""
    return float(np.cumsum(values)[-1]) if len(values) else 0.0


def _weighted(terms: LossTerms, weight: Array) -> LossTerms:
    w = weight[:, None]
    return LossTerms(
        terms.loss * weight,
        terms.residual * w,
        None if terms.curvature is None else terms.curvature * w,
        None if terms.coupling is None else terms.coupling * np.sqrt(w),
        terms.width_column,
    )


def _split_center(rows: ImplicitRows, center: Array) -> tuple[Array, Array]:
    """What is subtracted from the values that are there, and what from all rows implicitly."""
    if not np.any(center):
        return np.empty(0), np.zeros_like(center)
    count = np.zeros(len(center), dtype=np.int64)
    rows.count_rows(count)
    full = (count == rows.shape[0]) & (center != 0.0)
    if not full.any():
        return np.empty(0), center
    return np.where(full, center, 0.0), np.where(full, 0.0, center)


class _Gram:
    """Weighted Gram matrices of one block, one for each pair of outputs that needs one."""

    def __init__(self, n_outputs: int, n_terms: int) -> None:
        self._n_outputs = n_outputs
        self._n_terms = n_terms
        self._tiles: dict[tuple[int, int], Array] = {}

    def parts(self, terms: LossTerms) -> Iterator[tuple[Array, Array]]:
        """The tiles of which the upper triangle is to be added to, and the weights of the rows."""
        curvature, coupling = terms.curvature, terms.coupling
        if coupling is not None:
            # As a sum over pairs, see `blocks`: nothing cancels, and equal shifts stay flat.
            for k in range(self._n_outputs):
                for j in range(k):
                    yield self._tile(k, j), coupling[:, k] * coupling[:, j]
        elif curvature is not None:
            for k in range(self._n_outputs):
                yield self._tile(k, k), np.ascontiguousarray(curvature[:, k])

    def _tile(self, k: int, j: int) -> Array:
        if (k, j) not in self._tiles:
            self._tiles[k, j] = np.zeros((self._n_terms, self._n_terms))
        return self._tiles[k, j]

    def whole(self, center: Array, n_terms: int) -> Array:
        """The Gram matrix of centred columns, outputs outermost; with ones where in n_terms."""
        gram = np.zeros((self._n_outputs, n_terms, self._n_outputs, n_terms))
        for (k, j), tile in self._tiles.items():
            own = _centered(tile, center)[:n_terms, :n_terms]
            gram[k, :, k] += own
            if k != j:
                gram[j, :, j] += own
                gram[k, :, j] -= own
                gram[j, :, k] -= own
        return gram.reshape(self._n_outputs * n_terms, -1)


def _centered(upper: Array, center: Array) -> Array:
    """The Gram matrix of centred columns, ones last, from the upper triangle of that without."""
    if np.any(center):
        upper = upper.copy()
        cross, total = upper[:-1, -1].copy(), upper[-1, -1]
        # One of the two has half of what is twice subtracted: the sum is symmetric.
        half = cross - 0.5 * total * center
        upper[:-1, :-1] -= np.triu(np.outer(half, center) + np.outer(center, half))
        upper[:-1, -1] -= total * center
    return upper + np.triu(upper, 1).T


def column_moments(rows: ImplicitRows, weight: Array | None) -> Moments:
    """Weighted sums of the columns and of their squares, and bounds, with the zeros."""
    n_rows, n_columns = rows.shape
    found = Moments(
        np.zeros(n_columns),
        np.zeros(n_columns),
        np.full(n_columns, np.inf),
        np.full(n_columns, -np.inf),
    )
    count = np.zeros(n_columns, dtype=np.int64)
    rows.add_moments(np.empty(0) if weight is None else weight, found, count)
    has_zeros = count < n_rows
    np.minimum(found.lower, 0.0, out=found.lower, where=has_zeros)
    np.maximum(found.upper, 0.0, out=found.upper, where=has_zeros)
    return found
