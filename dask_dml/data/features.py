"""How the features lie in a store: dense in one array, sparse as CSR, or as codes of categories.

Dense, ``X`` is one array (n, p) whose chunks are the blocks of the grid. Sparse, ``X`` is a group
of three arrays with a row for each block, which is one chunk: ``data`` and ``indices`` (n_blocks,
capacity) hold the values of a block and their columns, and ``indptr`` (n_blocks, rows + 1) says
where its rows begin. Behind a block's own values stand zeros, up to those of the fullest block.

With categories, ``X/codes`` (n, c) holds their numbers, and ``X/numbers`` (n, m), if there are any,
the other features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import dask.array as da
import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from dask_dml.data.csr import Csr, empty_csr
from dask_dml.data.layout import BlockGrid
from dask_dml.data.store import (
    MAX_CHUNK_BYTES,
    Array,
    Group,
    create_array,
    read_chunk,
    read_whole,
    write_chunk,
    write_whole,
)
from dask_dml.errors import DataError
from dask_dml.objective.categorical import CategoricalBlock

_NO_ROWS = np.empty(0, dtype=np.int64)
_INDEX = np.dtype(np.int32)


class Features(Protocol):
    """How the features lie in a store.

    Attributes
    ----------
    storage : {"dense", "sparse", "categorical"}
    dtype : dtype
        Of the values.
    n_values : int or None
        Values that are stored, where it is not all of them.
    categories : dict of str to list
        Categories of the columns of which codes are stored.
    names : tuple of str
        Names of the arrays; ``sample/`` and the same of those of the sample.
    """

    @property
    def storage(self) -> str: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def n_values(self) -> int | None: ...
    @property
    def categories(self) -> dict[str, list[Any]]: ...
    @property
    def names(self) -> tuple[str, ...]: ...

    def grid(self, arrays: dict[str, Array], n_rows: int, n_columns: int) -> BlockGrid:
        """How the arrays are cut."""
        ...

    def shapes(self, grid: BlockGrid, n_sample: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the arrays, and of those of the sample where they are known."""
        ...

    def create(self, group: Group, grid: BlockGrid) -> dict[str, Array]:
        """Create the arrays."""
        ...

    def write(
        self,
        arrays: dict[str, Array],
        grid: BlockGrid,
        block_id: tuple[int, int],
        block: Any,
        rows: NDArray[np.int64],
    ) -> Any:
        """Write one block, and return those of its rows that are asked for."""
        ...

    def write_sample(self, group: Group, bands: Sequence[Sequence[Any]]) -> None:
        """Write sampled rows, the blocks of each row of the grid from the left."""
        ...

    def read_sample(self, arrays: dict[str, Array], n_columns: int, url: str) -> Any:
        """The sampled rows."""
        ...

    def blocks(self, arrays: dict[str, Array], grid: BlockGrid, url: str, name: str) -> da.Array:
        """All blocks, lazy, as a dask array of a given name."""
        ...

    def block_nbytes(self, grid: BlockGrid) -> tuple[int, ...]:
        """Bytes of each row of blocks in memory."""
        ...

    def manifest(self) -> dict[str, Any]:
        """What `features_of` has to know."""
        ...


def features_of(manifest: dict[str, Any]) -> Features:
    """How the features lie in a store, by its manifest."""
    said = manifest["features"]
    dtype = np.dtype(manifest["dtype"])
    if "categories" in said:
        return CategoricalFeatures(dtype, said["numbers"], dict(said["categories"]))
    return (
        SparseFeatures(dtype, tuple(said["values"])) if "values" in said else DenseFeatures(dtype)
    )


