"""The sums of a block of dense rows, compiled.

Rows are taken in sub-blocks that stay in cache, as float64, centred, with a column of ones for the
intercept and one for the width of a loss that has one, and in *panels*: eight columns of all rows,
then the next eight. Wide rows of which only a gradient is wanted are used where they are. Every
sum has its order written out:

- the score of a row is the sum of eight sums over every eighth column;
- within a sub-block, the loss is the sum of eight sums over every eighth row; the gradient is the
  sum of four over every fourth, and in row order where rows are wide or outputs several, as is the
  Gram matrix;
- sub-blocks are added in order.

A Gram matrix of a share of the rows is formed of neighbouring ones of each sub-block, which are in
cache already.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from dask_dml.objective.kernels.compiling import compiled
from dask_dml.objective.kernels.lanes import (
    LANES,
    first_of,
    load,
    prefetch,
    spread,
    store,
    total,
    totals,
)
from dask_dml.objective.kernels.losses import SIGNATURE, CompiledLoss
from dask_dml.objective.kernels.products import add_tile
from dask_dml.objective.losses import Array

# Its decorators are not typed.
_inlined: Any = numba.njit(error_model="numpy")

_SCRATCH_BYTES = 128 * 1024
_MOST_ROWS = 256
_LEAST_ROWS = 16
# Terms from which on rows are not copied to panels, and what a sub-block of them has of the cache.
_WIDE_TERMS = 128
_WIDE_BYTES = 512 * 1024
# How far ahead rows are fetched from memory, which takes as long as all else, and in what units.
_ROWS_AHEAD = 64
_LINE_BYTES = 64


def _padded(n_terms: int) -> int:
    return -(-n_terms // LANES) * LANES


class Sums:
    """Sums over rows, to which pieces of a block are added in order.

    Parameters
    ----------
    loss : CompiledLoss
    theta : ndarray of shape (K, q)
        Coefficients, then the intercept if there is one, then a 0 for the width of a loss that has
        one.
    center : ndarray of shape (p,)
        Subtracted from the columns.
    gram_share : float
        Share of the rows that the Gram matrix is formed of, about; 0 for no such matrix.

    Attributes
    ----------
    subblock_rows : int
        Rows of a sub-block.
    """

    def __init__(self, loss: CompiledLoss, theta: Array, center: Array, gram_share: float) -> None:
        n_outputs, n_terms = theta.shape
        padded = _padded(n_terms)
        self._loss = loss
        self._shape = theta.shape
        self._theta = np.zeros((n_outputs, padded))
        self._theta[:, :n_terms] = theta
        self._center = np.zeros(padded)
        self._center[: len(center)] = center
        self._loss_sum = np.zeros(1)
        self._gradient = np.zeros((n_outputs, padded))
        n_grams = n_outputs * (n_outputs - 1) // 2 if loss.is_coupled else n_outputs
        self._grams = np.zeros((n_grams if gram_share else 0, padded, padded))
        # Rows that are long and used twice only stay where they are.
        is_plain = n_outputs == 1 and not loss.has_width
        self._is_wide = not gram_share and is_plain and padded > _WIDE_TERMS
        nbytes = 8 * (padded + 3 * n_outputs)
        fitting = (_WIDE_BYTES if self._is_wide else _SCRATCH_BYTES) // nbytes
        self.subblock_rows = min(max(fitting // LANES * LANES, _LEAST_ROWS), _MOST_ROWS)
        self._gram_rows = math.ceil(gram_share * self.subblock_rows)
        self._n_rows = self._n_in_gram = 0

    def add(
        self, X: NDArray[np.generic], target: NDArray[np.generic], weight: Array | None
    ) -> None:
        """Add rows.

        Parameters
        ----------
        X : ndarray of shape (n, p), float32 or float64
            In C order; it need not be aligned. Unless these are the last rows, n is a multiple of
            ``subblock_rows``.
        target : ndarray of shape (n,), int32 or float64
        weight : ndarray of shape (n,) or None
        """
        _kernel(X.dtype.itemsize, target.dtype.itemsize)(
            self._loss.evaluate,
            self._loss.parameters,
            self._loss.is_coupled,
            self._loss.has_width,
            X,
            self._theta,
            self._center,
            target,
            np.empty(0) if weight is None else weight,
            self._shape[1],
            self.subblock_rows,
            self._gram_rows,
            self._n_rows // self.subblock_rows,
            self._is_wide,
            self._loss_sum,
            self._gradient,
            self._grams,
        )
        n_whole, n_left = divmod(len(X), self.subblock_rows)
        self._n_rows += len(X)
        self._n_in_gram += n_whole * self._gram_rows + min(n_left, self._gram_rows)

    @property
    def loss(self) -> float:
        """Weighted sum of losses."""
        return float(self._loss_sum[0])

    @property
    def gradient(self) -> Array:
        """Its gradient, shape (K, q)."""
        return np.ascontiguousarray(self._gradient[:, : self._shape[1]])

    @property
    def gram(self) -> Array | None:
        """Its Hessian, shape (K q, K q), outputs outermost; None where it was not asked for.

        That of some of the rows is scaled up to all of them.
        """
        n_outputs, q = self._shape
        if not self._gram_rows:
            return None
        gram = np.zeros((n_outputs, q, n_outputs, q))
        blocks = (_symmetric(self._grams[number, :q, :q]) for number in range(len(self._grams)))
        if not self._loss.is_coupled:
            for k, block in enumerate(blocks):
                gram[k, :, k] = block
        else:
            for k in range(n_outputs):
                for j, block in zip(range(k), blocks, strict=False):
                    gram[k, :, k] += block
                    gram[j, :, j] += block
                    gram[k, :, j] = gram[j, :, k] = -block
        gram *= self._n_rows / max(self._n_in_gram, 1)
        return gram.reshape(n_outputs * q, n_outputs * q)


def _symmetric(upper: Array) -> Array:
    return np.asarray(np.triu(upper) + np.triu(upper, 1).T)


@functools.cache
def _kernel(itemsize: int, target_itemsize: int) -> Any:
    """The kernel for blocks of a type; declared unaligned, as blocks from the wire are."""
    item = types.float32 if itemsize == 4 else types.float64
    rows = types.Array(item, 2, "C", readonly=True, aligned=False)
    label = types.int32 if target_itemsize == 4 else types.float64
    labels = types.Array(label, 1, "C", readonly=True, aligned=False)
    read = types.Array(types.float64, 1, "C", readonly=True, aligned=False)
    vector, matrix, matrices = (types.Array(types.float64, ndim, "C") for ndim in (1, 2, 3))
    count = types.int64
    loss = (types.FunctionType(SIGNATURE), vector, types.boolean, types.boolean)
    data = (rows, matrix, vector, labels, read, count, count, count, count, types.boolean)
    return compiled(_add_sums, types.void(*loss, *data, vector, matrix, matrices))


def _add_sums(
    evaluate: Any,
    parameters: Array,
    is_coupled: bool,
    has_width: bool,
    X: Any,
    theta: Array,
    center: Array,
    target: Any,
    weight: Array,
    n_terms: int,
    most_rows: int,
    gram_rows: int,
    first_subblock: int,
    is_wide: bool,
    loss_sum: Array,
    gradient: Array,
    grams: Array,
) -> None:
    n_rows, n_columns = X.shape
    n_outputs, padded = theta.shape
    n_panels = padded // LANES
    # What is beyond the data stays zero, or is rows without a residual: it adds nothing.
    panels = _panels(1 if is_wide else n_panels, most_rows)
    scaled = _panels(n_panels if len(grams) else 0, most_rows)
    last = np.zeros(LANES)
    if n_terms - int(has_width) > n_columns:
        last[n_columns % LANES] = 1.0
        panels[min(n_columns // LANES, len(panels) - 1), :, n_columns % LANES] = 1.0
    part = np.zeros(padded)
    targets, losses, factors = np.zeros(most_rows), np.zeros(most_rows), np.zeros(most_rows)
    scores = np.zeros((n_outputs, most_rows))
    residuals = np.zeros((n_outputs, most_rows))
    curvatures = np.zeros((n_outputs, most_rows))
    for start in range(0, n_rows, most_rows):
        m = min(most_rows, n_rows - start)
        whole = (m + LANES - 1) // LANES * LANES
        if is_wide:
            _fill_tails(X, start, m, center, last, panels)
            _score_rows(X, start, m, theta, center, panels, scores)
        else:
            if has_width:
                panels[(n_terms - 1) // LANES, :, (n_terms - 1) % LANES] = 0.0
            _fill_and_score(X, start, m, center, last, theta, panels, scores)
        # Here and not of the block, whose copy would take pages of memory anew in each round.
        targets[:m] = target[start : start + m]
        evaluate(scores, targets[:m], parameters, losses, residuals, curvatures)
        if has_width:
            _put_column(panels, n_terms - 1, scores[0], weight, start, m)
        if len(weight):
            _weigh(losses, weight, start, m)
            for k in range(n_outputs):
                _weigh(residuals[k], weight, start, m)
        losses[m:whole] = 0.0
        residuals[:, m:whole] = 0.0
        subtotal = spread(0.0)
        for i in range(0, whole, LANES):
            subtotal += load(losses, i)
        loss_sum[0] += total(subtotal)
        if is_wide:
            part[:] = 0.0
            _add_gradient_of_rows(X, start, m, center, panels, residuals, part)
            for j in range(padded):
                gradient[0, j] += part[j]
        else:
            _add_gradient(panels, residuals, whole, gradient)
        n_in_gram = min(gram_rows, m)
        first = _anywhere(first_subblock + start // most_rows, m - n_in_gram)
        if len(grams) and is_coupled:
            number = 0
            for k in range(n_outputs):
                for j in range(k):
                    for i in range(m):
                        factors[i] = curvatures[k, i] * curvatures[j, i]
                    if len(weight):
                        _weigh(factors, weight, start, m)
                    _add_gram(panels, factors, first, n_in_gram, scaled, grams[number])
                    number += 1
        elif len(grams):
            for k in range(n_outputs):
                if len(weight):
                    _weigh(curvatures[k], weight, start, m)
                _add_gram(panels, curvatures[k], first, n_in_gram, scaled, grams[k])


@_inlined
def _anywhere(number: int, largest: int) -> int:
    """One of 0, ..., `largest` for a sub-block's number, without a pattern in their order."""
    return number * 2654435761 % 4294967296 // 65536 % (largest + 1)


