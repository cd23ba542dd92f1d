"""One block's contribution: sums of loss, gradient and weighted Gram matrix.

The rows of a block are copied, a sub-block at a time, into a float64 scratch that stays in cache,
centred and with a column of ones for the intercept. So the sums are the same bits whatever the
block's alignment, memory order, strides or byte order, and float32 data is summed in float64. Sums,
never means: blocks add up. Sparse blocks have sums of their own, see `implicit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from dask_dml.objective.blas import single_threaded_blas
from dask_dml.objective.losses import Array, Loss, LossTerms
from dask_dml.objective.syrk import add_outer_products

if TYPE_CHECKING:
    from dask_dml.objective.categorical import CategoricalBlock
    from dask_dml.objective.implicit import ImplicitRows

BlockMatrix: TypeAlias = (
    "NDArray[np.generic] | scipy.sparse.csr_array | scipy.sparse.csr_matrix | CategoricalBlock"
)

_SCRATCH_BYTES = 2 * 1024 * 1024
# Of rows that are brought to one form, at a time.
_PIECE_BYTES = 512 * 1024
_MIN_SCRATCH_ROWS = 256
_BUNDLE = 64
_SAMPLE_SEED = 20151
# Least chance of a row to be drawn for a Gram matrix, in units of the share of rows that are.
_LEAST_CHANCE = 0.5


GramDtype = type[np.float64] | type[np.float32]


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of every block in one round.

    Attributes
    ----------
    loss : Loss
    theta : ndarray of shape (K, q)
        Coefficients, and the intercept last when there is one, for centred columns; then a 0 for
        the width of a loss that has one.
    center : ndarray of shape (p,)
        Subtracted from the columns.
    order : {1, 2}
        1: loss and gradient. 2: the Gram matrix too.
    share : float
        Share of a block's rows to look at; sums stand for all of them.
    gram_share : float
        Share of those rows that the Gram matrix is formed of, about; it stands for all rows as
        well, and times `certain_share` is below that of all rows.
    columns : ndarray of int or None
        Columns, in order, that the Gram matrix is of, besides the intercept; None is all.
        Coefficients of all others are zero.
    gram_dtype : {numpy.float64, numpy.float32}
        In which BLAS forms a Gram matrix: that of float32 takes half the time, and serves where it
        only leads the way. Compiled sums of narrow rows are in float64.
    """

    loss: Loss
    theta: Array
    center: Array
    order: int
    share: float = 1.0
    gram_share: float = 1.0
    columns: NDArray[np.intp] | None = None
    gram_dtype: GramDtype = np.float64

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        chosen = 0 if self.columns is None else self.columns.nbytes
        return self.theta.nbytes + self.center.nbytes + chosen

    def of_columns(self, columns: NDArray[np.intp]) -> Request:
        """The same of some columns alone, where the coefficients of all others are zero."""
        n_columns = len(self.center)
        terms = np.append(columns, np.arange(n_columns, self.theta.shape[1]))
        theta, center = np.ascontiguousarray(self.theta[:, terms]), self.center[columns]
        return replace(self, theta=theta, center=center, columns=None)


