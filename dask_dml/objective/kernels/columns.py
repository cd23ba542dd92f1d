"""Sums and bounds of the columns of dense rows, compiled: a survey reads the memory once.

Within a sub-block the sums are in row order; sub-blocks are added in order.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from dask_dml.objective.kernels.compiling import compiled
from dask_dml.objective.kernels.lanes import LANES, larger, load, prefetch, smaller, spread, store
from dask_dml.objective.losses import Array

# Its decorators are not typed.
_inlined: Any = numba.njit(error_model="numpy")

_SUBBLOCK_NUMBERS = 1024
_MOST_ROWS = 32


class ColumnSums:
    """Weighted sums of columns and of their squares, and bounds; pieces are added in order.

    What is not finite makes `moment1` or `moment2` so, and may be missing in the bounds.

    Parameters
    ----------
    n_columns : int
    """

    def __init__(self, n_columns: int) -> None:
        padded = -(-n_columns // LANES) * LANES
        self._n_columns = n_columns
        self._sums = np.zeros((4, padded))
        self._sums[2], self._sums[3] = np.inf, -np.inf
        fitting = _SUBBLOCK_NUMBERS // max(padded, 1) // LANES * LANES
        self.subblock_rows = min(max(fitting, LANES), _MOST_ROWS)

    def add(self, X: NDArray[np.generic], weight: Array | None) -> None:
        """Add rows.

        Parameters
        ----------
        X : ndarray of shape (n, p), float32 or float64
            In C order; it need not be aligned. Unless these are the last rows, n is a multiple of
            ``subblock_rows``.
        weight : ndarray of shape (n,) or None
        """
        no_weight = np.empty(0)
        _kernel(X.dtype.itemsize)(
            X, no_weight if weight is None else weight, self.subblock_rows, self._sums
        )

    @property
    def moment1(self) -> Array:
        """Weighted sums, shape (p,)."""
        return self._sums[0, : self._n_columns]

    @property
    def moment2(self) -> Array:
        """Weighted sums of squares, shape (p,)."""
        return self._sums[1, : self._n_columns]

    @property
    def lower(self) -> Array:
        """Least values, shape (p,); inf where there is no row."""
        return self._sums[2, : self._n_columns]

    @property
    def upper(self) -> Array:
        """Largest values, shape (p,); -inf where there is no row."""
        return self._sums[3, : self._n_columns]


@functools.cache
def _kernel(itemsize: int) -> Any:
    """The kernel for blocks of a type; declared unaligned, as blocks from the wire are."""
    item = types.float32 if itemsize == 4 else types.float64
    rows = types.Array(item, 2, "C", readonly=True, aligned=False)
    weight = types.Array(types.float64, 1, "C", readonly=True, aligned=False)
    sums = types.Array(types.float64, 2, "C")
    return compiled(_add_columns, types.void(rows, weight, types.int64, sums))


def _add_columns(X: Any, weight: Array, most_rows: int, sums: Array) -> None:
    n_rows, n_columns = X.shape
    padded = sums.shape[1]
    is_weighted = len(weight) > 0
    line = 64 // X.itemsize
    edge = np.zeros(LANES)
    for start in range(0, n_rows, most_rows):
        stop = min(start + most_rows, n_rows)
        for place in range(stop * n_columns, (2 * stop - start) * n_columns, line):
            prefetch(X, place)
        for j in range(0, n_columns, LANES):
            sum1, sum2 = spread(0.0), spread(0.0)
            least, most = load(sums, 2 * padded + j), load(sums, 3 * padded + j)
            # What is read beyond the last columns is the next row's, and is not used.
            n_safe = min(stop, (X.size - LANES - j) // n_columns + 1)
            for i in range(start, n_safe):
                x, w = load(X, i * n_columns + j), spread(weight[i] if is_weighted else 1.0)
                sum1, sum2, least, most = _with(x, w, sum1, sum2, least, most)
            for i in range(max(start, n_safe), stop):
                for k in range(n_columns - j):
                    edge[k] = X[i, j + k]
                x, w = load(edge, 0), spread(weight[i] if is_weighted else 1.0)
                sum1, sum2, least, most = _with(x, w, sum1, sum2, least, most)
            store(sums, j, load(sums, j) + sum1)
            store(sums, padded + j, load(sums, padded + j) + sum2)
            store(sums, 2 * padded + j, least)
            store(sums, 3 * padded + j, most)


@_inlined
def _with(x: Any, w: Any, sum1: Any, sum2: Any, least: Any, most: Any) -> Any:
    return sum1 + w * x, sum2 + w * (x * x), smaller(x, least), larger(x, most)
