"""What people hand over as X, y, weights and ids, brought to arrays that can be cut into blocks.

NumPy, scipy.sparse, dask, pandas and polars objects become dask arrays of native floats (X) or of
plain values (the columns beside it) without being copied as a whole. Nothing here knows Zarr.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import dask.array as da
import numpy as np
import scipy.sparse
from dask.base import compute, get_scheduler, is_dask_collection
from dask.delayed import delayed
from dask.system import CPU_COUNT
from numpy.typing import NDArray

from dask_dml.data.csr import Csr, as_csr, csr_rows, empty_csr, row_counts
from dask_dml.errors import DataError

if TYPE_CHECKING:
    # Late, since workers import this file: pandas takes 65 MB, and they have no frames.
    import pandas as pd

MAX_INTEGER_CLASSES = 1_000
MAX_LABELS = 10_000


@dataclass(frozen=True)
class Matrix:
    """A 2-D input of any kind.

    Attributes
    ----------
    shape : (int, int)
    dtype : dtype
        float32 or float64, native byte order: what its blocks are converted to.
    names : list of str or None
        Column names, where the input has them.
    source : object
        A dask array, or something that gives a block when it is sliced.
    is_sparse : bool
        Whether blocks are CSR; otherwise they are dense.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    names: list[str] | None
    source: Any
    is_sparse: bool = False

    @property
    def is_local(self) -> bool:
        """Whether the values are in this process."""
        return not isinstance(self.source, da.Array)

    def blocks(self, row_chunks: tuple[int, ...], column_chunks: tuple[int, ...]) -> da.Array:
        """Cut into blocks of ``dtype``, one dask chunk each."""
        chunks = (row_chunks, column_chunks)
        meta: Any = np.empty((0, 0), dtype=self.dtype)
        if self.is_sparse:
            meta = empty_csr(self.shape[1], self.dtype)
        if self.is_local:
            blocks = da.from_array(self.source, chunks=chunks, name=False, meta=meta, asarray=False)
        else:
            blocks = self._blocks(meta).rechunk(chunks)
        return cast(da.Array, blocks)

    def row_counts(self) -> NDArray[np.int64]:
        """Values of each row, of sparse input; lazy blocks are computed once to count them."""
        if self.is_local:
            return row_counts(self.source.values)
        rows = self._blocks(empty_csr(self.shape[1], self.dtype)).rechunk({1: -1})
        tasks = [delayed(row_counts)(block) for block in _flat_blocks(rows)]
        return np.concatenate(run(tasks, is_local=False))

    def _blocks(self, meta: Any) -> da.Array:
        form = partial(as_csr, dtype=self.dtype) if self.is_sparse else dense_block
        return cast(da.Array, self.source.map_blocks(form, dtype=self.dtype, meta=meta))


@dataclass(frozen=True)
class Column:
    """A 1-D input of any kind: its dask array, and the name it came with."""

    values: da.Array
    name: str | None
    is_local: bool

    def blocks(self, row_chunks: tuple[int, ...]) -> da.Array:
        """Cut into blocks of rows, one dask chunk each."""
        return cast(da.Array, self.values.rechunk((row_chunks,)))


def as_matrix(X: Any, argument: str = "X") -> Matrix:
    """Bring a 2-D input to a `Matrix`.

    Parameters
    ----------
    X : array-like, sparse matrix, dask array or DataFrame, pandas or polars DataFrame
        Shape (n, p). A dask collection whose lengths are unknown is computed once to find them.
    argument : str
        Its name in error messages.

    Raises
    ------
    DataError
        If it is not 2-D, has no row or column, or holds something that is not a real number.
    """
    if isinstance(X, da.Array):
        _check_dimensions(X, 2, argument)
        X = with_known_chunks(X)
        is_sparse = scipy.sparse.issparse(X._meta)
        matrix = Matrix(X.shape, block_dtype(X.dtype, argument), None, X, is_sparse)
    elif _is_frame(X):
        matrix = _frame_matrix(X, argument)
    elif scipy.sparse.issparse(X):
        dtype = block_dtype(cast(Any, X).dtype, argument)
        rows = as_csr(X, dtype)
        matrix = Matrix(rows.shape, dtype, None, _SparseRows(rows), is_sparse=True)
    else:
        values = np.asarray(X)
        _check_dimensions(values, 2, argument)
        dtype = block_dtype(values.dtype, argument)
        matrix = Matrix(values.shape, dtype, None, _Sliceable(values, _array_block, dtype))
    if 0 in matrix.shape:
        raise DataError(f"{argument} has shape {matrix.shape}: it needs a row and a column")
    return matrix