@dataclass(frozen=True, slots=True)
class Statistics:
    """Sums over the rows of one block, or of several.

    Attributes
    ----------
    n_rows : int
    loss : float
        Weighted sum of losses.
    gradient : ndarray of shape (K, q)
        Its gradient.
    gram : ndarray of shape (K * q, K * q) or None
        Its Hessian, outputs outermost.
    """

    n_rows: int
    loss: float
    gradient: Array
    gram: Array | None

    def __add__(self, other: Self) -> Self:
        gram = None
        if self.gram is not None and other.gram is not None:
            gram = self.gram + other.gram
        return type(self)(
            self.n_rows + other.n_rows,
            self.loss + other.loss,
            self.gradient + other.gradient,
            gram,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return self.gradient.nbytes + (0 if self.gram is None else self.gram.nbytes)


def matrix_nbytes(X: Any) -> int:
    """Bytes of a block's values, and where it is CSR of where they are."""
    is_sparse = scipy.sparse.issparse(X)
    parts = (X.data, X.indices, X.indptr) if is_sparse else (X,)
    return sum(int(part.nbytes) for part in parts)


def block_statistics(
    request: Request,
    X: BlockMatrix,
    target: NDArray[np.generic],
    weight: Array | None,
) -> Statistics:
    """Sums of one block.

    Parameters
    ----------
    request : Request
    X : ndarray, CSR matrix or CategoricalBlock of shape (n, p), any real dtype
    target : ndarray of shape (n,)
        Class numbers, or values.
    weight : ndarray of shape (n,) or None
        Weights of the rows; None is 1 for all.

    Returns
    -------
    Statistics
    """
    if weight is not None:
        # Arrays from the wire need not be aligned, and then a dot product has other bits.
        weight = np.require(weight, np.float64, ["C", "A"])
    if request.share < 1.0:
        drawn = drawn_rows(X.shape[0], request.share)
        return _sampled_statistics(replace(request, share=1.0), X, target, weight, drawn)
    if request.order == 2 and request.columns is not None:
        first = block_statistics(replace(request, order=1), X, target, weight)
        some = request.of_columns(request.columns)
        if not some.theta.size:
            return replace(first, gram=np.zeros((0, 0)))
        chosen = _chosen_columns(X, request.columns)
        return replace(first, gram=block_statistics(some, chosen, target, weight).gram)
    if not isinstance(X, np.ndarray):
        return _implicit_statistics(request, X, target, weight)
    from dask_dml.objective import kernels

    loss = kernels.compiled_loss(request.loss)
    is_narrow = request.order == 1 or X.shape[1] <= kernels.GRAM_COLUMNS
    if loss is None or not is_narrow:
        return _blas_statistics(kernels.row_terms(request.loss), request, X, target, weight)
    return _compiled_statistics(loss, request, X, target, weight)


def _implicit_statistics(
    request: Request, X: Any, target: NDArray[np.generic], weight: Array | None
) -> Statistics:
    from dask_dml.objective.implicit import implicit_statistics

    if request.order == 1 or request.gram_share == 1.0:
        return implicit_statistics(request, implicit_rows(X), target, weight)
    first = _implicit_statistics(replace(request, order=1), X, target, weight)
    drawn = drawn_rows(X.shape[0], request.gram_share)
    of_drawn = _sampled_statistics(replace(request, gram_share=1.0), X, target, weight, drawn)
    return replace(first, gram=of_drawn.gram)


def implicit_rows(X: Any) -> ImplicitRows:
    """Rows whose zeros are implicit, with their sums: sparse ones, or those of categories."""
    if not scipy.sparse.issparse(X):
        rows: ImplicitRows = X
        return rows
    from dask_dml.objective.sparse import CsrRows, canonical

    return CsrRows(canonical(X))


def _compiled_statistics(
    loss: Any,
    request: Request,
    X: NDArray[np.generic],
    target: NDArray[np.generic],
    weight: Array | None,
) -> Statistics:
    from dask_dml.objective import kernels

    gram_share = request.gram_share if request.order == 2 else 0.0
    sums = kernels.Sums(loss, request.theta, request.center, gram_share)
    values = np.require(target, np.int32 if target.dtype == np.int32 else np.float64, ["C", "A"])
    for rows, piece in dense_pieces(X, sums.subblock_rows):
        sums.add(piece, values[rows], None if weight is None else weight[rows])
    return Statistics(X.shape[0], sums.loss, sums.gradient, sums.gram)


def _sampled_statistics(
    request: Request,
    X: BlockMatrix,
    target: NDArray[np.generic],
    weight: Array | None,
    drawn: NDArray[np.intp],
) -> Statistics:
    """Sums over rows that were drawn, times what they stand for."""
    n_rows = X.shape[0]
    # Taking whole rows of an array is faster than indexing it, unless it has to be aligned first.
    if isinstance(X, np.ndarray) and X.flags.aligned:
        rows: BlockMatrix = np.take(X, drawn, axis=0)
    else:
        rows = X[drawn]
    sums = block_statistics(request, rows, target[drawn], None if weight is None else weight[drawn])
    factor = n_rows / max(len(drawn), 1)
    gram = None if sums.gram is None else factor * sums.gram
    return Statistics(n_rows, factor * sums.loss, factor * sums.gradient, gram)


def _chosen_columns(X: BlockMatrix, columns: NDArray[np.intp]) -> BlockMatrix:
    if not isinstance(X, np.ndarray):
        return X[:, columns]
    # NumPy copies all of what is not aligned: of few rows at a time, which stay in cache.
    chosen = np.empty((len(X), len(columns)), X.dtype)
    rows = scratch_rows(X.shape[1])
    for start in range(0, len(X), rows):
        part = slice(start, start + rows)
        np.take(X[part], columns, axis=1, out=chosen[part], mode="clip")
    return chosen


def certain_share(gram_share: float) -> float:
    """Factor with which the Gram matrix of a share of the rows is below that of all rows.

    Rows stand for others by the inverse of the chance that they had: with the least chance for a
    factor none counts for more than itself.
    """
    return gram_share if gram_share == 1.0 else _LEAST_CHANCE * gram_share


def drawn_rows(
    n_rows: int, share: float, seed: int | Sequence[int] = _SAMPLE_SEED
) -> NDArray[np.intp]:
    """A random sample of row numbers, in order: one of each of equal strata.

    Parameters
    ----------
    n_rows : int
    share : float
        In (0, 1].
    seed : int or sequence of int
        Of the generator.

    Returns
    -------
    ndarray of shape (ceil(share * n_rows),)
        The same ones each time for a seed.
    """
    n_drawn = math.ceil(share * n_rows)
    edges = np.arange(n_drawn + 1) * n_rows // max(n_drawn, 1)
    within = np.random.default_rng(seed).random(n_drawn)
    return edges[:-1] + (within * np.diff(edges)).astype(np.intp)


def dense_pieces(
    X: NDArray[np.generic], multiple: int
) -> Iterator[tuple[slice, NDArray[np.generic]]]:
    """The rows in C order, as float32 or float64, and which they are: whole where they are so."""
    n_rows = X.shape[0]
    if X.dtype in (np.float32, np.float64) and X.flags.c_contiguous:
        yield slice(n_rows), X
        return
    n_taken: int = _PIECE_BYTES // (8 * max(X.shape[1], 1))
    n_taken = max(n_taken // multiple * multiple, multiple)
    for start in range(0, n_rows, n_taken):
        rows = slice(start, start + n_taken)
        yield rows, np.ascontiguousarray(X[rows], dtype=_plain_dtype(X))


def _plain_dtype(X: NDArray[np.generic]) -> type[np.floating[Any]]:
    return np.float32 if X.dtype.kind == "f" and X.dtype.itemsize == 4 else np.float64


def reference_statistics(
    request: Request,
    X: NDArray[np.generic],
    target: NDArray[np.generic],
    weight: Array | None,
) -> Statistics:
    """The sums of `block_statistics` by NumPy: what the compiled ones are tested against."""
    return _blas_statistics(request.loss.evaluate, request, X, target, weight)


def _blas_statistics(
    evaluate: Callable[[Array, NDArray[np.generic], int], LossTerms],
    request: Request,
    X: BlockMatrix,
    target: NDArray[np.generic],
    weight: Array | None,
) -> Statistics:
    """The sums by BLAS, which has the quickest Gram matrices of many columns."""
    n_outputs, n_terms = request.theta.shape
    loss_sum = 0.0
    gradient = np.zeros((n_outputs, n_terms))
    gram = weighted_gram = None
    if request.order == 2:
        gram = np.zeros((n_outputs * n_terms,) * 2, request.gram_dtype)
        weighted_gram = _WeightedGram(n_outputs, n_terms, request.gram_dtype)
    drawing = np.random.default_rng(_SAMPLE_SEED)
    start = 0
    with single_threaded_blas():
        for design in design_blocks(X, n_terms, request.center):
            stop = start + len(design)
            scores = design @ request.theta.T
            terms = evaluate(scores, target[start:stop], request.order)
            if terms.width_column is not None:
                design[:, -1] = terms.width_column
            if weight is None:
                loss_sum += float(terms.loss.sum())
                residual, curvature, coupling = terms.residual, terms.curvature, terms.coupling
            else:
                w = weight[start:stop]
                loss_sum += float(w @ terms.loss)
                residual = terms.residual * w[:, None]
                curvature = None if terms.curvature is None else terms.curvature * w[:, None]
                coupling = None if terms.coupling is None else terms.coupling * np.sqrt(w)[:, None]
            gradient += residual.T @ design
            if gram is not None and weighted_gram is not None and curvature is not None:
                if request.gram_share < 1.0:
                    design, curvature, coupling = _drawn_by_curvature(
                        drawing, request.gram_share, design, curvature, coupling
                    )
                weighted_gram.add_to(gram, design, curvature, coupling)
            start = stop
    if gram is not None and n_outputs == 1:
        _mirror(gram)
    if gram is not None:
        gram = gram.astype(np.float64, copy=False)
    return Statistics(start, loss_sum, gradient, gram)


def _drawn_by_curvature(
    drawing: np.random.Generator,
    share: float,
    design: Array,
    curvature: Array,
    coupling: Array | None,
) -> tuple[Array, Array, Array | None]:
    """Rows of a Gram matrix drawn at random, with curvatures that stand for all of them.

    Half of the chances are equal, and half go by the curvature: where most rows are surely right,
    the few that are not make the matrix.
    """
    total = curvature.sum(axis=1)
    if coupling is not None:
        total -= (coupling * coupling).sum(axis=1)
    mean = float(total.mean())
    own = total / mean if mean > 0.0 else np.ones_like(total)
    chance = np.minimum(share * (_LEAST_CHANCE + (1.0 - _LEAST_CHANCE) * own), 1.0)
    drawn = np.flatnonzero(drawing.random(len(total)) < chance)
    factor = 1.0 / chance[drawn]
    if coupling is not None:
        coupling = coupling[drawn] * np.sqrt(factor)[:, None]
    return design[drawn], curvature[drawn] * factor[:, None], coupling


def _mirror(gram: NDArray[np.floating[Any]]) -> None:
    """Copy the lower triangle to the upper one, a band at a time."""
    for start in range(0, len(gram), _BUNDLE):
        stop = start + _BUNDLE
        band = gram[start:stop, start:stop]
        band[...] = np.tril(band) + np.tril(band, -1).T
        gram[start:stop, stop:] = gram[stop:, start:stop].T


class _WeightedGram:
    """Adds ``sum_i x_i x_i^T (x) (diag(d_i) - u_i u_i^T)``, outputs outermost.

    The rows are not what they were afterwards.
    """

    def __init__(self, n_outputs: int, n_terms: int, dtype: GramDtype) -> None:
        self.n_terms = n_terms
        # One output has one use of the rows: they are scaled where they are, which are in cache.
        is_in_place = n_outputs == 1 and dtype == np.float64
        shape = scratch_rows(n_terms), n_terms
        self._scaled = None if is_in_place else np.empty(shape, dtype)

    def add_to(
        self,
        gram: NDArray[np.floating[Any]],
        design: Array,
        curvature: Array,
        coupling: Array | None,
    ) -> None:
        if coupling is None and len(gram) == self.n_terms:
            self._add_one(gram, design, curvature)
            return
        if coupling is None:
            for k in range(curvature.shape[1]):
                gram[self._own(k), self._own(k)] += self._weighted(design, curvature[:, k])
            return
        # With d = u * sum(u) the matrix is the sum of u_k u_l (e_k - e_l)(e_k - e_l)^T over pairs:
        # nothing cancels, however sure a row is, and equal shifts stay flat to the last bit.
        for k in range(coupling.shape[1]):
            for j in range(k):
                pair = self._weighted(design, coupling[:, k] * coupling[:, j])
                gram[self._own(k), self._own(k)] += pair
                gram[self._own(j), self._own(j)] += pair
                gram[self._own(k), self._own(j)] -= pair
                gram[self._own(j), self._own(k)] -= pair

    def _add_one(self, gram: NDArray[np.floating[Any]], design: Array, curvature: Array) -> None:
        # BLAS adds to one triangle where it is, which spares passes over a large matrix.
        add_outer_products(gram, self._times_root(design, curvature))

    def _own(self, output: int) -> slice:
        return slice(output * self.n_terms, (output + 1) * self.n_terms)

    def _weighted(self, design: Array, weight: Array) -> NDArray[np.floating[Any]]:
        scaled = self._times_root(design, weight[:, None])
        # A matrix times its own transpose goes to BLAS syrk: half the work.
        return np.asarray(scaled.T @ scaled)

    def _times_root(self, design: Array, weight: Array) -> NDArray[np.floating[Any]]:
        scaled = design if self._scaled is None else self._scaled[: len(design)]
        return np.multiply(design, np.sqrt(weight), out=scaled, casting="same_kind")


def scratch_rows(n_terms: int) -> int:
    """Rows of a sub-block: a power of two, up to two megabytes of float64, at least 256."""
    rows = _SCRATCH_BYTES // (8 * max(n_terms, 1))
    return max(_MIN_SCRATCH_ROWS, 1 << max(rows.bit_length() - 1, 0))


def design_blocks(X: BlockMatrix, n_terms: int, center: Array | None) -> Iterator[Array]:
    """Sub-blocks of rows as float64 with columns centred and, if wanted, a column of ones.

    Parameters
    ----------
    X : ndarray, CSR matrix or CategoricalBlock of shape (n, p)
    n_terms : int
        p, or p + 1 for a column of ones at the end.
    center : ndarray of shape (p,) or None
        Subtracted from the columns; None for zeros.

    Yields
    ------
    ndarray of shape (m, n_terms)
        The same memory each time: use it before the next one, and as you like.
    """
    n_rows, n_columns = X.shape
    rows = scratch_rows(n_terms)
    scratch = np.empty((min(rows, n_rows), n_terms))
    shift = None
    if center is not None and np.any(center):
        # Rows are short: the subtraction is several times faster on bundles of them.
        shift = np.tile(np.append(center, np.zeros(n_terms - n_columns)), _BUNDLE)
    for start in range(0, n_rows, rows):
        stop = min(start + rows, n_rows)
        design = scratch[: stop - start]
        values = X[start:stop]
        design[:, :n_columns] = values.toarray() if hasattr(values, "toarray") else values
        design[:, n_columns:] = 1.0
        if shift is not None:
            whole = len(design) - len(design) % _BUNDLE
            wide = design[:whole].reshape(-1, len(shift))
            wide -= shift
            design[whole:] -= shift[:n_terms]
        yield design


def score_blocks(X: BlockMatrix, theta: Array, center: Array) -> Iterator[tuple[int, Array]]:
    """Scores of sub-blocks of rows by several models.

    Parameters
    ----------
    X : ndarray, CSR matrix or CategoricalBlock of shape (n, p)
    theta : ndarray of shape (M, q)
        Coefficients, and the intercept last when there is one, for centred columns.
    center : ndarray of shape (p,)

    Yields
    ------
    start : int
        The first row of the sub-block.
    scores : ndarray of shape (m, M)
        The same memory each time, perhaps.
    """
    if not isinstance(X, np.ndarray):
        from dask_dml.objective.implicit import implicit_scores

        yield from implicit_scores(implicit_rows(X), theta, center)
        return
    models, start = np.ascontiguousarray(theta.T), 0
    for design in design_blocks(X, len(models), center):
        yield start, product_of_rows(design, models)
        start += len(design)


def product_of_rows(rows: Array, matrix: Array) -> Array:
    """``rows @ matrix``, summed in order, or where that has many terms by BLAS, which is faster.

    Parameters
    ----------
    rows : ndarray of shape (n, q)
    matrix : ndarray of shape (q, m)
    """
    from dask_dml.objective import kernels

    # With a column of ones.
    if rows.shape[1] > kernels.GRAM_COLUMNS + 1:
        return np.asarray(rows @ matrix)
    return kernels.product(rows, matrix)
