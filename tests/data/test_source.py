from __future__ import annotations

import pickle

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.sparse

import dask_dml as dml
from dask_dml.data.csr import empty_csr
from dask_dml.data.layout import FEWEST_PARTS
from dask_dml.data.source import ArraySource, dask_source, joined
from dask_dml.errors import DataError
from dask_dml.runtime.shard import read_ahead

N, P = 100, 3
CHUNKS = (40, 35, 25)


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    return rng.normal(size=(N, P)), rng.integers(0, 2, N), rng.random(N)


def lazy(values, chunks=CHUNKS):
    return da.from_array(values, chunks=(chunks, *values.shape[1:]))


def assert_blocks(source, X, y, weight):
    edges = np.concatenate([[0], np.cumsum(source.row_chunks)])
    loaders = source.loaders()
    assert len(loaders) == len(source.row_chunks)
    for load, start, stop in zip(loaders, edges[:-1], edges[1:], strict=True):
        block = load()
        np.testing.assert_array_equal(block.X, X[start:stop])
        np.testing.assert_array_equal(block.y, y[start:stop])
        if weight is None:
            assert block.sample_weight is None
        else:
            np.testing.assert_array_equal(block.sample_weight, weight[start:stop])


@pytest.mark.parametrize("weighted", [False, True])
def test_blocks_of_arrays_are_their_rows_uncopied(rows, weighted):
    X, y, weight = rows
    weight = weight if weighted else None
    source = ArraySource(X, y, weight, ("a", "b", "c"), CHUNKS)
    assert_blocks(source, X, y, weight)
    assert all(np.shares_memory(load().X, X) for load in source.loaders())
    assert source.block_nbytes == tuple(8 * P * n for n in CHUNKS)


def test_blocks_of_sparse_rows(rows):
    X, y, _ = rows
    X[np.abs(X) < 1.0] = 0.0
    source = ArraySource(scipy.sparse.csr_array(X), y, None, ("a", "b", "c"), CHUNKS)
    np.testing.assert_array_equal(np.vstack([load().X.toarray() for load in source.loaders()]), X)
    assert all(np.shares_memory(load().X.data, source.X.data) for load in source.loaders())
    values = [int(np.count_nonzero(block)) for block in np.split(X, np.cumsum(CHUNKS)[:-1])]
    index_bytes = [12 * n + 4 * (n_rows + 1) for n, n_rows in zip(values, CHUNKS, strict=True)]
    assert source.block_nbytes == tuple(index_bytes)


@pytest.mark.parametrize("weighted", [False, True])
def test_dask_arrays_cut_otherwise_are_cut_like_x(rows, weighted):
    X, y, weight = rows
    source = dask_source(
        lazy(X).rechunk({1: (2, 1)}),
        lazy(y, (50, 50)),
        lazy(weight, (N,)) if weighted else None,
        None,
    )
    assert source.row_chunks == CHUNKS
    assert source.feature_names == ("x0", "x1", "x2")
    assert source.block_nbytes == tuple(8 * P * n for n in CHUNKS)
    assert_blocks(source, X, y, weight if weighted else None)


def test_names_are_kept(rows):
    X, y, _ = rows
    assert dask_source(lazy(X), lazy(y), None, ("p", "q", "r")).feature_names == ("p", "q", "r")


def watched_chunks(X):
    """X lazily, and a list that its chunks' numbers come to as they are computed."""
    seen = []

    def look(block, block_info=None):
        if block_info:
            seen.append(block_info[0]["chunk-location"][0])
        return block

    watched = lazy(X).map_blocks(look, dtype=X.dtype, meta=np.empty((0, 0)))
    return watched, seen


def test_nothing_is_computed_before_a_block_is_asked_for(rows):
    X, y, weight = rows
    watched, seen = watched_chunks(X)
    source = dask_source(watched, lazy(y), lazy(weight), None)
    loaders = source.loaders()
    assert seen == []
    loaders[1]()
    assert seen == [1]


def test_a_loader_carries_its_own_part_of_the_graph_only():
    blocks = da.concatenate(
        [da.from_delayed(dask.delayed(np.full)((10, P), k), (10, P), float) for k in range(50)]
    )
    source = dask_source(blocks, da.zeros(500, chunks=10, dtype=int), None, None)
    loaders = source.loaders()
    assert all(len(loader.graph) < 10 for loader in loaders)
    assert max(len(pickle.dumps(loader)) for loader in loaders) < 5_000
    for k, loader in enumerate(loaders):
        there = pickle.loads(pickle.dumps(loader))  # noqa: S301, as it goes to a worker
        np.testing.assert_array_equal(there().X, np.full((10, P), k))


