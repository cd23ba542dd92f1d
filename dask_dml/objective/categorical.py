"""Rows of numbers and of categories, whose indicator columns are never written out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from dask_dml.objective.implicit import CompiledSums, Moments, implicit_scores
from dask_dml.objective.losses import Array

NO_CATEGORY = -1


@dataclass(frozen=True, eq=False)
class CategoricalBlock(CompiledSums):
    """Rows that stand for a matrix of numbers and, behind them, of indicators of categories.

    A row has a 1 in the column of its category of each group, and 0 in the group's other columns;
    a row without a category has 0 in all of them. `ImplicitRows` says what its sums are.

    Parameters
    ----------
    numbers : ndarray of shape (n, m), float32 or float64
    codes : ndarray of int32 of shape (n, c)
        Categories of each group, or ``NO_CATEGORY``.
    sizes : tuple of int
        Categories of each group.
    """

    numbers: NDArray[Any]
    codes: NDArray[np.int32]
    sizes: tuple[int, ...]

    ndim = 2

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix."""
        return len(self.codes), self.numbers.shape[1] + sum(self.sizes)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the matrix."""
        return self.numbers.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers and codes."""
        return self.numbers.nbytes + self.codes.nbytes

    def __sizeof__(self) -> int:
        return self.nbytes

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, key: Any) -> Any:
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        if isinstance(rows, int | np.integer):
            return self[[rows]].toarray()[0, columns]
        block = self
        if not (isinstance(rows, slice) and rows == slice(None)):
            block = CategoricalBlock(self.numbers[rows], self.codes[rows], self.sizes)
        n_columns = self.shape[1]
        if isinstance(columns, slice) and columns.indices(n_columns) == (0, n_columns, 1):
            return block
        return block.to_csr()[:, columns]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self.toarray(), dtype=dtype)

    def toarray(self) -> NDArray[Any]:
        """The matrix, dense: for looking at it."""
        dense: NDArray[Any] = self.to_csr().toarray()
        return dense

    def __matmul__(self, coef: Array) -> Array:
        """Scores (n, K) of coefficients (p, K)."""
        scores = np.empty((len(self), coef.shape[1]))
        theta = np.asarray(coef.T, dtype=np.float64)
        for start, part in implicit_scores(self, theta, np.zeros(self.shape[1])):
            scores[start : start + len(part)] = part
        return scores

    def to_csr(self) -> Any:
        """The matrix as a CSR array."""
        n_rows, n_numbers = self.numbers.shape
        is_known = self.codes != NO_CATEGORY
        present = np.hstack([np.ones((n_rows, n_numbers), dtype=bool), is_known])
        columns = np.empty(present.shape, dtype=np.int32)
        columns[:, :n_numbers] = np.arange(n_numbers)
        columns[:, n_numbers:] = self.codes + self.offsets
        values = np.ones(present.shape, dtype=self.dtype)
        values[:, :n_numbers] = self.numbers
        indptr = np.concatenate([[0], np.cumsum(present.sum(axis=1))])
        return scipy.sparse.csr_array((values[present], columns[present], indptr), self.shape)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """The first column of each group."""
        offsets: NDArray[np.int64] = self.numbers.shape[1] + np.cumsum((0, *self.sizes[:-1]))
        return offsets

    @property
    def fault(self) -> str:
        """What makes it unfit to be summed, or nothing."""
        for group, size in enumerate(self.sizes):
            codes = self.codes[:, group]
            if len(codes) and not (codes.min() >= NO_CATEGORY and codes.max() < size):
                found = f"{codes.min()} to {codes.max()}"
                return f"codes from {found} in group {group}, which has {size} categories"
        return ""

    # -- sums, see `ImplicitRows` -----------------------------------------------------------------

    def count_rows(self, count: NDArray[np.int64]) -> None:
        """Count the rows of each column that have a value."""
        n_numbers = self.numbers.shape[1]
        count[:n_numbers] += len(self)
        for group, (offset, size) in enumerate(zip(self.offsets, self.sizes, strict=True)):
            codes = self.codes[:, group]
            known = codes[codes != NO_CATEGORY]
            count[offset : offset + size] += np.bincount(known, minlength=size)

    def add_moments(self, weight: Array, moments: Moments, count: NDArray[np.int64]) -> None:
        """Add to the moments."""
        self._kernels.add_moments(*self._parts, weight, *moments)
        self.count_rows(count)

    @property
    def _parts(self) -> tuple[Any, Any, Any]:
        return self.numbers, self.codes, self.offsets

    @property
    def _kernels(self) -> Any:
        from dask_dml.objective.indicators import kernels

        return kernels(self.dtype.itemsize)
