"""Sparse features in a store: CSR blocks there, and CSR blocks back."""

from __future__ import annotations

import pickle

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.sparse
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from dask_dml.data import ingest, open_dataset, write_dataset
from dask_dml.errors import CorruptChunkError, DataError, IncompatibleError, StoreFormatError

N, P, ROWS = 70, 9, 20


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    dense = np.round(rng.normal(size=(N, P)), 3) * (rng.random((N, P)) < 0.2)
    dense[20:25] = 0.0
    return scipy.sparse.csr_array(dense), rng.integers(0, 2, N)


def same(found, expected):
    assert scipy.sparse.issparse(found)
    assert found.format == "csr"
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.indptr, expected.indptr)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.data, expected.data)


def lazy(X, chunks=(15, -1)):
    return da.from_array(X, chunks=chunks, asarray=False)


FORMS = {
    "csr_array": scipy.sparse.csr_array,
    "csc_matrix": scipy.sparse.csc_matrix,
    "coo_array": scipy.sparse.coo_array,
    "dask": lazy,
    "dask, columns cut": lambda X: lazy(X, (15, 4)),
    "dask, CSC blocks": lambda X: lazy(X).map_blocks(
        scipy.sparse.csc_array, meta=scipy.sparse.csc_array((0, P), dtype=X.dtype)
    ),
}


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("form", FORMS)
def test_rows_are_kept_as_they_are_block_by_block(tmp_path, rows, form, dtype):
    X, y = rows[0].astype(dtype), rows[1]
    written = write_dataset(tmp_path / "d.zarr", FORMS[form](X), y, chunks=(ROWS, -1))
    for dataset in (
        written,
        open_dataset(tmp_path / "d.zarr"),
        pickle.loads(pickle.dumps(written)),  # noqa: S301
    ):
        assert dataset.grid.row_chunks == dataset.X.chunks[0] == (20, 20, 20, 10)
        same(dataset.X.compute(), X)
        for i, block in enumerate(dask.compute(*dataset.X.to_delayed().ravel())):
            same(block, X[i * ROWS : (i + 1) * ROWS])
        np.testing.assert_array_equal(dataset.y.compute(), y)
        assert dataset.n_values == X.nnz
    values = [X[i : i + ROWS].nnz for i in range(0, N, ROWS)]
    expected = [(X.dtype.itemsize + 4) * n for n in values]
    pointers = [4 * (n + 1) for n in (20, 20, 20, 10)]
    assert written.block_nbytes == tuple(np.add(expected, pointers).tolist())