@dataclass(frozen=True)
class DenseFeatures:
    """One array of shape (n, p), whose chunks are blocks."""

    dtype: np.dtype[Any]
    storage: str = "dense"
    n_values: None = None
    categories: dict[str, list[Any]] = field(default_factory=dict)
    names: tuple[str, ...] = ("X",)

    def grid(self, arrays: dict[str, Array], n_rows: int, n_columns: int) -> BlockGrid:
        """The chunks."""
        return BlockGrid.regular(n_rows, n_columns, *arrays["X"].chunks)

    def shapes(self, grid: BlockGrid, n_sample: int) -> dict[str, tuple[int, ...]]:
        """Rows and columns."""
        return {"X": (grid.n_rows, grid.n_columns), "sample/X": (n_sample, grid.n_columns)}

    def create(self, group: Group, grid: BlockGrid) -> dict[str, Array]:
        """Create X."""
        chunks = (grid.row_chunks[0], grid.column_chunks[0])
        shape = (grid.n_rows, grid.n_columns)
        return {"X": create_array(group, "X", shape, self.dtype, chunks)}

    def write(
        self,
        arrays: dict[str, Array],
        grid: BlockGrid,
        block_id: tuple[int, int],
        block: Any,
        rows: NDArray[np.int64],
    ) -> NDArray[Any]:
        """Write one chunk."""
        start = (grid.row_bounds(block_id[0])[0], grid.column_bounds(block_id[1])[0])
        return write_chunk(arrays["X"], start, block, rows)

    def write_sample(self, group: Group, bands: Sequence[Sequence[Any]]) -> None:
        """Write one array."""
        write_whole(group, "sample/X", np.vstack([np.hstack(band) for band in bands]))

    def read_sample(self, arrays: dict[str, Array], n_columns: int, url: str) -> NDArray[Any]:
        """Read it."""
        return read_whole(arrays["sample/X"], "sample/X", url)

    def blocks(self, arrays: dict[str, Array], grid: BlockGrid, url: str, name: str) -> da.Array:
        """Chunks as NumPy arrays."""
        read = partial(read_chunk, arrays["X"], "X", url)
        return _lazy(read, grid, np.empty((0, 0), dtype=self.dtype), name)

    def block_nbytes(self, grid: BlockGrid) -> tuple[int, ...]:
        """Those of all values."""
        return tuple(n * grid.n_columns * self.dtype.itemsize for n in grid.row_chunks)

    def manifest(self) -> dict[str, Any]:
        """Nothing: shapes and chunks say it."""
        return {}


@dataclass(frozen=True)
class SparseFeatures:
    """CSR blocks of whole rows.

    Attributes
    ----------
    dtype : dtype
    values : tuple of int
        Values of each block.
    """

    dtype: np.dtype[Any]
    values: tuple[int, ...]
    storage: str = "sparse"
    categories: dict[str, list[Any]] = field(default_factory=dict)
    names: tuple[str, ...] = ("X/data", "X/indices", "X/indptr")

    @classmethod
    def of_rows(
        cls, dtype: np.dtype[Any], counts: NDArray[np.int64], grid: BlockGrid
    ) -> SparseFeatures:
        """For rows with so many values each.

        Raises
        ------
        DataError
            If a block has more than can be written.
        """
        edges = np.concatenate([[0], np.cumsum(grid.row_chunks)])
        values = tuple(int(counts[start:stop].sum()) for start, stop in pairwise(edges))
        if max(values) * max(dtype.itemsize, _INDEX.itemsize) > MAX_CHUNK_BYTES:
            raise DataError(
                f"a block has {max(values):,} values, and at most 2 GB can be compressed: use "
                "smaller chunks"
            )
        return cls(dtype, values)

    @property
    def n_values(self) -> int:
        """Values of all blocks."""
        return sum(self.values)

    def grid(self, arrays: dict[str, Array], n_rows: int, n_columns: int) -> BlockGrid:
        """Whole rows, as many as have a beginning."""
        return BlockGrid.regular(n_rows, n_columns, arrays["X/indptr"].shape[1] - 1, n_columns)

    def shapes(self, grid: BlockGrid, n_sample: int) -> dict[str, tuple[int, ...]]:
        """A row for each block."""
        capacity = max(1, *self.values)
        return {
            "X/data": (grid.shape[0], capacity),
            "X/indices": (grid.shape[0], capacity),
            "X/indptr": (grid.shape[0], grid.row_chunks[0] + 1),
            "sample/X/indptr": (n_sample + 1,),
        }

    def create(self, group: Group, grid: BlockGrid) -> dict[str, Array]:
        """Create the three arrays."""
        dtypes = dict.fromkeys(self.names, _INDEX) | {"X/data": self.dtype}
        return _create_parts(group, self.names, self.shapes(grid, 0), dtypes, 1)

    def write(
        self,
        arrays: dict[str, Array],
        grid: BlockGrid,
        block_id: tuple[int, int],
        block: Any,
        rows: NDArray[np.int64],
    ) -> Csr:
        """Write one chunk of each array."""
        i = block_id[0]
        found, expected = (*block.shape, block.nnz), (grid.row_chunks[i], grid.n_columns)
        if found != (*expected, self.values[i]):
            raise DataError(
                f"block {i} of X has shape {block.shape} and {block.nnz} values, and was said to "
                f"have {expected} and {self.values[i]}: the graph that makes it gives other blocks "
                "the second time"
            )
        parts = ((block.data, 0), (block.indices, 0), (block.indptr, block.nnz))
        chunks = []
        for name, (part, filler) in zip(self.names, parts, strict=True):
            chunk = np.full((1, arrays[name].shape[1]), filler, dtype=part.dtype)
            chunk[0, : len(part)] = part
            chunks.append(chunk)
        _write_parts(arrays, self.names, i, chunks)
        return block[rows]

    def write_sample(self, group: Group, bands: Sequence[Sequence[Any]]) -> None:
        """Write the three parts of one CSR matrix."""
        sample = scipy.sparse.vstack([rows for (rows,) in bands], format="csr")
        _write_sample(group, self.names, (sample.data, sample.indices, sample.indptr))

    def read_sample(self, arrays: dict[str, Array], n_columns: int, url: str) -> Csr:
        """Read them."""
        return _csr(_read_sample(arrays, self.names, url), n_columns)

    def blocks(self, arrays: dict[str, Array], grid: BlockGrid, url: str, name: str) -> da.Array:
        """CSR arrays of scipy's."""
        read = partial(_read_csr, [arrays[n] for n in self.names], self.names, url, grid)
        return _lazy(read, grid, empty_csr(grid.n_columns, self.dtype), name)

    def block_nbytes(self, grid: BlockGrid) -> tuple[int, ...]:
        """Those of the values and of where they are."""
        return tuple(
            _nbytes(n, n_rows, self.dtype)
            for n, n_rows in zip(self.values, grid.row_chunks, strict=True)
        )

    def manifest(self) -> dict[str, Any]:
        """Values of each block."""
        return {"values": list(self.values)}


