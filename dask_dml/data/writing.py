"""Writing a dataset: how its arrays lie and are cut, and its blocks, row after row of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from dask.base import compute, get_scheduler
from dask.delayed import delayed
from numpy.typing import NDArray

from dask_dml.data import inputs
from dask_dml.data.dataset import Dataset, open_dataset
from dask_dml.data.features import DenseFeatures, Features, SparseFeatures, sparse_nbytes
from dask_dml.data.inputs import Matrix, Target
from dask_dml.data.layout import BlockGrid, Layout, choose_grid, explicit_grid, sample_rows
from dask_dml.data.store import (
    MAX_CHUNK_BYTES,
    Group,
    Place,
    check_all_chunks_arrived,
    check_free,
    create_array,
    draft,
    find_place,
    is_process_local,
    seal,
    write_chunk,
    write_whole,
)
from dask_dml.errors import DataError, IncompatibleError

_SAMPLE_BYTES = 16_000_000


def write_dataset(
    store: Any,
    X: Any,
    y: Any,
    layout: Layout = "horizontal",
    chunks: Any = "auto",
    feature_names: Sequence[str] | None = None,
    sample_weight: Any = None,
    ids: Any = None,
    overwrite: bool = False,
    *,
    target: str | None = None,
    sample_rows: int | Literal["auto"] = "auto",
    seed: int = 0,
) -> Dataset:
    """Write rows to a Zarr store, block by block, in their order.

    Parameters
    ----------
    store : str, Path or zarr store
        A path, an fsspec URL such as ``s3://bucket/name.zarr``, or a zarr store. A path is
        written under a hidden temporary name beside it and renamed when complete; elsewhere
        the manifest is written last. Either way, an unfinished dataset does not open.
    X : array-like, sparse matrix, dask array, pandas, dask or polars DataFrame
        Shape (n, p). float32 and float64 are kept, float16 becomes float32, other numbers and
        booleans float64. NaN may be written. Sparse matrices, and dask arrays of such blocks, are
        stored as CSR. Dask collections of unknown lengths are computed once more, to find the
        lengths, and those of sparse blocks to count their values.
    y : array-like, dask array or Series
        Shape (n,). Strings and booleans are stored as codes of the sorted labels.
    layout : {"horizontal", "vertical", "hybrid"}
    chunks : "auto", (int, int), dict or int
        Rows and columns of a block; "auto" aims at blocks of at most 32 MB.
    feature_names : sequence of str, optional
        By default the columns of a DataFrame, else x0, x1, ...
    sample_weight : array-like, dask array or Series, optional
        Shape (n,), finite and not negative.
    ids : array-like, dask array or Series, optional
        Shape (n,), integers or strings that name the rows.
    overwrite : bool
        Replace a Zarr store that is already there; a local one stays until the new one is
        complete. Anything else that is there is never touched.
    target : str, optional
        Name of y; by default that of a Series.
    sample_rows : int or "auto"
        Rows of the sample kept beside the data; "auto" is the larger of 10,000 and 40 for each
        column, but at most 16 MB.
    seed : int
        Of the sample.

    Returns
    -------
    Dataset

    Raises
    ------
    DataError
        If shapes or values cannot be stored; the message names the argument.
    StoreExistsError
        If something is there and ``overwrite`` is False, or it is not a Zarr store.
    IncompatibleError
        If ``chunks`` and ``layout`` do not go together, or X is sparse and is not to be written in
        whole rows.

    Notes
    -----
    Blocks of dask collections are written where they are computed: by the workers of the current
    cluster, or by threads. Other inputs are written by threads of this process.
    """
    place = find_place(store)
    check_free(place, overwrite)
    matrix = inputs.as_matrix(X)
    n_rows, n_columns = matrix.shape
    columns = {"y": inputs.as_column(y, "y", n_rows)}
    if sample_weight is not None:
        columns["sample_weight"] = inputs.as_column(sample_weight, "sample_weight", n_rows)
        inputs.block_dtype(columns["sample_weight"].values.dtype, "sample_weight")
    if ids is not None:
        columns["ids"] = inputs.as_column(ids, "ids", n_rows)
    features, grid, itemsize = _planned(matrix, chunks, layout)
    schema = Schema(
        grid=grid,
        layout=layout,
        features=features,
        feature_names=inputs.feature_names_of(feature_names, matrix),
        target=inputs.describe_target(columns["y"]),
        target_name=target if target is not None else columns["y"].name,
        has_weight="sample_weight" in columns,
        id_dtype=inputs.describe_ids(columns["ids"]) if "ids" in columns else None,
        n_sample=sample_size(sample_rows, n_rows, n_columns, itemsize),
        seed=seed,
    )
    blocks = matrix.blocks(schema.grid.row_chunks, schema.grid.column_chunks).to_delayed()
    series = {
        name: column.blocks(schema.grid.row_chunks).to_delayed() for name, column in columns.items()
    }
    bands = [
        (i, list(blocks[i]), {name: parts[i] for name, parts in series.items()})
        for i in range(schema.grid.shape[0])
    ]
    is_local = matrix.is_local and all(column.is_local for column in columns.values())
    with draft(place, overwrite) as group:
        writer = _Writer(group, schema)
        if is_process_local(place.store) and not is_local and get_scheduler() is not None:
            # A store in this process's memory: workers would fill copies of it.
            written = [writer.write_band(*compute(*band)) for band in bands]
        else:
            lazy = [writer.write_band(*band, call=partial(delayed, pure=False)) for band in bands]
            written = inputs.run(lazy, is_local)
        writer.seal(written, place)
    return open_dataset(store)


@dataclass(frozen=True)
class Schema:
    """What a dataset's arrays will hold, known before the first block is written."""

    grid: BlockGrid
    layout: Layout
    features: Features
    feature_names: list[str]
    target: Target
    target_name: str | None
    has_weight: bool
    id_dtype: np.dtype[Any] | None
    n_sample: int
    seed: int


