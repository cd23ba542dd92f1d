"""One block's sums, compiled: scores, loss, residual, gradient and Gram matrix in one go.

Every sum has its order written out, nothing is contracted or reassociated, and exponentials and
logarithms are polynomials of our own. So the bits depend neither on the type of the CPU nor on
threads, libraries or the block's place in memory. Rows are taken in sub-blocks that stay in cache,
converted to float64, centred, and with a column of ones for the intercept:

- the score of a row is the sum of eight sums over every eighth column;
- within a sub-block, loss, gradient and Gram matrix are summed in row order;
- sub-blocks are added in order.

The one module that imports numba, and itself imported late: only who evaluates blocks needs it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from dask_dml.objective.losses import Array, LogisticLoss, Loss, SquaredLoss

# Its decorators are not typed.
_inlined: Any = numba.njit

LOGISTIC, SQUARED = 0, 1
_CODES: dict[type, int] = {LogisticLoss: LOGISTIC, SquaredLoss: SQUARED}

# Terms up to which the Gram matrix is summed here; BLAS is faster beyond.
GRAM_TERMS = 257

_SCRATCH_BYTES = 128 * 1024
_MOST_ROWS = 256
_LEAST_ROWS = 16

_LOG2_E = 1.4426950408889634
# Their sum is log(2); a product of the first with a whole number of 11 bits is exact.
_LN2_HIGH = 6.93147180369123816490e-01
_LN2_LOW = 1.90821492927058770002e-10
# Added to a number of less than 51 bits, it leaves the nearest whole number in the last bits.
_ROUNDER = 6755399441055744.0


def code_of(loss: Loss) -> int | None:
    """Number by which the kernels know a loss; None for one that is not compiled."""
    return _CODES.get(type(loss))


def subblock_rows(n_terms: int) -> int:
    """Rows of a sub-block; pieces of a block that are summed one by one are multiples of it."""
    fitting = _SCRATCH_BYTES // (8 * _padded(n_terms))
    return min(max(fitting // 8 * 8, _LEAST_ROWS), _MOST_ROWS)


def _padded(n_terms: int) -> int:
    return (n_terms + 7) // 8 * 8


def add_sums(
    code: int,
    X: NDArray[np.generic],
    theta: Array,
    center: Array,
    target: Array,
    weight: Array | None,
    loss_sum: Array,
    gradient: Array,
    gram: Array | None,
) -> None:
    """Add the sums over the rows of a block, or of a piece of one.

    Parameters
    ----------
    code : int
        Of the loss; see `code_of`.
    X : ndarray of shape (n, p), float32 or float64
        In C order; it need not be aligned.
    theta : ndarray of shape (q,)
        Coefficients, and the intercept last where q = p + 1.
    center : ndarray of shape (p,)
        Subtracted from the columns.
    target : ndarray of shape (n,)
    weight : ndarray of shape (n,) or None
    loss_sum : ndarray of shape (1,)
        Added to, as are the following.
    gradient : ndarray of shape (q,)
    gram : ndarray of shape (q, q) or None
        Its upper triangle is added to, apart from whole groups of eight columns left of it.
    """
    no_weight = np.empty(0)
    no_gram = np.empty((0, 0))
    _kernel(X.dtype.str)(
        code,
        X,
        theta,
        center,
        target,
        no_weight if weight is None else weight,
        loss_sum,
        gradient,
        no_gram if gram is None else gram,
        subblock_rows(len(theta)),
    )


@functools.cache
def _kernel(dtype: str) -> Callable[..., None]:
    """The kernel for blocks of a type; declared unaligned, as blocks from the wire are."""
    item = types.float32 if np.dtype(dtype).itemsize == 4 else types.float64
    rows = types.Array(item, 2, "C", readonly=True, aligned=False)
    read = types.Array(types.float64, 1, "C", readonly=True, aligned=False)
    write = types.Array(types.float64, 1, "C")
    matrix = types.Array(types.float64, 2, "C")
    code = types.int64
    arguments = (code, rows, read, read, read, read, write, write, matrix, types.int64)
    compiled: Callable[..., None] = numba.njit(
        types.void(*arguments), cache=True, nogil=True, error_model="numpy"
    )(_add_sums)
    return compiled


def _add_sums(
    code: int,
    X: Any,
    theta: Array,
    center: Array,
    target: Array,
    weight: Array,
    loss_sum: Array,
    gradient: Array,
    gram: Array,
    most_rows: int,
) -> None:
    n_rows, n_columns = X.shape
    n_terms = len(theta)
    padded = (n_terms + 7) // 8 * 8
    has_gram = len(gram) > 0
    # Rows and columns beyond the data stay zero, or have no residual: they add nothing.
    design = np.zeros((most_rows, padded))
    design[:, n_columns:n_terms] = 1.0
    wide_theta = np.zeros(padded)
    wide_theta[:n_terms] = theta
    grouped_design = design.reshape(most_rows, padded // 8, 8)
    grouped_theta = wide_theta.reshape(padded // 8, 8)
    part = np.zeros(padded)
    gram_part = np.zeros((n_terms, padded)) if has_gram else np.zeros((0, 0))
    scores, losses = np.zeros(most_rows), np.zeros(most_rows)
    residuals, curvatures = np.zeros(most_rows), np.zeros(most_rows)
    work, power = np.zeros(most_rows), np.zeros(most_rows)
    for start in range(0, n_rows, most_rows):
        m = min(most_rows, n_rows - start)
        for i in range(m):
            for j in range(n_columns):
                design[i, j] = X[start + i, j] - center[j]
        _take_scores(grouped_design, grouped_theta, m, scores)
        y = target[start : start + m]
        if code == LOGISTIC:
            _logistic(scores, y, m, losses, residuals, curvatures, work, power)
        else:
            _squared(scores, y, m, losses, residuals, curvatures)
        if len(weight):
            for i in range(m):
                losses[i] *= weight[start + i]
                residuals[i] *= weight[start + i]
                curvatures[i] *= weight[start + i]
        subtotal = 0.0
        for i in range(m):
            subtotal += losses[i]
        loss_sum[0] += subtotal
        whole = (m + 3) // 4 * 4
        residuals[m:whole] = 0.0
        curvatures[m:whole] = 0.0
        _take_gradient(design, residuals, whole, part)
        for j in range(n_terms):
            gradient[j] += part[j]
        if has_gram:
            _take_gram(design, curvatures, whole, n_terms, gram_part)
            for a in range(n_terms):
                for b in range(a // 8 * 8, n_terms):
                    gram[a, b] += gram_part[a, b]


@_inlined
def _take_scores(design: Array, theta: Array, m: int, scores: Array) -> None:
    # With indices that are constants, no check for negative ones is left in the loop.
    for i in range(m):
        row = design[i]
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
        for j in range(len(theta)):
            x, t = row[j], theta[j]
            s0 += x[0] * t[0]
            s1 += x[1] * t[1]
            s2 += x[2] * t[2]
            s3 += x[3] * t[3]
            s4 += x[4] * t[4]
            s5 += x[5] * t[5]
            s6 += x[6] * t[6]
            s7 += x[7] * t[7]
        scores[i] = ((s0 + s4) + (s2 + s6)) + ((s1 + s5) + (s3 + s7))


@_inlined
def _take_gradient(design: Array, residuals: Array, whole: int, part: Array) -> None:
    part[:] = 0.0
    for i in range(0, whole, 4):
        r0, r1, r2, r3 = residuals[i], residuals[i + 1], residuals[i + 2], residuals[i + 3]
        x0, x1, x2, x3 = design[i], design[i + 1], design[i + 2], design[i + 3]
        for j in range(len(part)):
            part[j] = (((part[j] + r0 * x0[j]) + r1 * x1[j]) + r2 * x2[j]) + r3 * x3[j]


@_inlined
def _take_gram(
    design: Array, curvatures: Array, whole: int, n_terms: int, gram_part: Array
) -> None:
    gram_part[:] = 0.0
    for i in range(0, whole, 4):
        x0, x1, x2, x3 = design[i], design[i + 1], design[i + 2], design[i + 3]
        for a in range(n_terms):
            c0 = curvatures[i] * x0[a]
            c1 = curvatures[i + 1] * x1[a]
            c2 = curvatures[i + 2] * x2[a]
            c3 = curvatures[i + 3] * x3[a]
            first = a // 8 * 8
            row = gram_part[a, first:]
            y0, y1, y2, y3 = x0[first:], x1[first:], x2[first:], x3[first:]
            for b in range(len(row)):
                row[b] = (((row[b] + c0 * y0[b]) + c1 * y1[b]) + c2 * y2[b]) + c3 * y3[b]


@_inlined
def _squared(
    scores: Array, target: Array, m: int, losses: Array, residuals: Array, curvatures: Array
) -> None:
    for i in range(m):
        residual = scores[i] - target[i]
        residuals[i] = residual
        losses[i] = 0.5 * (residual * residual)
        curvatures[i] = 1.0


@_inlined
def _logistic(
    scores: Array,
    target: Array,
    m: int,
    losses: Array,
    residuals: Array,
    curvatures: Array,
    work: Array,
    power: Array,
) -> None:
    # In terms of the margin nothing cancels, however sure and right the scores are.
    for i in range(m):
        sign = 1.0 - 2.0 * target[i]
        scores[i] *= sign
        residuals[i] = sign
        losses[i] = -abs(scores[i])
    _exponential(losses, m, work, power)
    for i in range(m):
        tail = losses[i]
        near = 1.0 / (1.0 + tail)
        far = tail * near
        residuals[i] *= near if scores[i] >= 0.0 else far
        curvatures[i] = near * far
        # log(1 + t) = 2 artanh(t / (2 + t)), whose series has no digits to lose.
        s = tail / (2.0 + tail)
        u = s * s
        series = 1.0 / 33.0
        series = series * u + 1.0 / 31.0
        series = series * u + 1.0 / 29.0
        series = series * u + 1.0 / 27.0
        series = series * u + 1.0 / 25.0
        series = series * u + 1.0 / 23.0
        series = series * u + 1.0 / 21.0
        series = series * u + 1.0 / 19.0
        series = series * u + 1.0 / 17.0
        series = series * u + 1.0 / 15.0
        series = series * u + 1.0 / 13.0
        series = series * u + 1.0 / 11.0
        series = series * u + 1.0 / 9.0
        series = series * u + 1.0 / 7.0
        series = series * u + 1.0 / 5.0
        series = series * u + 1.0 / 3.0
        series = series * u + 1.0
        losses[i] = 2.0 * s * series + max(scores[i], 0.0)


@_inlined
def _exponential(values: Array, m: int, work: Array, power: Array) -> None:
    """Exponentials in place, to an error of about one unit in the last place."""
    work_bits, power_bits = work.view(np.int64), power.view(np.int64)
    for i in range(m):
        values[i] = min(max(values[i], -708.0), 709.0)
        work[i] = values[i] * _LOG2_E + _ROUNDER
    for i in range(m):
        power_bits[i] = (work_bits[i] << 52) + 4607182418800017408
    for i in range(m):
        whole = work[i] - _ROUNDER
        r = (values[i] - whole * _LN2_HIGH) - whole * _LN2_LOW
        series = 1.0 / 6227020800.0
        series = series * r + 1.0 / 479001600.0
        series = series * r + 1.0 / 39916800.0
        series = series * r + 1.0 / 3628800.0
        series = series * r + 1.0 / 362880.0
        series = series * r + 1.0 / 40320.0
        series = series * r + 1.0 / 5040.0
        series = series * r + 1.0 / 720.0
        series = series * r + 1.0 / 120.0
        series = series * r + 1.0 / 24.0
        series = series * r + 1.0 / 6.0
        series = series * r + 0.5
        series = series * r + 1.0
        values[i] = (series * r + 1.0) * power[i]
