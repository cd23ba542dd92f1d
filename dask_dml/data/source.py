"""Rows in blocks, wherever they are: what an estimator was given, as the runtime needs it.

A source says how rows are cut into blocks and how one block is had. `ArraySource` has its rows in
this process; `DaskSource` has dask arrays, whose blocks may be in a store, on a cluster, or not
computed yet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import dask
import dask.array as da
import numpy as np
import scipy.sparse
from dask.delayed import Delayed, delayed
from dask.optimization import cull
from numpy.typing import NDArray

from dask_dml.data.csr import as_csr, csr_nbytes, csr_rows, empty_csr, is_csr
from dask_dml.data.inputs import made_up_names, with_known_chunks
from dask_dml.errors import DataError


class RawBlock(NamedTuple):
    """One block of rows as given: X of shape (n, p), y of shape (n,), weights of shape (n,)."""

    X: Any
    y: NDArray[np.generic]
    sample_weight: NDArray[np.generic] | None


class BlockLoader(Protocol):
    """Gets one block; picklable, so that it can be called on the machine that needs it."""

    def __call__(self) -> RawBlock: ...


class Source(Protocol):
    """Rows in blocks.

    Attributes
    ----------
    feature_names : tuple of str
        Names of the columns, made up where there are none.
    row_chunks : tuple of int
        Rows of each block.
    block_nbytes : tuple of float
        Bytes of X of each block in memory.
    """

    @property
    def feature_names(self) -> tuple[str, ...]: ...
    @property
    def row_chunks(self) -> tuple[int, ...]: ...
    @property
    def block_nbytes(self) -> tuple[float, ...]: ...

    def loaders(self) -> list[BlockLoader]:
        """One loader a block."""
        ...


@dataclass(frozen=True, slots=True)
class _SliceLoader:
    source: ArraySource
    start: int
    stop: int

    def __call__(self) -> RawBlock:
        rows = slice(self.start, self.stop)
        X, weight = self.source.X, self.source.sample_weight
        return RawBlock(
            csr_rows(X, self.start, self.stop) if is_csr(X) else X[rows],
            self.source.y[rows],
            None if weight is None else weight[rows],
        )


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Rows in this process.

    Parameters
    ----------
    X : ndarray or CSR matrix of shape (n, p)
    y : ndarray of shape (n,)
    sample_weight : ndarray of shape (n,) or None
    feature_names : tuple of str
    row_chunks : tuple of int
        Rows of each block.
    """

    X: Any
    y: NDArray[np.generic]
    sample_weight: NDArray[np.generic] | None
    feature_names: tuple[str, ...]
    row_chunks: tuple[int, ...]

    @property
    def block_nbytes(self) -> tuple[float, ...]:
        """Bytes of X of each block."""
        return tuple(
            float(csr_nbytes(block.X) if is_csr(block.X) else block.X.nbytes)
            for block in (loader() for loader in self.loaders())
        )

    def loaders(self) -> list[BlockLoader]:
        """One loader a block; slices, which copy nothing."""
        edges = np.concatenate([[0], np.cumsum(self.row_chunks)])
        return [_SliceLoader(self, int(start), int(stop)) for start, stop in pairwise(edges)]


@dataclass(frozen=True, slots=True)
class GraphLoader:
    """Computes one block from its own part of a task graph, in the process that calls it."""

    graph: Mapping[Any, Any]
    keys: tuple[Any, ...]

    def __call__(self) -> RawBlock:
        return raw_block(dask.get(self.graph, [*self.keys]))


@dataclass(frozen=True, slots=True)
class FetchLoader:
    """Fetches one block that is on a cluster."""

    parts: tuple[Delayed, ...]

    def __call__(self) -> RawBlock:
        return raw_block(dask.compute(*self.parts))


def raw_block(values: Sequence[Any]) -> RawBlock:
    """A block of X, y and, if there are any, weights."""
    return RawBlock(values[0], values[1], values[2] if len(values) > 2 else None)