def write_bands(
    store: Any,
    schema: Schema,
    bands: Iterable[tuple[Any, dict[str, NDArray[Any]]]],
    overwrite: bool = False,
) -> Dataset:
    """Write a dataset from rows of blocks that are made one after the other.

    Parameters
    ----------
    store : str, Path or zarr store
        See `write_dataset`; written just as safely.
    schema : Schema
    bands : iterable of (ndarray or CategoricalBlock, dict of str to ndarray)
        For each row of blocks, X of shape (rows, p) and the columns beside it by name.
    overwrite : bool

    Raises
    ------
    DataError
        If bands are not those of the schema's grid.
    StoreExistsError
        If something is there and ``overwrite`` is False, or it is not a Zarr store.
    """
    place = find_place(store)
    grid = schema.grid
    with draft(place, overwrite) as group:
        writer = _Writer(group, schema)
        written = []
        for i, (X, columns) in enumerate(bands):
            blocks = [X[:, slice(*grid.column_bounds(j))] for j in range(grid.shape[1])]
            written.append(writer.write_band(i, blocks, columns))
        if len(written) < grid.shape[0]:
            raise DataError(f"{len(written)} rows of blocks came, the grid has {grid.shape[0]}")
        writer.seal(written, place)
    return open_dataset(store)


class _Writer:
    """Creates the arrays of a dataset and writes them one row of blocks after the other."""

    def __init__(self, group: Group, schema: Schema) -> None:
        self.group = group
        self.schema = schema
        grid = schema.grid
        rows = grid.row_chunks[0]
        self.features = schema.features.create(group, grid)
        self.arrays = {
            **self.features,
            "y": create_array(group, "y", (grid.n_rows,), schema.target.dtype, (rows,)),
        }
        if schema.has_weight:
            self.arrays["sample_weight"] = create_array(
                group, "sample_weight", (grid.n_rows,), np.dtype(np.float64), (rows,)
            )
        if schema.id_dtype is not None:
            self.arrays["ids"] = create_array(
                group, "ids", (grid.n_rows,), schema.id_dtype, (rows,)
            )
        self.sample_rows = sample_rows(grid, schema.n_sample, schema.seed)

    def write_band(
        self,
        i: int,
        blocks: list[Any],
        columns: dict[str, Any],
        call: Callable[[Any], Any] = lambda function: function,
    ) -> list[Any]:
        """Write the blocks of row ``i``; return their sampled rows and the distinct y.

        With ``call=dask.delayed``, blocks are Delayed and what is returned is still to be computed.
        """
        grid, rows = self.schema.grid, self.sample_rows[i]
        start = grid.row_bounds(i)[0]
        write = call(self.schema.features.write)
        X = [write(self.features, grid, (i, j), block, rows) for j, block in enumerate(blocks)]
        y = call(self.schema.target.encode)(columns["y"])
        distinct = call(inputs.few_distinct)(y) if self._wants_distinct else None
        sampled = {"y": call(write_chunk)(self.arrays["y"], (start,), y, rows)}
        for name, checked in (
            ("sample_weight", inputs.checked_weights),
            ("ids", inputs.checked_ids),
        ):
            if name in self.arrays:
                values = call(checked)(columns[name], i)
                sampled[name] = call(write_chunk)(self.arrays[name], (start,), values, rows)
        return [X, sampled, distinct]

    def seal(self, written: list[Any], place: Place) -> None:
        """Write the sample and, last, the manifest."""
        schema, grid = self.schema, self.schema.grid
        check_all_chunks_arrived(self.arrays, place)
        schema.features.write_sample(self.group, [X for X, _, _ in written])
        sample: dict[str, NDArray[Any]] = {}
        for name in ("y", "sample_weight"):
            if name in self.arrays:
                sample[name] = np.concatenate([sampled[name] for _, sampled, _ in written])
        sample["index"] = np.concatenate(
            [grid.row_bounds(i)[0] + rows for i, rows in enumerate(self.sample_rows)]
        )
        for name, values in sample.items():
            write_whole(self.group, f"sample/{name}", values)
        labels = schema.target.labels
        classes = None if labels is None else labels.tolist()
        if self._wants_distinct:
            classes = inputs.merge_distinct(distinct for _, _, distinct in written)
        seal(
            self.group,
            "dataset",
            {
                "layout": schema.layout,
                "n_rows": grid.n_rows,
                "n_columns": grid.n_columns,
                "dtype": str(schema.features.dtype),
                "features": schema.features.manifest(),
                "feature_names": schema.feature_names,
                "target": schema.target_name,
                "labels": None if labels is None else labels.dtype.kind,
                "classes": classes,
                "columns": [n for n in self.arrays if n != "y" and n not in self.features],
                "sample": {"rows": schema.n_sample, "seed": schema.seed},
            },
        )

    @property
    def _wants_distinct(self) -> bool:
        return self.schema.target.labels is None and self.schema.target.dtype.kind in "iu"