def as_column(values: Any, argument: str, n_rows: int) -> Column:
    """Bring a 1-D input to a `Column` of ``n_rows`` values.

    Parameters
    ----------
    values : array-like, dask array or Series, pandas or polars Series
    argument : str
        Its name in error messages.
    n_rows : int
        The number of rows of X.

    Raises
    ------
    DataError
        If it is not 1-D or its length is another.
    """
    name = getattr(values, "name", None)
    is_local = True
    if isinstance(values, da.Array):
        array, name, is_local = values, None, False
    elif _is_dask_frame(values):
        array, is_local = values.to_dask_array(), False
    else:
        if hasattr(values, "to_numpy"):
            values = values.to_numpy()
        values = np.asarray(values)
        _check_dimensions(values, 1, argument)
        array = da.from_array(values, chunks=-1, name=False)
    _check_dimensions(array, 1, argument)
    array = with_known_chunks(array)
    if array.shape[0] != n_rows:
        raise DataError(f"{argument} has {array.shape[0]} values and X has {n_rows} rows")
    return Column(array, name if isinstance(name, str) else None, is_local)


def made_up_names(n_columns: int) -> list[str]:
    """Names of columns that have none."""
    return [f"x{j}" for j in range(n_columns)]


def with_known_chunks(array: da.Array) -> da.Array:
    """Return the array with all chunk sizes known, computing the lengths if need be."""
    if not np.isnan(np.sum([np.sum(c) for c in array.chunks])):
        return array
    copy = da.Array(array.dask, array.name, array.chunks, meta=array._meta)
    return cast(da.Array, copy.compute_chunk_sizes())


def block_dtype(dtype: Any, argument: str) -> np.dtype[Any]:
    """Say as which float a block of ``dtype`` is stored.

    float32 and float64 are kept in native byte order, float16 becomes float32, everything else
    that is a real number becomes float64.

    Raises
    ------
    DataError
        If values of ``dtype`` are not real numbers.
    """
    kind, itemsize = getattr(dtype, "kind", "O"), getattr(dtype, "itemsize", 8)
    if kind == "f" and itemsize <= 4:
        return np.dtype(np.float32)
    if kind in "fbiu":
        return np.dtype(np.float64)
    raise DataError(
        f"{argument} holds {dtype} values and real numbers are needed: convert it, for example "
        f"with {argument}.astype('float64')"
    )


def dense_block(block: Any) -> NDArray[Any]:
    """Bring one block, sparse or not, to a native dense float array."""
    block = block.toarray() if hasattr(block, "toarray") else np.asarray(block)
    return np.ascontiguousarray(block, dtype=block_dtype(block.dtype, "X"))


def feature_names_of(given: Sequence[str] | None, matrix: Matrix) -> list[str]:
    """Return the names of the columns: given, the input's own, or x0, x1, ...

    Raises
    ------
    DataError
        If the names are not as many as the columns, not strings, or not unique.
    """
    n_columns = matrix.shape[1]
    names: list[Any] | None = list(given) if given is not None else matrix.names
    if names is None:
        return made_up_names(n_columns)
    if len(names) != n_columns:
        raise DataError(f"feature_names has {len(names)} names and X has {n_columns} columns")
    odd = [name for name in names if not isinstance(name, str)]
    if odd:
        raise DataError(f"feature_names must be strings, found {odd[0]!r}")
    if len(set(names)) < n_columns:
        twice = sorted({name for name in names if names.count(name) > 1})
        raise DataError(f"feature_names must be unique, found more than once: {', '.join(twice)}")
    return [str(name) for name in names]


@dataclass(frozen=True)
class Target:
    """How y is stored.

    Attributes
    ----------
    dtype : dtype
        Of the stored values: y's own, or that of codes.
    labels : ndarray or None
        Sorted values that the codes stand for; None where y is stored as it is.
    """

    dtype: np.dtype[Any]
    labels: NDArray[Any] | None

    @classmethod
    def of_labels(cls, labels: NDArray[Any]) -> Target:
        """Store codes of sorted labels, in the smallest integers that hold them."""
        return cls(np.min_scalar_type(-max(len(labels), 1)), labels)

    def encode(self, block: Any) -> NDArray[Any]:
        """Return what is stored for a block of y."""
        if self.labels is None:
            return np.asarray(block, dtype=self.dtype)
        import pandas as pd

        return np.asarray(pd.Index(self.labels).get_indexer(block)).astype(self.dtype)