@dataclass(frozen=True, eq=False)
class DaskSource:
    """Rows in dask arrays that are cut alike.

    Parameters
    ----------
    X : dask array of shape (n, p)
        One chunk across.
    y : dask array of shape (n,)
    sample_weight : dask array of shape (n,) or None
    feature_names : tuple of str
    known_nbytes : tuple of float or None
        Bytes of X of each block, where they are known without its being computed.
    """

    X: da.Array
    y: da.Array
    sample_weight: da.Array | None
    feature_names: tuple[str, ...]
    known_nbytes: tuple[float, ...] | None = None

    @property
    def row_chunks(self) -> tuple[int, ...]:
        """Rows of each block."""
        return tuple(int(n) for n in self.X.chunks[0])

    @cached_property
    def block_nbytes(self) -> tuple[float, ...]:
        """Bytes of X of each block."""
        if self.known_nbytes is not None:
            return self.known_nbytes
        row_nbytes = float(self.X.dtype.itemsize * self.X.shape[1])
        if is_csr(self.X._meta):
            # How many values there are shows when a block is made: one stands for the others.
            block = int(np.argmax(np.array(self.row_chunks) > 0))
            (part,) = self.X.to_delayed(optimize_graph=True)[block]
            row_nbytes = delayed(csr_nbytes)(part).compute() / self.row_chunks[block]
        return tuple(n * row_nbytes for n in self.row_chunks)

    @property
    def arrays(self) -> tuple[da.Array, ...]:
        """The arrays that there are: X, y, and weights if any."""
        return tuple(a for a in (self.X, self.y, self.sample_weight) if a is not None)

    def parts(self) -> list[tuple[Delayed, ...]]:
        """The chunks of X, y and, if any, weights of each block, lazy, under their own keys."""
        columns = [array.to_delayed(optimize_graph=True).ravel() for array in self.arrays]
        return list(zip(*columns, strict=True))

    @property
    def is_on_cluster(self) -> bool:
        """Whether some of it has been computed and is held by a cluster."""
        return any(
            type(task).__module__.startswith("distributed")
            for array in self.arrays
            for task in dict(array.__dask_graph__()).values()
        )

    def loaders(self) -> list[BlockLoader]:
        """One loader a block, each with no more of the graph than it needs."""
        parts = self.parts()
        if self.is_on_cluster:
            return [FetchLoader(part) for part in parts]
        graph = {
            key: task for part in parts[0] for key, task in dict(part.__dask_graph__()).items()
        }
        loaders: list[BlockLoader] = []
        for block in parts:
            keys = tuple(part.key for part in block)
            own, _ = cull(graph, list(keys))
            loaders.append(GraphLoader(dict(own), keys))
        return loaders


def dask_source(
    X: da.Array,
    y: da.Array,
    sample_weight: da.Array | None,
    feature_names: tuple[str, ...] | None,
    known_nbytes: tuple[float, ...] | None = None,
) -> DaskSource:
    """Cut dask arrays alike, into blocks of whole rows.

    Parameters
    ----------
    X : dask array of shape (n, p)
        Its row chunks are the blocks; column chunks are joined.
    y, sample_weight : dask array of shape (n,)
        Rechunked to the rows of X where they are cut otherwise.
    feature_names : tuple of str or None
        None makes them up.
    known_nbytes : tuple of float or None
        Bytes of X of each block, where they are known.

    Raises
    ------
    DataError
        If dimensions or lengths do not match.
    """
    columns = {"y": y} if sample_weight is None else {"y": y, "sample_weight": sample_weight}
    if X.ndim != 2:
        raise DataError(f"X must have 2 dimensions, found {X.ndim}: shape {X.shape}")
    if X.dtype.kind not in "biufO":
        raise DataError(f"X holds {X.dtype} values and real numbers are needed: convert it")
    if scipy.sparse.issparse(X._meta) and not is_csr(X._meta):
        form = partial(as_csr, dtype=X.dtype)
        X = da.map_blocks(form, X, dtype=X.dtype, meta=empty_csr(X.shape[1], X.dtype))
    if X.numblocks[1] > 1:
        X = X.rechunk({1: -1})
    X = with_known_chunks(X)
    aligned = {}
    for name, column in columns.items():
        if column.ndim != 1:
            raise DataError(f"{name} must have 1 dimension, found {column.ndim}: {column.shape}")
        column = with_known_chunks(column)
        if column.shape[0] != X.shape[0]:
            raise DataError(
                f"{name} has {column.shape[0]} rows and X has {X.shape[0]}: inconsistent numbers "
                "of samples; give both the same rows"
            )
        aligned[name] = (
            column.rechunk((X.chunks[0],)) if column.chunks[0] != X.chunks[0] else column
        )
    if feature_names is None:
        feature_names = tuple(made_up_names(X.shape[1]))
    if math.prod(X.shape) == 0:
        raise DataError(f"X has shape {X.shape}: at least one row and one column are needed")
    weight = aligned.get("sample_weight")
    return DaskSource(X, aligned["y"], weight, feature_names, known_nbytes)