def grid_for(
    n_rows: int, n_columns: int, itemsize: float, chunks: Any, layout: Layout
) -> BlockGrid:
    """Return the grid that ``chunks`` asks for; "auto" fits blocks to this machine's memory.

    Raises
    ------
    DataError
        If ``chunks`` or ``layout`` cannot be understood, or a block is 2 GB or more.
    IncompatibleError
        If they do not go together.
    """
    if isinstance(chunks, str) and chunks == "auto":
        return choose_grid(n_rows, n_columns, itemsize, layout, _memory_bytes())
    grid = explicit_grid(n_rows, n_columns, chunks, layout)
    block_bytes = grid.row_chunks[0] * grid.column_chunks[0] * itemsize
    if block_bytes > MAX_CHUNK_BYTES:
        raise DataError(
            f"chunks={chunks!r} makes blocks of {block_bytes / 1e9:.1f} GB, at most 2 GB can be "
            "compressed: use smaller chunks"
        )
    return grid


def _planned(matrix: Matrix, chunks: Any, layout: Layout) -> tuple[Features, BlockGrid, float]:
    """How a matrix is going to lie in a store, how it is cut, and bytes of each row and column."""
    n_rows, n_columns = matrix.shape
    if not matrix.is_sparse:
        itemsize = matrix.dtype.itemsize
        grid = grid_for(n_rows, n_columns, itemsize, chunks, layout)
        return DenseFeatures(matrix.dtype), grid, itemsize
    if layout != "horizontal":
        raise IncompatibleError(
            f"X is sparse, and layout={layout!r} cuts rows: blocks of sparse rows hold whole ones. "
            "Use layout='horizontal', or dense blocks (X.toarray(), or of a dask array "
            "X.map_blocks(lambda block: block.toarray()))"
        )
    counts = matrix.row_counts()
    mean_nbytes = sparse_nbytes(counts, matrix.dtype) / (n_rows * n_columns)
    grid = grid_for(n_rows, n_columns, mean_nbytes, chunks, layout)
    return SparseFeatures.of_rows(matrix.dtype, counts, grid), grid, mean_nbytes


def sample_size(asked: Any, n_rows: int, n_columns: int, itemsize: float) -> int:
    """Return the rows of the sample that ``asked`` means; "auto" is described in `write_dataset`.

    Raises
    ------
    DataError
        If it is not "auto" or a number from 1 to ``n_rows``.
    """
    if asked == "auto":
        limit = max(1, int(_SAMPLE_BYTES / (n_columns * itemsize)))
        return min(n_rows, max(10_000, 40 * n_columns), limit)
    if not isinstance(asked, int | np.integer) or not 1 <= asked <= n_rows:
        raise DataError(f"sample_rows must be 'auto' or from 1 to {n_rows}, found {asked!r}")
    return int(asked)


def _memory_bytes() -> int:
    """Return the memory of this machine or container."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(file).read_text()))
        except (OSError, ValueError):
            continue
    return min(limits)