@given(
    n=st.integers(1, 40),
    p=st.integers(1, 8),
    chunk=st.integers(1, 15),
    density=st.sampled_from([0.0, 0.1, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_any_rows_come_back_as_they_were(n, p, chunk, density, seed):
    X = scipy.sparse.random_array((n, p), density=density, format="csr", rng=seed)
    dataset = write_dataset(MemoryStore(), X, np.arange(n), chunks=(chunk, -1), sample_rows=1)
    same(dataset.X.compute(), X)
    assert dataset.sample.X.shape == (1, p)


def test_stored_zeros_nan_and_values_given_twice(rows):
    X = rows[0].copy()
    X.data[:2] = 0.0, np.nan
    doubled = type(X)((np.repeat(X.data / 2, 2), np.repeat(X.indices, 2), 2 * X.indptr), X.shape)
    for given_rows in (X, doubled):
        same(write_dataset(MemoryStore(), given_rows, rows[1]).X.compute(), X)


def test_integers_become_float64(rows):
    X = scipy.sparse.csr_matrix((rows[0] != 0).astype(np.int8))
    same(write_dataset(MemoryStore(), X, rows[1]).X.compute(), X.astype(np.float64))


def test_the_sample_is_sparse(rows):
    X, y = rows
    sample = write_dataset(MemoryStore(), X, y, chunks=(ROWS, -1), sample_rows=11).sample
    same(sample.X, X[sample.index])
    np.testing.assert_array_equal(sample.y, y[sample.index])


def test_blocks_are_cut_by_their_values_and_not_by_their_zeros():
    X = scipy.sparse.csr_array((np.ones(40_000), (np.arange(40_000), np.zeros(40_000, int))))
    X.resize(40_000, 100_000)
    dataset = write_dataset(MemoryStore(), X, np.zeros(40_000))
    assert dataset.grid.shape == (1, 1)
    assert sum(dataset.block_nbytes) < 1e6


def test_repartition_keeps_rows_sparse(tmp_path, rows):
    X, y = rows
    first = write_dataset(tmp_path / "a.zarr", X, y, chunks=(ROWS, -1), target="late")
    second = first.repartition(tmp_path / "b.zarr", "horizontal", chunks=(33, -1))
    same(second.X.compute(), X)
    assert (second.grid.row_chunks, second.target) == ((33, 33, 4), "late")


@pytest.mark.parametrize("layout", ["vertical", "hybrid"])
def test_rows_are_not_cut(rows, layout):
    store = MemoryStore()
    with pytest.raises(IncompatibleError, match=f"X is sparse, and layout='{layout}' cuts rows"):
        write_dataset(store, *rows, layout)
    with pytest.raises(IncompatibleError, match="keeps rows whole"):
        write_dataset(store, *rows, chunks=(20, 3))
    with pytest.raises(StoreFormatError, match="there is nothing"):
        open_dataset(store)


def test_a_graph_that_makes_other_values_the_second_time_is_refused(tmp_path, rows):
    X, y = rows
    made = []

    def changing(block):
        made.append(block)
        return block if len(made) < 8 else 2 * block[:, ::-1] * (block != 0)

    blocks = lazy(X, (ROWS, -1)).map_blocks(changing, meta=scipy.sparse.csr_array((0, P)))
    made.clear()
    with (
        dask.config.set(scheduler="sync"),
        pytest.raises(DataError, match=r"block \d of X has .* the second time"),
    ):
        write_dataset(tmp_path / "d.zarr", blocks, y, chunks=(ROWS, -1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["data", "indices", "indptr"])
@pytest.mark.parametrize("damage", ["flipped", "lost"])
def test_a_damaged_chunk_is_named(tmp_path, rows, name, damage):
    write_dataset(tmp_path / "d.zarr", *rows, chunks=(ROWS, -1))
    file = tmp_path / "d.zarr" / "X" / name / "c" / "2" / "0"
    if damage == "lost":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    with pytest.raises(CorruptChunkError, match=f"chunk c/2/0 of array 'X/{name}'"):
        open_dataset(tmp_path / "d.zarr").X.compute()


def test_a_store_whose_parts_disagree_does_not_open(tmp_path, rows):
    write_dataset(tmp_path / "d.zarr", *rows, chunks=(ROWS, -1))
    group = zarr.open_group(tmp_path / "d.zarr")
    manifest = dict(group.attrs["dask_dml"])
    manifest["features"] = {"values": manifest["features"]["values"][:-1]}
    group.attrs["dask_dml"] = manifest
    with pytest.raises(StoreFormatError, match="is damaged"):
        open_dataset(tmp_path / "d.zarr")


def test_any_zarr_library_reads_the_parts(tmp_path, rows):
    X, y = rows
    write_dataset(tmp_path / "d.zarr", X, y, chunks=(ROWS, -1))
    group = zarr.open_group(tmp_path / "d.zarr", mode="r")
    blocks = []
    for data, indices, indptr in zip(
        *(group[f"X/{name}"][:] for name in ("data", "indices", "indptr")), strict=True
    ):
        last = indptr[-1]
        parts = (data[:last], indices[:last], indptr)
        blocks.append(scipy.sparse.csr_array(parts, shape=(ROWS, P)))
    same(scipy.sparse.vstack(blocks, format="csr")[:N], X)


def test_svmlight_stays_sparse(tmp_path, rows):
    from sklearn.datasets import dump_svmlight_file

    X, y = rows
    dump_svmlight_file(X, y, str(tmp_path / "a.svm"))
    dataset = ingest(str(tmp_path / "a.svm"), tmp_path / "d.zarr")
    found = dataset.X.compute()
    assert dataset.n_values == X.nnz
    np.testing.assert_array_equal(found.data, X.data)
    with pytest.raises(IncompatibleError, match="X is sparse"):
        ingest(str(tmp_path / "a.svm"), tmp_path / "e.zarr", layout="vertical")