def test_blocks_of_unknown_lengths_are_counted(rows):
    X, y, _ = rows
    keep = lazy(X)[:, 0] > 0.0
    source = dask_source(lazy(X)[keep], lazy(y)[keep], None, None)
    assert sum(source.row_chunks) == int((X[:, 0] > 0.0).sum())
    assert_blocks(source, X[X[:, 0] > 0.0], y[X[:, 0] > 0.0], None)


def test_a_store_is_read_block_by_block(rows, tmp_path):
    X, y, weight = rows
    dataset = dml.write_dataset(tmp_path / "d.zarr", X, y, chunks=(40, P), sample_weight=weight)
    source = dask_source(dataset.X, dataset.y, dataset.sample_weight, None)
    assert source.row_chunks == (40, 40, 20)
    assert_blocks(source, X, y, weight)
    (tmp_path / "d.zarr" / "X" / "c" / "2" / "0").unlink()
    loaders = source.loaders()
    loaders[0]()
    with pytest.raises(dml.errors.CorruptChunkError, match="c/2/0"):
        loaders[2]()


@pytest.fixture
def split(monkeypatch):
    """Have chunks split however small they are."""
    monkeypatch.setattr("dask_dml.data.layout.SMALL_BLOCK_BYTES", 1)


@pytest.mark.usefixtures("split")
@pytest.mark.parametrize("kind", ["dense", "csr", "weighted"])
def test_large_chunks_are_several_blocks(rows, kind):
    X, y, weight = rows
    weight = weight if kind == "weighted" else None
    given = lazy(X)
    if kind == "csr":
        given = given.map_blocks(scipy.sparse.csr_array, dtype=float, meta=empty_csr(P, float))
    source = dask_source(given, lazy(y), None if weight is None else lazy(weight), None)
    assert source.row_chunks == (*[5] * 8, *[5] * 3, *[4] * 5, *[7, 6, 6, 6])
    assert sum(source.block_nbytes) == pytest.approx(sum(source._chunk_nbytes))
    assert max(source.block_nbytes) <= sum(source.block_nbytes) / FEWEST_PARTS
    if kind == "csr":
        parts = [load().X for load in source.loaders()]
        np.testing.assert_array_equal(np.vstack([part.toarray() for part in parts]), X)
    else:
        assert_blocks(source, X, y, weight)


@pytest.mark.usefixtures("split")
def test_what_is_split_does_not_depend_on_what_the_rows_are(rows):
    X, y, _ = rows
    source = dask_source(lazy(X), lazy(y), None, None)
    persisted = dask_source(lazy(2 * X).persist(), lazy(y).persist(), None, None)
    assert persisted.row_chunks == source.row_chunks
    assert joined(source.loaders()) == set(range(20)) - {0, 8, 16}


@pytest.mark.usefixtures("split")
def test_parts_of_a_chunk_are_read_as_one(rows):
    X, y, _ = rows
    watched, seen = watched_chunks(X)
    loaders = dask_source(watched, lazy(y), None, None).loaders()
    blocks = list(read_ahead(loaders))
    np.testing.assert_array_equal(np.vstack([block.X for block in blocks]), X)
    assert sorted(seen) == [0, 1, 2]
    # Of those that are there already none is read.
    seen.clear()
    list(read_ahead([*blocks[:10], *loaders[10:]]))
    assert sorted(seen) == [1, 2]


def test_shapes_that_do_not_fit_are_refused(rows):
    X, y, weight = rows
    with pytest.raises(DataError, match="X must have 2 dimensions, found 1"):
        dask_source(lazy(y), lazy(y), None, None)
    with pytest.raises(DataError, match="y must have 1 dimension, found 2"):
        dask_source(lazy(X), lazy(X), None, None)
    with pytest.raises(DataError, match="y has 99 rows and X has 100"):
        dask_source(lazy(X), lazy(y[:-1], (99,)), None, None)
    with pytest.raises(DataError, match="sample_weight has 50 rows and X has 100"):
        dask_source(lazy(X), lazy(y), lazy(weight[:50], (50,)), None)
    with pytest.raises(DataError, match="at least one row and one column"):
        dask_source(da.empty((0, 3)), da.empty(0), None, None)
    with pytest.raises(DataError, match="at least one row and one column"):
        dask_source(da.empty((3, 0)), da.empty(3), None, None)
