"""Sums over rows of numbers and categories, compiled; see `CategoricalBlock`.

The order within a row is that of the columns: numbers, then a value of 1 for each group.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types

from dask_dml.objective.kernels.compiling import compiled
from dask_dml.objective.losses import Array

_inlined: Any = numba.njit(error_model="numpy")


class Kernels(NamedTuple):
    """Those of one type of numbers."""

    take_scores: Callable[..., None]
    add_gradient: Callable[..., None]
    add_gram: Callable[..., None]
    add_moments: Callable[..., None]


@functools.cache
def kernels(itemsize: int) -> Kernels:
    """The kernels for numbers of 4 or 8 bytes; unaligned, as blocks from the wire are."""
    item = types.float32 if itemsize == 4 else types.float64
    parts = (
        types.Array(item, 2, "C", readonly=True, aligned=False),
        types.Array(types.int32, 2, "C", readonly=True, aligned=False),
        types.Array(types.int64, 1, "C", readonly=True),
    )
    read = types.Array(types.float64, 1, "C", readonly=True)
    weight = types.Array(types.float64, 1, "C", readonly=True, aligned=False)
    table = types.Array(types.float64, 2, "C", readonly=True)
    sums, sums2 = types.Array(types.float64, 1, "C"), types.Array(types.float64, 2, "C")
    rows = (*parts, types.int64, read)
    return Kernels(
        compiled(_take_scores, types.void(*rows, table, read, sums2)),
        compiled(_add_gradient, types.void(*rows, table, sums2)),
        compiled(_add_gram, types.void(*rows, read, sums2)),
        compiled(_add_moments, types.void(*parts, weight, *[sums] * 4)),
    )


@_inlined
def _take_row(
    numbers: Any, codes: Any, offsets: Any, i: int, shift: Array, columns: Any, values: Array
) -> Any:
    """Columns and values of a row, and how many."""
    n_numbers = numbers.shape[1]
    for j in range(n_numbers):
        columns[j] = j
        values[j] = numbers[i, j]
    n = n_numbers
    for group in range(codes.shape[1]):
        if codes[i, group] >= 0:
            columns[n] = offsets[group] + codes[i, group]
            values[n] = 1.0
            n += 1
    if len(shift):
        for at in range(n):
            values[at] -= shift[columns[at]]
    return n


def _take_scores(
    numbers: Any,
    codes: Any,
    offsets: Any,
    start: int,
    shift: Array,
    coef: Array,
    constant: Array,
    scores: Array,
) -> None:
    n_rows, n_outputs = scores.shape
    width = numbers.shape[1] + codes.shape[1]
    columns, values = np.zeros(width, dtype=np.int64), np.zeros(width)
    for i in range(n_rows):
        n = _take_row(numbers, codes, offsets, start + i, shift, columns, values)
        for k in range(n_outputs):
            score = 0.0
            for at in range(n):
                score += values[at] * coef[columns[at], k]
            scores[i, k] = score + constant[k]


def _add_gradient(
    numbers: Any,
    codes: Any,
    offsets: Any,
    start: int,
    shift: Array,
    residuals: Array,
    gradient: Array,
) -> None:
    n_rows, n_outputs = residuals.shape
    width = numbers.shape[1] + codes.shape[1]
    columns, values = np.zeros(width, dtype=np.int64), np.zeros(width)
    ones = len(gradient) - 1
    for i in range(n_rows):
        n = _take_row(numbers, codes, offsets, start + i, shift, columns, values)
        for at in range(n):
            for k in range(n_outputs):
                gradient[columns[at], k] += residuals[i, k] * values[at]
        for k in range(n_outputs):
            gradient[ones, k] += residuals[i, k]


def _add_gram(
    numbers: Any,
    codes: Any,
    offsets: Any,
    start: int,
    shift: Array,
    curvatures: Array,
    gram: Array,
) -> None:
    width = numbers.shape[1] + codes.shape[1]
    columns, values = np.zeros(width, dtype=np.int64), np.zeros(width)
    ones = len(gram) - 1
    for i in range(len(curvatures)):
        n = _take_row(numbers, codes, offsets, start + i, shift, columns, values)
        for at in range(n):
            scaled = curvatures[i] * values[at]
            row = gram[columns[at]]
            for other in range(at, n):
                row[columns[other]] += scaled * values[other]
            row[ones] += scaled
        gram[ones, ones] += curvatures[i]


def _add_moments(
    numbers: Any,
    codes: Any,
    offsets: Any,
    weight: Array,
    moment1: Array,
    moment2: Array,
    lower: Array,
    upper: Array,
) -> None:
    width = numbers.shape[1] + codes.shape[1]
    columns, values = np.zeros(width, dtype=np.int64), np.zeros(width)
    no_shift = np.zeros(0)
    for i in range(len(codes)):
        w = weight[i] if len(weight) else 1.0
        n = _take_row(numbers, codes, offsets, i, no_shift, columns, values)
        for at in range(n):
            j, x = columns[at], values[at]
            moment1[j] += w * x
            moment2[j] += w * (x * x)
            lower[j] = min(lower[j], x)
            upper[j] = max(upper[j], x)
