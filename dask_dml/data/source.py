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
from itertools import accumulate, chain, pairwise
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
from dask_dml.data.layout import split_rows
from dask_dml.errors import DataError


class RawBlock(NamedTuple):
    """One block of rows as given: X of shape (n, p), y of shape (n,), weights of shape (n,)."""

    X: Any
    y: NDArray[np.generic]
    sample_weight: NDArray[np.generic] | None


class BlockLoader(Protocol):
    """Gets one block; picklable, so that it can be called on the machine that needs it."""

    def __call__(self) -> RawBlock: ...


@dataclass(frozen=True, slots=True)
class Rows:
    """From which row of a chunk to which; those of the last block of a chunk have no end."""

    start: int
    stop: int | None


WHOLE = Rows(0, None)


class Cut(NamedTuple):
    """A block as rows of a chunk."""

    chunk: int
    rows: Rows


def rows_of(values: Any, rows: Rows) -> Any:
    """Some rows of X, y or weights, whose values are not copied."""
    if rows == WHOLE:
        return values
    if is_csr(values):
        return csr_rows(values, rows.start, values.shape[0] if rows.stop is None else rows.stop)
    return values[rows.start : rows.stop]


def block_rows(block: RawBlock, rows: Rows) -> RawBlock:
    """Some rows of a block, which are not copied."""
    weight = block.sample_weight
    X, y = rows_of(block.X, rows), rows_of(block.y, rows)
    return RawBlock(X, y, None if weight is None else rows_of(weight, rows))


@dataclass(frozen=True, slots=True)
class PartLoader:
    """Gets a block that is a part of a chunk; parts that follow each other are read as one."""

    whole: BlockLoader
    cut: Cut

    def __call__(self) -> RawBlock:
        return block_rows(self.whole(), self.cut.rows)


def follows(block: object, other: object) -> bool:
    """Whether a block is had by reading the chunk that another one is a part of."""
    return (
        isinstance(block, PartLoader)
        and isinstance(other, PartLoader)
        and block.cut.chunk == other.cut.chunk
    )


def joined(loaders: Sequence[BlockLoader]) -> frozenset[int]:
    """Blocks that are read with the one before them."""
    pairs = enumerate(pairwise(loaders), 1)
    return frozenset(number for number, (other, block) in pairs if follows(block, other))


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
    """Rows in dask arrays that are cut alike, whose large chunks are several blocks.

    Parameters
    ----------
    X : dask array of shape (n, p)
        One chunk across.
    y : dask array of shape (n,)
    sample_weight : dask array of shape (n,) or None
    feature_names : tuple of str
    known_nbytes : tuple of float or None
        Bytes of X of each chunk, where they are known without its being computed.
    """

    X: da.Array
    y: da.Array
    sample_weight: da.Array | None
    feature_names: tuple[str, ...]
    known_nbytes: tuple[float, ...] | None = None

    @property
    def row_chunks(self) -> tuple[int, ...]:
        """Rows of each block."""
        return tuple(chain.from_iterable(self._split))

    @property
    def block_nbytes(self) -> tuple[float, ...]:
        """Bytes of X of each block."""
        return tuple(
            nbytes * (n / max(sum(parts), 1))
            for nbytes, parts in zip(self._chunk_nbytes, self._split, strict=True)
            for n in parts
        )

    @property
    def cuts(self) -> list[Cut]:
        """Which rows of which chunk each block is."""
        return [
            Cut(chunk, Rows(start, stop))
            for chunk, parts in enumerate(self._split)
            for edges in ((0, *accumulate(parts[:-1])),)
            for start, stop in zip(edges, (*edges[1:], None), strict=True)
        ]

    @cached_property
    def _split(self) -> list[tuple[int, ...]]:
        return split_rows([int(n) for n in self.X.chunks[0]], self._chunk_nbytes)

    @cached_property
    def _chunk_nbytes(self) -> tuple[float, ...]:
        if self.known_nbytes is not None:
            return self.known_nbytes
        row_nbytes = float(self.X.dtype.itemsize * self.X.shape[1])
        if is_csr(self.X._meta):
            # How many values there are shows when a chunk is made: one stands for the others.
            chunk = int(np.argmax(np.array(self.X.chunks[0]) > 0))
            (part,) = self.X.to_delayed(optimize_graph=True)[chunk]
            row_nbytes = delayed(csr_nbytes)(part).compute() / self.X.chunks[0][chunk]
        return tuple(int(n) * row_nbytes for n in self.X.chunks[0])

    @property
    def arrays(self) -> tuple[da.Array, ...]:
        """The arrays that there are: X, y, and weights if any."""
        return tuple(a for a in (self.X, self.y, self.sample_weight) if a is not None)

    def chunks(self) -> list[tuple[Delayed, ...]]:
        """The chunks of X, y and, if any, weights, lazy, under their own keys."""
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
        """One loader a block."""
        whole = self.chunk_loaders()
        return [
            whole[cut.chunk] if cut.rows == WHOLE else PartLoader(whole[cut.chunk], cut)
            for cut in self.cuts
        ]

    def chunk_loaders(self) -> list[BlockLoader]:
        """One loader a chunk, each with no more of the graph than it needs."""
        chunks = self.chunks()
        if self.is_on_cluster:
            return [FetchLoader(chunk) for chunk in chunks]
        graph = {
            key: task for part in chunks[0] for key, task in dict(part.__dask_graph__()).items()
        }
        loaders: list[BlockLoader] = []
        for chunk in chunks:
            keys = tuple(part.key for part in chunk)
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
        Its row chunks are the blocks, or several blocks where they are large; column chunks are
        joined.
    y, sample_weight : dask array of shape (n,)
        Rechunked to the rows of X where they are cut otherwise.
    feature_names : tuple of str or None
        None makes them up.
    known_nbytes : tuple of float or None
        Bytes of X of each chunk, where they are known.

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