def describe_target(column: Column) -> Target:
    """Find out how y is to be stored; labels are collected where they are not numbers.

    Raises
    ------
    DataError
        If values are missing, of mixed types, complex or dates, or the labels are too many.
    """
    dtype = column.values.dtype
    kind = getattr(dtype, "kind", "O")
    if kind in "fiu":
        return Target(block_dtype(dtype, "y") if kind == "f" else dtype.newbyteorder("="), None)
    if kind == "b":
        return Target.of_labels(np.array([False, True]))
    if kind in "cmMVS":
        raise DataError(f"y holds {dtype} values: numbers, booleans or strings are needed")
    parts = [delayed(distinct_labels)(b, i) for i, b in enumerate(_flat_blocks(column.values))]
    labels = merge_labels(run(parts, column.is_local))
    if isinstance(labels, np.dtype):
        return Target(labels, None)
    if kind == "U":
        labels = labels.astype(str)
    return Target.of_labels(labels)


def distinct_labels(block: Any, index: int) -> list[Any]:
    """Return the distinct values of one block of y.

    Raises
    ------
    DataError
        If one is missing, or they are more than 10,000.
    """
    import pandas as pd

    values = np.asarray(block, dtype=object)
    missing = np.flatnonzero(pd.isna(values))
    if missing.size:
        raise DataError(
            f"y has {missing.size} missing values in block {index}, the first in its row "
            f"{missing[0]}: drop those rows"
        )
    labels = list(pd.unique(values))
    _check_label_count(len(labels))
    return labels


def merge_labels(parts: Iterable[list[Any]]) -> NDArray[Any] | np.dtype[Any]:
    """Merge the labels of all blocks: sorted labels, or the number type that they are.

    Raises
    ------
    DataError
        If the types are mixed or not ones that can be stored.
    """
    labels = {label for part in parts for label in part}
    _check_label_count(len(labels))
    kinds = {_label_kind(label) for label in labels}
    if kinds <= {int, float}:
        return np.dtype(np.float64 if float in kinds else np.int64)
    if len(kinds) > 1 or not kinds <= {str, bool}:
        found = ", ".join(sorted({type(label).__name__ for label in labels}))
        raise DataError(f"y mixes or holds values of type {found}: use only numbers, or only str")
    if kinds == {bool}:
        return np.array([False, True])
    return np.array(sorted(labels), dtype=object)


def few_distinct(values: NDArray[Any]) -> list[int] | None:
    """Return the distinct integers of a block, or None if they are more than 1,000."""
    distinct = np.unique(values)
    return distinct.tolist() if distinct.size <= MAX_INTEGER_CLASSES else None


def merge_distinct(parts: Iterable[list[int] | None]) -> list[int] | None:
    """Merge what `few_distinct` found; None once they are more than 1,000."""
    merged: set[int] = set()
    for part in parts:
        if part is None or len(merged.union(part)) > MAX_INTEGER_CLASSES:
            return None
        merged.update(part)
    return sorted(merged)


def checked_weights(values: Any, index: int) -> NDArray[Any]:
    """Return a block of sample weights as floats.

    Raises
    ------
    DataError
        If one is NaN, infinite or negative.
    """
    values = np.asarray(values)
    weights: NDArray[Any] = values.astype(block_dtype(values.dtype, "sample_weight"))
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if bad.size:
        raise DataError(
            f"sample_weight must be finite and not negative, found {weights[bad[0]]} in row "
            f"{bad[0]} of block {index}, and {bad.size - 1} more in that block"
        )
    return weights


def describe_ids(column: Column) -> np.dtype[Any]:
    """Say as what row ids are stored: their own integer type, or object for strings.

    Raises
    ------
    DataError
        If they are neither integers nor strings.
    """
    kind = getattr(column.values.dtype, "kind", "O")
    if kind in "iu":
        return cast("np.dtype[Any]", column.values.dtype.newbyteorder("="))
    if kind in "OUT":
        return np.dtype(object)
    raise DataError(f"ids must be integers or strings, found {column.values.dtype}")


def checked_ids(values: Any, index: int) -> NDArray[Any]:
    """Return a block of row ids.

    Raises
    ------
    DataError
        If one is missing, or neither an integer nor a string.
    """
    ids = np.asarray(values)
    if ids.dtype.kind in "iu":
        return ids
    ids = ids.astype(object)
    odd = [(row, v) for row, v in enumerate(ids) if not isinstance(v, str)]
    if odd:
        row, value = odd[0]
        raise DataError(f"ids must be strings, found {value!r} in row {row} of block {index}")
    return ids