@_inlined
def _weigh(values: Array, weight: Array, start: int, m: int) -> None:
    # A row without weight adds nothing, also where its loss overflows.
    for i in range(m):
        w = weight[start + i]
        values[i] = values[i] * w if w > 0.0 else 0.0


@_inlined
def _put_column(panels: Array, term: int, values: Array, weight: Array, start: int, m: int) -> None:
    for i in range(m):
        is_in = len(weight) == 0 or weight[start + i] > 0.0
        panels[term // LANES, i, term % LANES] = values[i] if is_in else 0.0


@_inlined
def _panels(n_panels: int, n_rows: int) -> Array:
    """Zeros for panels of some rows, whose groups of eight lie on cache lines of their own."""
    # With more room than rows, a row's groups are not a multiple of 4096 bytes apart, at which
    # distance processors take a load to be of what was just stored.
    room = n_rows + LANES
    size = n_panels * room * LANES
    buffer = np.zeros(size + LANES)
    skipped = -buffer.ctypes.data % 64 // 8
    return buffer[skipped : skipped + size].reshape(n_panels, room, LANES)


@_inlined
def _fill_and_score(
    X: Any,
    start: int,
    m: int,
    center: Array,
    last: Array,
    theta: Array,
    panels: Array,
    scores: Array,
) -> None:
    """Put rows into the panels, centred, and their scores beside them, eight rows at a time.

    All in one function: numba counts references to arrays at each call of another.
    """
    n_columns, room = X.shape[1], panels.shape[1]
    n_panels, n_outputs = len(panels), len(theta)
    n_of_columns = (n_columns + LANES - 1) // LANES
    n_fast = _n_fast(X, start, m)
    n_ahead = _ROWS_AHEAD * n_columns
    line = _LINE_BYTES // X.itemsize
    n_lines = LANES * n_columns // line + 1
    filling = load(last, 0)
    for i in range(0, m, LANES):
        row = (start + i) * n_columns
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = spread(0.0)
        n_scored = 0
        if i < n_fast:
            n_scored = n_of_columns
            place = row + n_ahead
            for _ in range(n_lines):
                prefetch(X, place)
                place += line
            for g in range(n_of_columns):
                t, shift = load(theta, g * LANES), load(center, g * LANES)
                at, put = row + g * LANES, (g * room + i) * LANES
                # What is read beyond the last columns is the next row's, and is not used.
                n_own = n_columns - g * LANES
                x = first_of(load(X, at) - shift, filling, n_own)
                store(panels, put, x)
                s0 += x * t
                x = first_of(load(X, at + n_columns) - shift, filling, n_own)
                store(panels, put + 8, x)
                s1 += x * t
                x = first_of(load(X, at + 2 * n_columns) - shift, filling, n_own)
                store(panels, put + 16, x)
                s2 += x * t
                x = first_of(load(X, at + 3 * n_columns) - shift, filling, n_own)
                store(panels, put + 24, x)
                s3 += x * t
                x = first_of(load(X, at + 4 * n_columns) - shift, filling, n_own)
                store(panels, put + 32, x)
                s4 += x * t
                x = first_of(load(X, at + 5 * n_columns) - shift, filling, n_own)
                store(panels, put + 40, x)
                s5 += x * t
                x = first_of(load(X, at + 6 * n_columns) - shift, filling, n_own)
                store(panels, put + 48, x)
                s6 += x * t
                x = first_of(load(X, at + 7 * n_columns) - shift, filling, n_own)
                store(panels, put + 56, x)
                s7 += x * t
        else:
            for k in range(i, min(i + LANES, m)):
                for j in range(n_columns):
                    panels[j // LANES, k, j % LANES] = X[start + k, j] - center[j]
        for k in range(n_outputs):
            for g in range(n_scored, n_panels):
                t = load(theta, (k * n_panels + g) * LANES)
                at = (g * room + i) * LANES
                s0 += load(panels, at) * t
                s1 += load(panels, at + 8) * t
                s2 += load(panels, at + 16) * t
                s3 += load(panels, at + 24) * t
                s4 += load(panels, at + 32) * t
                s5 += load(panels, at + 40) * t
                s6 += load(panels, at + 48) * t
                s7 += load(panels, at + 56) * t
            store(scores, k * scores.shape[1] + i, totals(s0, s1, s2, s3, s4, s5, s6, s7))
            s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = spread(0.0)
            n_scored = 0


@_inlined
def _n_fast(X: Any, start: int, m: int) -> int:
    """Of so many rows, those in whole eights behind which follows as much as is read too far."""
    n_columns = X.shape[1]
    return int(min(m, (X.size - LANES) // n_columns - start) // LANES * LANES)


@_inlined
def _fill_tails(X: Any, start: int, m: int, center: Array, last: Array, tails: Array) -> None:
    """Put what columns are left of wide rows into a panel, with the column of ones."""
    n_columns = X.shape[1]
    first = n_columns // LANES * LANES
    n_left = n_columns - first
    n_fast = _n_fast(X, start, m) if n_left else 0
    if n_fast > 0:
        shift, filling = load(center, first), load(last, 0)
        for i in range(n_fast):
            # What is read beyond the last columns is the next row's, and is not used.
            values = load(X, (start + i) * n_columns + first) - shift
            store(tails, i * LANES, first_of(values, filling, n_left))
    for i in range(max(n_fast, 0), m):
        for j in range(first, n_columns):
            tails[0, i, j - first] = X[start + i, j] - center[j]


@_inlined
def _score_rows(
    X: Any, start: int, m: int, theta: Array, center: Array, tails: Array, scores: Array
) -> None:
    """Scores of wide rows where they are, but for the last columns, of which there are copies."""
    n_columns = X.shape[1]
    n_whole = n_columns // LANES * LANES
    for i in range(m):
        row = (start + i) * n_columns
        score = spread(0.0)
        for j in range(0, n_whole, LANES):
            score += (load(X, row + j) - load(center, j)) * load(theta, j)
        if theta.size > n_whole:
            score += load(tails, i * LANES) * load(theta, n_whole)
        scores[0, i] = total(score)


@_inlined
def _add_gradient_of_rows(
    X: Any, start: int, m: int, center: Array, tails: Array, residuals: Array, sums: Array
) -> None:
    """Add, in row order, multiples of wide rows where they are to a sum."""
    n_columns = X.shape[1]
    n_whole = n_columns // LANES * LANES
    n_bundled = m // 4 * 4
    for i in range(0, n_bundled, 4):
        r0, r1 = spread(residuals[0, i]), spread(residuals[0, i + 1])
        r2, r3 = spread(residuals[0, i + 2]), spread(residuals[0, i + 3])
        row = (start + i) * n_columns
        for j in range(0, n_whole, LANES):
            shift, at = load(center, j), row + j
            part = load(sums, j) + r0 * (load(X, at) - shift)
            part += r1 * (load(X, at + n_columns) - shift)
            part += r2 * (load(X, at + 2 * n_columns) - shift)
            part += r3 * (load(X, at + 3 * n_columns) - shift)
            store(sums, j, part)
    for i in range(n_bundled, m):
        row = (start + i) * n_columns
        for j in range(0, n_whole, LANES):
            x = load(X, row + j) - load(center, j)
            store(sums, j, load(sums, j) + spread(residuals[0, i]) * x)
    if sums.size > n_whole:
        part = load(sums, n_whole)
        for i in range(m):
            part += spread(residuals[0, i]) * load(tails, i * LANES)
        store(sums, n_whole, part)


@_inlined
def _add_gradient(panels: Array, residuals: Array, whole: int, gradient: Array) -> None:
    n_panels, room = panels.shape[0], panels.shape[1]
    n_outputs = len(residuals)
    n_tiled = n_outputs // LANES * LANES
    for g in range(n_panels):
        at = g * room * LANES
        for k in range(0, n_tiled, LANES):
            to = (k * n_panels + g) * LANES
            add_tile(
                residuals,
                k * residuals.shape[1],
                residuals.shape[1],
                1,
                panels,
                at,
                whole,
                gradient,
                to,
                n_panels,
            )
        for k in range(n_tiled, n_outputs):
            s0 = s1 = s2 = s3 = spread(0.0)
            for i in range(0, whole, 4):
                s0 += spread(residuals[k, i]) * load(panels, at + i * LANES)
                s1 += spread(residuals[k, i + 1]) * load(panels, at + (i + 1) * LANES)
                s2 += spread(residuals[k, i + 2]) * load(panels, at + (i + 2) * LANES)
                s3 += spread(residuals[k, i + 3]) * load(panels, at + (i + 3) * LANES)
            to = (k * n_panels + g) * LANES
            store(gradient, to, load(gradient, to) + ((s0 + s1) + (s2 + s3)))


@_inlined
def _add_gram(
    panels: Array, factors: Array, first: int, m: int, scaled: Array, gram: Array
) -> None:
    """Add rows to the upper triangle, and to what is left of it in a group of eight columns."""
    n_panels, room = panels.shape[0], panels.shape[1]
    for g in range(n_panels):
        for i in range(first, first + m):
            at = (g * room + i) * LANES
            store(scaled, at, spread(factors[i]) * load(panels, at))
    size, skipped = room * LANES, first * LANES
    for g in range(n_panels):
        for a in range(g + 1):
            to = (a * LANES * n_panels + g) * LANES
            at, panel = a * size + skipped, g * size + skipped
            add_tile(scaled, at, 1, LANES, panels, panel, m, gram, to, n_panels)
