"""Sums of a block of CSR rows, which never becomes dense.

The time is that of the values that are there, and of no others. Every sum has its order written
out, so its bits depend neither on the type of the CPU nor on threads or alignment:

- the score of a row is summed in the order of its columns, and the intercept is added last;
- gradient and Gram matrix are summed in row order; losses too, within sub-blocks of rows.

Centring is implicit. With columns ``x - c``, scores are ``x w - c w``, gradients ``sum r x - c sum
r``, and the Gram matrix is corrected by outer products of c. That loses digits only where a column
is far from zero for its spread. A column of m rows with a zero among them has a mean of at most
``sqrt(m)`` times its spread; one that has values in all rows is centred value by value.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numba
import numpy as np
import scipy.sparse
from numba import types
from numpy.typing import NDArray

from dask_dml.objective.blocks import Request, Statistics
from dask_dml.objective.kernels.compiling import compiled
from dask_dml.objective.losses import Array, HuberLoss, LossTerms

Csr = scipy.sparse.csr_array | scipy.sparse.csr_matrix

_SUBBLOCK_SCORES = 4096


def sparse_statistics(
    request: Request, X: Any, target: NDArray[np.generic], weight: Array | None
) -> Statistics:
    """Sums of one block of sparse rows; see `block_statistics`.

    Parameters
    ----------
    request : Request
        For all rows.
    X : sparse matrix of shape (n, p)
        Any format; CSR with sorted columns is used where it is.
    target : ndarray of shape (n,)
    weight : ndarray of shape (n,) or None
    """
    rows = canonical(X)
    n_rows, n_columns = rows.shape
    theta = request.theta[:, :-1] if isinstance(request.loss, HuberLoss) else request.theta
    n_outputs, n_terms = theta.shape
    kernels = _kernels(rows.data.dtype.str, rows.indices.dtype.str)
    values = (rows.data, rows.indices, rows.indptr)
    shift, center = _split_center(kernels, rows, request.center)
    coef = np.ascontiguousarray(theta[:, :n_columns].T)
    constant = -(theta[:, :n_columns] * center).sum(axis=1)
    if n_terms > n_columns:
        constant += theta[:, -1]
    loss_sum = 0.0
    # With the sums of the residuals, and of the curvatures, as those of a last column of ones.
    gradient = np.zeros((n_columns + 1, n_outputs))
    gram = _Gram(n_outputs, n_columns + 1) if request.order == 2 else None
    width = _WidthSums(n_columns)
    scores = np.empty((subblock_rows(n_outputs), n_outputs))
    for start, stop in _subblocks(n_rows, len(scores)):
        part = scores[: stop - start]
        kernels.take_scores(*values, start, shift, coef, constant, part)
        terms = request.loss.evaluate(part, target[start:stop], request.order)
        if weight is not None:
            terms = _weighted(terms, weight[start:stop])
        loss_sum += kernels.total(np.ascontiguousarray(terms.loss))
        residual = np.ascontiguousarray(terms.residual)
        kernels.add_gradient(*values, start, shift, residual, gradient)
        if gram is not None:
            for tile, curvature in gram.parts(terms):
                kernels.add_gram(*values, start, shift, curvature, tile)
        if terms.width_column is not None:
            across = width.add(terms, terms.width_column, kernels.total)
            kernels.add_gradient(*values, start, shift, across, width.across)
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

    def add(self, terms: LossTerms, column: Array, total: Callable[[Array], float]) -> Array:
        """Add some rows; their factors of the features in `across`."""
        self._gradient += total(terms.residual[:, 0] * column)
        if terms.curvature is None:
            return np.zeros((len(column), 1))
        across = terms.curvature[:, 0] * column
        self._square += total(across * column)
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


def canonical(X: Any) -> Csr:
    """The rows as CSR of float32 or float64 with sorted columns, each there once."""
    rows: Any = X if X.format == "csr" else X.tocsr()
    if rows.dtype not in (np.float32, np.float64):
        rows = rows.astype(np.float64)
    if not rows.has_canonical_format:
        rows = rows.copy()
        rows.sum_duplicates()
    return rows  # type: ignore[no-any-return]


def subblock_rows(n_outputs: int) -> int:
    """Rows of a sub-block, whose losses are added before those of others."""
    return max(_SUBBLOCK_SCORES // n_outputs, 64)


def _subblocks(n_rows: int, size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + size, n_rows)) for start in range(0, n_rows, size))


def _weighted(terms: LossTerms, weight: Array) -> LossTerms:
    w = weight[:, None]
    return LossTerms(
        terms.loss * weight,
        terms.residual * w,
        None if terms.curvature is None else terms.curvature * w,
        None if terms.coupling is None else terms.coupling * np.sqrt(w),
        terms.width_column,
    )


def _split_center(kernels: _Kernels, rows: Any, center: Array) -> tuple[Array, Array]:
    """What is subtracted from the values that are there, and what from all rows implicitly."""
    if not np.any(center):
        return np.empty(0), np.zeros_like(center)
    count = np.zeros(len(center), dtype=np.int64)
    kernels.count_rows(rows.indices, rows.indptr, count)
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


# -- the survey ----------------------------------------------------------------------------------


class Moments(NamedTuple):
    """Sums and bounds of the columns; see `Survey`."""

    moment1: Array
    moment2: Array
    lower: Array
    upper: Array


def column_moments(X: Any, weight: Array | None) -> Moments:
    """Weighted sums of the columns and of their squares, and bounds, with the zeros."""
    rows = canonical(X)
    n_rows, n_columns = rows.shape
    found = Moments(
        np.zeros(n_columns),
        np.zeros(n_columns),
        np.full(n_columns, np.inf),
        np.full(n_columns, -np.inf),
    )
    count = np.zeros(n_columns, dtype=np.int64)
    w = np.empty(0) if weight is None else weight
    kernels = _kernels(rows.data.dtype.str, rows.indices.dtype.str)
    kernels.add_moments(rows.data, rows.indices, rows.indptr, w, *found, count)
    has_zeros = count < n_rows
    np.minimum(found.lower, 0.0, out=found.lower, where=has_zeros)
    np.maximum(found.upper, 0.0, out=found.upper, where=has_zeros)
    return found


def fault_of(X: Any) -> str:
    """What makes a matrix unfit to be summed, such as an index beyond its columns, or nothing."""
    n_rows, n_columns = X.shape
    if X.format != "csr":
        return ""
    indptr = X.indptr
    if len(indptr) != n_rows + 1 or indptr[0] != 0 or indptr[-1] > min(len(X.data), len(X.indices)):
        return f"row pointers from {indptr[0]} to {indptr[-1]} for {len(X.data)} values"
    if np.any(indptr[1:] < indptr[:-1]):
        return "row pointers that decrease"
    used = X.indices[: indptr[-1]]
    if len(used) and not (used.min() >= 0 and used.max() < n_columns):
        return f"column numbers from {used.min()} to {used.max()}, where 0 to {n_columns - 1} are"
    return ""


# -- compiled ------------------------------------------------------------------------------------


class _Kernels(NamedTuple):
    take_scores: Callable[..., None]
    total: Callable[..., float]
    add_gradient: Callable[..., None]
    add_gram: Callable[..., None]
    count_rows: Callable[..., None]
    add_moments: Callable[..., None]


@functools.cache
def _kernels(data: str, index: str) -> _Kernels:
    """The kernels for types of values and indices; unaligned, as blocks from the wire are."""

    def read(item: Any) -> Any:
        return types.Array(item, 1, "C", readonly=True, aligned=False)

    value, number = numba.from_dtype(np.dtype(data)), numba.from_dtype(np.dtype(index))
    numbers = types.Array(types.float64, 1, "C", readonly=True)
    table = types.Array(types.float64, 2, "C", readonly=True)
    sums, sums2 = types.Array(types.float64, 1, "C"), types.Array(types.float64, 2, "C")
    counts = types.Array(types.int64, 1, "C")
    where = (read(number), read(number))
    rows = (read(value), *where, types.int64, numbers)

    read_weight = read(types.float64)
    return _Kernels(
        compiled(_take_scores, types.void(*rows, table, numbers, sums2)),
        compiled(_total, types.float64(numbers)),
        compiled(_add_gradient, types.void(*rows, table, sums2)),
        compiled(_add_gram, types.void(*rows, numbers, sums2)),
        compiled(_count_rows, types.void(*where, counts)),
        compiled(_add_moments, types.void(read(value), *where, read_weight, *[sums] * 4, counts)),
    )


def _take_scores(
    data: Any,
    indices: Any,
    indptr: Any,
    start: int,
    shift: Array,
    coef: Array,
    constant: Array,
    scores: Array,
) -> None:
    n_rows, n_outputs = scores.shape
    is_shifted = len(shift) > 0
    for i in range(n_rows):
        first, last = indptr[start + i], indptr[start + i + 1]
        if n_outputs == 1:
            score = 0.0
            for at in range(first, last):
                j = np.uint64(indices[at])
                x = np.float64(data[at])
                if is_shifted:
                    x -= shift[j]
                score += x * coef[j, 0]
            scores[i, 0] = score + constant[0]
            continue
        scores[i] = 0.0
        for at in range(first, last):
            j = np.uint64(indices[at])
            x = np.float64(data[at])
            if is_shifted:
                x -= shift[j]
            for k in range(n_outputs):
                scores[i, k] += x * coef[j, k]
        for k in range(n_outputs):
            scores[i, k] += constant[k]


def _total(values: Array) -> float:
    total = 0.0
    for value in values:
        total += value
    return total


def _add_gradient(
    data: Any,
    indices: Any,
    indptr: Any,
    start: int,
    shift: Array,
    residuals: Array,
    gradient: Array,
) -> None:
    n_rows, n_outputs = residuals.shape
    ones = len(gradient) - 1
    is_shifted = len(shift) > 0
    for i in range(n_rows):
        residual = residuals[i]
        for at in range(indptr[start + i], indptr[start + i + 1]):
            j = np.uint64(indices[at])
            x = np.float64(data[at])
            if is_shifted:
                x -= shift[j]
            for k in range(n_outputs):
                gradient[j, k] += residual[k] * x
        for k in range(n_outputs):
            gradient[ones, k] += residual[k]


def _add_gram(
    data: Any,
    indices: Any,
    indptr: Any,
    start: int,
    shift: Array,
    curvatures: Array,
    gram: Array,
) -> None:
    """Add to the upper triangle: columns are sorted, and ones come last."""
    ones = len(gram) - 1
    is_shifted = len(shift) > 0
    for i in range(len(curvatures)):
        curvature = curvatures[i]
        first, last = indptr[start + i], indptr[start + i + 1]
        for at in range(first, last):
            a = np.uint64(indices[at])
            x = np.float64(data[at])
            if is_shifted:
                x -= shift[a]
            scaled = curvature * x
            row = gram[a]
            for other in range(at, last):
                b = np.uint64(indices[other])
                y = np.float64(data[other])
                if is_shifted:
                    y -= shift[b]
                row[b] += scaled * y
            row[ones] += scaled
        gram[ones, ones] += curvature


def _count_rows(indices: Any, indptr: Any, count: NDArray[np.int64]) -> None:
    """Count the rows of columns up to the first without: right for those that are in all."""
    for i in range(len(indptr) - 1):
        n_left = 0
        for at in range(indptr[i], indptr[i + 1]):
            j = np.uint64(indices[at])
            if count[j] == i:
                count[j] = i + 1
                n_left += 1
        if n_left == 0:
            return


def _add_moments(
    data: Any,
    indices: Any,
    indptr: Any,
    weight: Array,
    moment1: Array,
    moment2: Array,
    lower: Array,
    upper: Array,
    count: NDArray[np.int64],
) -> None:
    is_weighted = len(weight) > 0
    for i in range(len(indptr) - 1):
        w = weight[i] if is_weighted else 1.0
        for at in range(indptr[i], indptr[i + 1]):
            j = np.uint64(indices[at])
            x = np.float64(data[at])
            moment1[j] += w * x
            moment2[j] += w * (x * x)
            lower[j] = min(lower[j], x)
            upper[j] = max(upper[j], x)
            count[j] += 1