def run(tasks: list[Any], is_local: bool) -> list[Any]:
    """Compute delayed tasks, and leave none running behind an error.

    Parameters
    ----------
    tasks : list of Delayed
    is_local : bool
        The values are in this process, so the tasks run on its threads. Otherwise they run
        where dask runs things now: on the current cluster, or on threads.
    """
    if not is_local and get_scheduler() is not None:
        return list(compute(*tasks))
    with ThreadPoolExecutor(CPU_COUNT) as pool:
        return list(compute(*tasks, scheduler="threads", pool=pool))


class _SparseRows:
    """CSR rows, which dask slices without copying them."""

    ndim = 2

    def __init__(self, values: Csr) -> None:
        self.values = values
        self.dtype = values.dtype
        self.shape = values.shape

    def __getitem__(self, key: tuple[slice, slice]) -> Csr:
        return csr_rows(self.values, key[0].start, key[0].stop)


class _Sliceable:
    """A matrix that gives a dense block of one dtype when dask slices it."""

    ndim = 2

    def __init__(
        self, values: Any, block: Callable[[Any, slice, slice], Any], dtype: np.dtype[Any]
    ) -> None:
        self.values = values
        self.block = block
        self.dtype = dtype
        self.shape = values.shape

    def __getitem__(self, key: tuple[slice, slice]) -> NDArray[Any]:
        return np.ascontiguousarray(self.block(self.values, *key), dtype=self.dtype)


def _array_block(values: NDArray[Any], rows: slice, columns: slice) -> NDArray[Any]:
    return values[rows, columns]


def _pandas_block(frame: pd.DataFrame, rows: slice, columns: slice) -> NDArray[Any]:
    part = frame.iloc[rows, columns]
    return (
        part.to_numpy(dtype=np.float64, na_value=np.nan) if _is_nullable(part) else part.to_numpy()
    )


def _polars_block(frame: Any, rows: slice, columns: slice) -> Any:
    return frame[rows, columns].to_numpy()


def _is_nullable(frame: pd.DataFrame) -> bool:
    import pandas as pd

    return any(pd.api.types.is_extension_array_dtype(dtype) for dtype in frame.dtypes)


def _frame_matrix(frame: Any, argument: str) -> Matrix:
    names = [str(name) for name in frame.columns]
    dtypes = [getattr(d, "numpy_dtype", d) for d in _numpy_dtypes(frame)]
    odd = [f"{n} ({d})" for n, d in zip(names, dtypes, strict=True) if _kind(d) not in "fbiu"]
    if odd:
        raise DataError(
            f"{argument} has columns that are not numeric: {', '.join(odd)}. Drop them or encode "
            "them, for example with dask_dml.ingest(..., one_hot=[...])"
        )
    floats = {block_dtype(dtype, argument) for dtype in dtypes}
    dtype = np.dtype(np.float32 if floats == {np.dtype(np.float32)} else np.float64)
    if _is_dask_frame(frame):
        array = with_known_chunks(frame.astype(dtype).to_dask_array())
        return Matrix(array.shape, dtype, names, array)
    block = _polars_block if _is_frame_of("polars", frame) else _pandas_block
    return Matrix(frame.shape, dtype, names, _Sliceable(frame, block, dtype))


def _numpy_dtypes(frame: Any) -> list[Any]:
    if not _is_frame_of("polars", frame):
        return list(frame.dtypes)
    empty = frame.clear()
    return [empty[name].to_numpy().dtype for name in frame.columns]


def _kind(dtype: Any) -> str:
    return str(getattr(dtype, "kind", "O"))


def _label_kind(label: Any) -> type:
    for kind, types in (
        (bool, (bool, np.bool_)),
        (int, (int, np.integer)),
        (float, (float, np.floating)),
        (str, (str,)),
    ):
        if isinstance(label, types):
            return kind
    return type(label)


def _check_label_count(n_labels: int) -> None:
    if n_labels > MAX_LABELS:
        raise DataError(
            f"y has more than {MAX_LABELS:,} distinct labels: is it the column to predict?"
        )


def _check_dimensions(values: Any, ndim: int, argument: str) -> None:
    if values.ndim != ndim:
        raise DataError(f"{argument} must have {ndim} dimensions, found shape {values.shape}")


def _flat_blocks(array: da.Array) -> list[Any]:
    return list(array.to_delayed().ravel())


def _is_dask_frame(values: Any) -> bool:
    return is_dask_collection(values) and hasattr(values, "to_dask_array")


def _is_frame_of(library: str, values: Any) -> bool:
    # Who has a frame has imported its library.
    module = sys.modules.get(library)
    return module is not None and isinstance(values, module.DataFrame)


def _is_frame(values: Any) -> bool:
    return (
        _is_frame_of("pandas", values)
        or _is_frame_of("polars", values)
        or (_is_dask_frame(values) and hasattr(values, "columns"))
    )