@dataclass(frozen=True)
class CategoricalFeatures:
    """Numbers, and codes of categories that stand for indicator columns behind them.

    Attributes
    ----------
    dtype : dtype
        Of the numbers.
    n_numbers : int
    categories : dict of str to list
        Categories of each column, in order.
    """

    dtype: np.dtype[Any]
    n_numbers: int
    categories: dict[str, list[Any]]
    storage: str = "categorical"
    n_values: None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of categories of each column."""
        return tuple(map(len, self.categories.values()))

    @property
    def names(self) -> tuple[str, ...]:
        """Numbers only where there are some."""
        return ("X/codes", "X/numbers") if self.n_numbers else ("X/codes",)

    @property
    def _code(self) -> np.dtype[Any]:
        return np.min_scalar_type(-max(self.sizes))

    def grid(self, arrays: dict[str, Array], n_rows: int, n_columns: int) -> BlockGrid:
        """Whole rows."""
        return BlockGrid.regular(n_rows, n_columns, arrays["X/codes"].chunks[0], n_columns)

    def shapes(self, grid: BlockGrid, n_sample: int) -> dict[str, tuple[int, ...]]:
        """Rows, and columns of numbers and codes."""
        width = {"X/codes": len(self.sizes), "X/numbers": self.n_numbers}
        return {
            prefix + name: (n_rows, width[name])
            for prefix, n_rows in (("", grid.n_rows), ("sample/", n_sample))
            for name in self.names
        }

    def create(self, group: Group, grid: BlockGrid) -> dict[str, Array]:
        """Create one or two arrays."""
        dtypes = {"X/codes": self._code, "X/numbers": self.dtype}
        return _create_parts(group, self.names, self.shapes(grid, 0), dtypes, grid.row_chunks[0])

    def write(
        self,
        arrays: dict[str, Array],
        grid: BlockGrid,
        block_id: tuple[int, int],
        block: Any,
        rows: NDArray[np.int64],
    ) -> CategoricalBlock:
        """Write one chunk of each array."""
        start = grid.row_bounds(block_id[0])[0]
        _write_parts(arrays, self.names, start, (block.codes, block.numbers))
        sampled: CategoricalBlock = block[rows]
        return sampled

    def write_sample(self, group: Group, bands: Sequence[Sequence[Any]]) -> None:
        """Write codes and numbers."""
        codes = np.concatenate([rows.codes for (rows,) in bands]).astype(self._code)
        numbers = np.concatenate([rows.numbers for (rows,) in bands])
        _write_sample(group, self.names, (codes, numbers))

    def read_sample(self, arrays: dict[str, Array], n_columns: int, url: str) -> Csr:
        """The rows as CSR."""
        return self._block(_read_sample(arrays, self.names, url)).to_csr()

    def blocks(self, arrays: dict[str, Array], grid: BlockGrid, url: str, name: str) -> da.Array:
        """Blocks of codes, which look like NumPy arrays."""
        read = partial(_read_categories, self, [arrays[n] for n in self.names], url)
        return _lazy(read, grid, np.empty((0, 0), dtype=self.dtype), name)

    def read(self, arrays: Sequence[Array], url: str, i: int) -> CategoricalBlock:
        """One block."""
        return self._block(
            [read_chunk(a, name, url, (i, 0)) for a, name in zip(arrays, self.names, strict=True)]
        )

    def _block(self, parts: list[NDArray[Any]]) -> CategoricalBlock:
        codes = np.ascontiguousarray(parts[0], dtype=np.int32)
        numbers = parts[1] if self.n_numbers else np.empty((len(codes), 0), dtype=self.dtype)
        return CategoricalBlock(numbers, codes, self.sizes)

    def block_nbytes(self, grid: BlockGrid) -> tuple[int, ...]:
        """Those of numbers and codes."""
        row = self.n_numbers * self.dtype.itemsize + len(self.sizes) * _INDEX.itemsize
        return tuple(n * row for n in grid.row_chunks)

    def manifest(self) -> dict[str, Any]:
        """Number of the other features, and the categories of each column."""
        return {"numbers": self.n_numbers, "categories": self.categories}


def _create_parts(
    group: Group,
    names: Sequence[str],
    shapes: dict[str, tuple[int, ...]],
    dtypes: dict[str, np.dtype[Any]],
    chunk_rows: int,
) -> dict[str, Array]:
    """Create arrays whose chunks are whole rows."""
    return {
        name: create_array(group, name, shapes[name], dtypes[name], (chunk_rows, shapes[name][1]))
        for name in names
    }


def _write_parts(
    arrays: dict[str, Array], names: Sequence[str], start: int, parts: Sequence[NDArray[Any]]
) -> None:
    """Write a chunk of each array, from one row on; parts that have no array are empty."""
    for name, part in zip(names, parts, strict=False):
        write_chunk(arrays[name], (start, 0), part.astype(arrays[name].dtype), _NO_ROWS)


def _write_sample(group: Group, names: Sequence[str], parts: Sequence[NDArray[Any]]) -> None:
    for name, part in zip(names, parts, strict=False):
        write_whole(group, f"sample/{name}", part)


def _read_sample(arrays: dict[str, Array], names: Sequence[str], url: str) -> list[NDArray[Any]]:
    return [read_whole(arrays[f"sample/{name}"], f"sample/{name}", url) for name in names]


def _lazy(
    read: Callable[..., Any], grid: BlockGrid, like: NDArray[Any] | Csr, name: str
) -> da.Array:
    """The blocks that a function of their numbers reads."""
    array: da.Array = da.map_blocks(
        read, chunks=(grid.row_chunks, grid.column_chunks), dtype=like.dtype, meta=like, name=name
    )
    return array


def _read_categories(
    features: CategoricalFeatures, arrays: Sequence[Array], url: str, block_id: tuple[int, int]
) -> CategoricalBlock:
    return features.read(arrays, url, block_id[0])


def sparse_nbytes(counts: NDArray[np.int64], dtype: np.dtype[Any]) -> int:
    """Bytes of rows with so many values each."""
    return _nbytes(int(counts.sum()), len(counts), dtype)


def _nbytes(n_values: int, n_rows: int, dtype: np.dtype[Any]) -> int:
    return n_values * (dtype.itemsize + _INDEX.itemsize) + (n_rows + 1) * _INDEX.itemsize


def _read_csr(
    arrays: Sequence[Array],
    names: Sequence[str],
    url: str,
    grid: BlockGrid,
    block_id: tuple[int, int],
) -> Csr:
    i = block_id[0]
    data, indices, indptr = (
        read_chunk(array, name, url, (i, 0))[0] for array, name in zip(arrays, names, strict=True)
    )
    indptr = indptr[: grid.row_chunks[i] + 1]
    n_values = int(indptr[-1])
    if n_values < len(data):
        # A slice would keep the filling in memory.
        data, indices = data[:n_values].copy(), indices[:n_values].copy()
    return _csr([data, indices, indptr], grid.n_columns)


def _csr(parts: list[NDArray[Any]], n_columns: int) -> Csr:
    rows = scipy.sparse.csr_array(tuple(parts), shape=(len(parts[2]) - 1, n_columns))
    rows.has_canonical_format = True
    return rows
