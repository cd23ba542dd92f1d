"""Sparse rows as CSR: brought to one form, measured, and cut without being copied."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

Csr = Any  # scipy's types of sparse arrays and matrices have no base with data and indices


def is_csr(values: Any) -> bool:
    """Whether values are sparse rows in CSR form."""
    return isinstance(values, scipy.sparse.csr_array | scipy.sparse.csr_matrix)


def as_csr(values: Any, dtype: np.dtype[Any]) -> Csr:
    """Sparse values as CSR with sorted columns, each there once; left as they are if they are so.

    Parameters
    ----------
    values : sparse matrix of shape (n, p)
    dtype : dtype
    """
    rows = scipy.sparse.csr_array(values, dtype=dtype)
    if not rows.has_canonical_format:
        rows = rows.copy()
        rows.sum_duplicates()
    return rows


def csr_rows(X: Csr, start: int, stop: int) -> Csr:
    """A slice of the rows, whose values are those of X and not a copy."""
    first, last = X.indptr[start], X.indptr[stop]
    rows = type(X)((stop - start, X.shape[1]), dtype=X.dtype)
    # The constructor would copy what is a small part of something larger.
    rows.data, rows.indices = X.data[first:last], X.indices[first:last]
    rows.indptr = X.indptr[start : stop + 1] - first
    rows.has_canonical_format = X.has_canonical_format
    return rows


def csr_nbytes(X: Csr) -> int:
    """Bytes of the values, and of where they are."""
    return int(X.data.nbytes + X.indices.nbytes + X.indptr.nbytes)


def row_counts(X: Csr) -> NDArray[np.int64]:
    """Values in each row, shape (n,)."""
    counts: NDArray[np.int64] = np.diff(X.indptr).astype(np.int64, copy=False)
    return counts


def empty_csr(n_columns: int, dtype: np.dtype[Any]) -> Csr:
    """No rows, as which dask knows blocks that are CSR."""
    return scipy.sparse.csr_array((0, n_columns), dtype=dtype)
