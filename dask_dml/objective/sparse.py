"""Sparse rows as CSR, with compiled sums over the values that are there; see `implicit`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numba
import numpy as np
import scipy.sparse
from numba import types
from numpy.typing import NDArray

from dask_dml.objective.implicit import CompiledSums, Moments
from dask_dml.objective.kernels.compiling import compiled
from dask_dml.objective.losses import Array

Csr = scipy.sparse.csr_array | scipy.sparse.csr_matrix


@dataclass(frozen=True, slots=True)
class CsrRows(CompiledSums):
    """Rows of a CSR matrix with sorted columns, each there once; see `canonical`."""

    X: Csr

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix."""
        n_rows, n_columns = self.X.shape
        return n_rows, n_columns

    def count_rows(self, count: NDArray[np.int64]) -> None:
        """Count the rows of columns up to the first row without; see `ImplicitRows`."""
        self._kernels.count_rows(*self._parts[1:], count)

    def add_moments(self, weight: Array, moments: Moments, count: NDArray[np.int64]) -> None:
        """Add to the moments."""
        self._kernels.add_moments(*self._parts, weight, *moments, count)

    @property
    def _parts(self) -> tuple[Any, Any, Any]:
        return self.X.data, self.X.indices, self.X.indptr

    @property
    def _kernels(self) -> _Kernels:
        return _kernels(self.X.data.dtype.str, self.X.indices.dtype.str)


def canonical(X: Any) -> Csr:
    """The rows as CSR of float32 or float64 with sorted columns, each there once."""
    rows: Any = X if X.format == "csr" else X.tocsr()
    if rows.dtype not in (np.float32, np.float64):
        rows = rows.astype(np.float64)
    if not rows.has_canonical_format:
        rows = rows.copy()
        rows.sum_duplicates()
    return rows  # type: ignore[no-any-return]


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
