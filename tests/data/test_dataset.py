from __future__ import annotations

import pickle

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import polars as pl
import pytest
import zarr
from zarr.storage import MemoryStore

from dask_dml.data import open_dataset, write_dataset
from dask_dml.errors import DataError, IncompatibleError, StoreError, StoreFormatError

LAYOUTS = {"horizontal": (300, -1), "vertical": (-1, 3), "hybrid": (300, 3)}


def same(dataset, X, y) -> None:
    np.testing.assert_array_equal(dataset.X.compute(), X)
    np.testing.assert_array_equal(dataset.y.compute(), y)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float64", ">f8", ">f4"])
def test_round_trip_in_every_layout_keeps_values_and_dtype(tmp_path, flights, layout, dtype):
    X, y = flights[0].astype(dtype), flights[1]
    written = write_dataset(tmp_path / "d.zarr", X, y, layout=layout, chunks=LAYOUTS[layout])
    opened = open_dataset(str(tmp_path / "d.zarr"))
    for dataset in (written, opened):
        same(dataset, X, y)
        assert dataset.X.dtype == dataset.X.compute().dtype == np.dtype(dtype).newbyteorder("=")
        assert dataset.y.dtype == dataset.y.compute().dtype
        assert dataset.layout == layout
        assert dataset.X.chunks == (dataset.grid.row_chunks, dataset.grid.column_chunks)
        assert dataset.y.chunks == (dataset.grid.row_chunks,)
        assert dataset.feature_names == [f"x{j}" for j in range(7)]
        assert (dataset.n_rows, dataset.n_columns) == (1_000, 7)


@pytest.mark.parametrize("source", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_repartition_between_all_layouts_is_exact(tmp_path, flights, source, layout):
    X, y = flights
    X[3, 2] = np.nan
    weights = np.linspace(0, 1, 1_000)
    ids = np.array([f"row {i}" for i in range(1_000)])
    first = write_dataset(
        tmp_path / "a.zarr",
        X,
        y,
        source,
        LAYOUTS[source],
        sample_weight=weights,
        ids=ids,
        feature_names=list("abcdefg"),
        target="late",
    )
    second = first.repartition(tmp_path / "b.zarr", layout=layout, chunks=LAYOUTS[layout])
    same(second, X, y)
    np.testing.assert_array_equal(second.sample_weight.compute(), weights)
    np.testing.assert_array_equal(second.ids.compute(), ids)
    assert second.feature_names == list("abcdefg")
    assert second.target == "late"
    assert second.classes.tolist() == first.classes.tolist() == ["early", "late"]
    assert second.sample.index.size == first.sample.index.size


@pytest.mark.parametrize(
    ("y", "classes"),
    [
        (["b", "a", "b", "c"], ["a", "b", "c"]),
        (np.array(["b", "a", "b", "c"], dtype=object), ["a", "b", "c"]),
        (pd.Series(["b", "a", "b", "c"], dtype="category", name="t"), ["a", "b", "c"]),
        (pd.Series(["b", "a", "b", "c"]), ["a", "b", "c"]),
        (pl.Series(["b", "a", "b", "c"]), ["a", "b", "c"]),
        ([True, False, True, True], [False, True]),
        (np.array([3, 1, 3, -2], dtype=np.int8), [-2, 1, 3]),
        (np.array([3, 1, 3, 2], dtype=">u8"), [1, 2, 3]),
        (np.array([3, 1, 3, 2], dtype=object), [1, 2, 3]),
        ([0.5, 1.0, 2.5, np.nan], None),
        (np.array([0.5, 1.0, 2.5, 4], dtype=np.float16), None),
    ],
)
def test_y_comes_back_as_it_was(y, classes):
    dataset = write_dataset(MemoryStore(), np.eye(4), y, chunks=(2, -1))
    got = dataset.y.compute()
    np.testing.assert_array_equal(got, np.asarray(y))
    np.testing.assert_array_equal(dataset.sample.y, np.asarray(y))
    assert got.dtype == dataset.y.dtype
    assert (None if dataset.classes is None else dataset.classes.tolist()) == classes


def test_integers_of_many_values_are_not_classes():
    n = 1_001
    dataset = write_dataset(MemoryStore(), np.zeros((n, 1)), np.arange(n), chunks=(400, -1))
    assert dataset.classes is None
    few = write_dataset(MemoryStore(), np.zeros((n, 1)), np.arange(n) % 1_000, chunks=(400, -1))
    assert few.classes.tolist() == list(range(1_000))


X_FRAME = pd.DataFrame({"a": [1, 2, 3, 4], "b": [0.5, 1.5, 2.5, np.nan], "c": [True, False] * 2})


@pytest.mark.parametrize(
    "X",
    [
        X_FRAME,
        dd.from_pandas(X_FRAME, npartitions=2),
        pl.from_pandas(X_FRAME),
        X_FRAME.convert_dtypes(),
    ],
    ids=["pandas", "dask", "polars", "nullable"],
)
def test_frames_give_names_and_floats(X):
    dataset = write_dataset(MemoryStore(), X, pd.Series([0, 1, 0, 1], name="late"), chunks=(3, -1))
    assert dataset.feature_names == ["a", "b", "c"]
    assert dataset.target == "late"
    assert dataset.X.dtype == np.float64
    np.testing.assert_array_equal(dataset.X.compute(), X_FRAME.to_numpy(dtype=float))


def test_a_frame_of_float32_stays_float32():
    frame = pd.DataFrame({"a": np.ones(3, np.float32), "b": np.ones(3, np.float16)})
    assert write_dataset(MemoryStore(), frame, [1, 2, 3]).X.dtype == np.float32


def test_columns_that_are_not_numeric_are_named():
    frame = X_FRAME.assign(d=list("wxyz"), e=pd.Timestamp("2013-01-01"))
    for X in (frame, dd.from_pandas(frame, npartitions=2), pl.from_pandas(frame)):
        with pytest.raises(DataError, match=r"not numeric: d \(.*\), e \("):
            write_dataset(MemoryStore(), X, [0, 1, 0, 1])


def test_dask_arrays_of_unknown_chunks_and_other_chunks(tmp_path, flights):
    X, y = flights
    lazy_X, lazy_y = da.from_array(X, chunks=(170, 4)), da.from_array(y, chunks=90)
    keep = X[:, 1] > 0
    unknown = da.from_array(X, chunks=(170, 7))[da.from_array(keep, chunks=170)]
    unknown_y = lazy_y[da.from_array(keep, chunks=90)]
    assert np.isnan(unknown.shape[0])
    same(write_dataset(tmp_path / "a.zarr", lazy_X, lazy_y, chunks=(300, -1)), X, y)
    same(write_dataset(tmp_path / "b.zarr", unknown, unknown_y, chunks=(99, -1)), X[keep], y[keep])
    assert np.isnan(unknown.shape[0]), "the caller's array was changed"


def test_ids_and_weights_stand_beside_the_rows():
    dataset = write_dataset(
        MemoryStore(),
        np.eye(5),
        np.arange(5),
        chunks=(2, -1),
        ids=["a", "é", "", "d", "e"],
        sample_weight=[0, 1, 2, 3, 4],
    )
    assert dataset.ids.compute().tolist() == ["a", "é", "", "d", "e"]
    assert dataset.sample_weight.compute().tolist() == [0, 1, 2, 3, 4]
    assert dataset.sample.sample_weight.tolist() == [0, 1, 2, 3, 4]
    bare = write_dataset(MemoryStore(), np.eye(5), np.arange(5))
    assert bare.ids is None
    assert bare.sample_weight is None
    assert bare.sample.sample_weight is None


def test_the_sample_is_rows_of_the_data_from_every_block(flights):
    X, y = flights
    dataset = write_dataset(MemoryStore(), X, y, "hybrid", (100, 3), sample_rows=50, seed=3)
    sample = dataset.sample
    np.testing.assert_array_equal(sample.X, X[sample.index])
    np.testing.assert_array_equal(sample.y, y[sample.index])
    assert np.bincount(sample.index // 100).tolist() == [5] * 10
    again = write_dataset(MemoryStore(), X, y, chunks=(100, -1), sample_rows=50, seed=3)
    np.testing.assert_array_equal(again.sample.index, sample.index)
    other = write_dataset(MemoryStore(), X, y, chunks=(100, -1), sample_rows=50, seed=4)
    assert not np.array_equal(other.sample.index, sample.index)


def test_the_automatic_sample_is_small():
    X = np.zeros((12_000, 300), dtype=np.float64)
    sample = write_dataset(MemoryStore(), X, np.zeros(12_000)).sample
    assert sample.X.nbytes <= 16_000_000
    assert len(sample.y) == 16_000_000 // (300 * 8)


def test_arrays_are_deterministic_lazy_and_one_task_a_chunk(flights):
    X, y = flights
    dataset = write_dataset(MemoryStore(), X, y.astype(str) == "late", chunks=(300, -1))
    again = open_dataset(dataset._place.store)
    assert dataset.X.name == again.X.name
    assert dataset.y.name == again.y.name
    assert dask.base.tokenize(dataset) == dask.base.tokenize(again)
    assert len(dask.optimize(dataset.X)[0].__dask_graph__()) == 4


def test_a_dataset_can_be_pickled_and_shown(tmp_path, flights):
    X, y = flights
    dataset = write_dataset(tmp_path / "d.zarr", X, y, target="late<b>")
    same(pickle.loads(pickle.dumps(dataset)), X, y)  # noqa: S301
    assert "1,000 rows x 7 columns float32, horizontal 1 x 1 blocks" in repr(dataset)
    assert "late&lt;b&gt; (2 classes)" in dataset._repr_html_()


def test_workers_write_and_read_without_the_client(tmp_path, client, flights):
    X, y = flights
    lazy = client.persist(da.from_array(X, chunks=(250, 7)))
    dataset = write_dataset(
        tmp_path / "d.zarr", lazy, da.from_array(y, chunks=250), chunks=(300, -1)
    )
    same(dataset, X, y)
    seen = client.run(lambda path: open_dataset(path).n_rows, str(tmp_path / "d.zarr"))
    assert list(seen.values()) == [1_000, 1_000]


def test_a_store_in_memory_is_filled_from_a_cluster(client, flights):
    X, y = flights
    lazy = client.persist(da.from_array(X, chunks=(250, 7)))
    dataset = write_dataset(MemoryStore(), lazy, y, chunks=(300, -1))
    with dask.config.set(scheduler="threads"):
        same(dataset, X, y)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": np.zeros(3)}, r"y has 3 values and X has 4 rows"),
        ({"y": da.zeros(5)}, r"y has 5 values"),
        ({"y": np.zeros((4, 1))}, r"y must have 1 dimension"),
        ({"y": np.zeros(4, complex)}, r"y holds complex128"),
        (
            {"y": ["a", "b", None, "a"]},
            r"y has 1 missing values in block 0, the first in its row 2",
        ),
        ({"y": np.array(["a", 1, 2, 3], dtype=object)}, r"type int, str"),
        ({"y": np.array(["2013-01-01"] * 4, "M8[D]")}, r"y holds datetime64"),
        ({"sample_weight": np.ones(3)}, r"sample_weight has 3 values"),
        (
            {"sample_weight": [1, 1, -1, 1]},
            r"sample_weight must be .* found -1.0 in row 2 of block 0",
        ),
        ({"sample_weight": [1, 1, np.nan, 1]}, r"sample_weight must be finite"),
        ({"sample_weight": list("abcd")}, r"sample_weight holds"),
        ({"ids": [1.5, 2, 3, 4]}, r"ids must be integers or strings"),
        (
            {"ids": np.array(["a", "b", None, "c"], dtype=object)},
            r"ids must be strings, found None",
        ),
        ({"ids": ["a"]}, r"ids has 1 values"),
        ({"X": np.zeros((4, 2), complex)}, r"X holds complex128"),
        ({"X": np.zeros((4, 2), object)}, r"X holds object"),
        ({"X": np.zeros(4)}, r"X must have 2 dimensions"),
        ({"X": np.zeros((0, 2))}, r"X has shape \(0, 2\)"),
        ({"X": np.zeros((4, 0))}, r"X has shape \(4, 0\)"),
        ({"feature_names": ["a"]}, r"feature_names has 1 names and X has 2"),
        ({"feature_names": ["a", "a"]}, r"more than once: a"),
        ({"feature_names": ["a", 1]}, r"must be strings, found 1"),
        ({"layout": "diagonal"}, r"layout must be one of"),
        ({"chunks": "large"}, r"chunks must be"),
        ({"sample_rows": 9}, r"sample_rows must be"),
        ({"sample_rows": 0}, r"sample_rows must be"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(tmp_path, changes, message):
    arguments = {"X": np.zeros((4, 2)), "y": np.zeros(4), **changes}
    with pytest.raises(DataError, match=message):
        write_dataset(tmp_path / "d.zarr", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_horizontal_chunks_may_not_cut_columns(tmp_path):
    with pytest.raises(IncompatibleError, match="layout='hybrid'"):
        write_dataset(tmp_path / "d.zarr", np.zeros((4, 2)), np.zeros(4), chunks=(2, 1))


def test_a_graph_that_lies_about_its_chunks_is_found_out(tmp_path):
    X = da.zeros((40, 2), chunks=(10, 2)).map_blocks(lambda block: block[:1], dtype=float)
    with pytest.raises(DataError, match="its dask chunks say"):
        write_dataset(tmp_path / "d.zarr", X, np.zeros(40), chunks=(10, -1))
    assert list(tmp_path.iterdir()) == []


def test_too_many_labels_are_refused():
    y = np.array([f"name {i}" for i in range(10_001)])
    with pytest.raises(DataError, match="more than 10,000 distinct labels"):
        write_dataset(MemoryStore(), np.zeros((10_001, 1)), y)


def change_manifest(store, **changes) -> None:
    group = zarr.open_group(store, mode="r+")
    group.update_attributes({"dask_dml": {**group.attrs["dask_dml"], **changes}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_rows": 9}, r"disagree: .*X is \(4, 2\), not \(9, 2\)"),
        ({"feature_names": ["a"]}, r"1 names for 2 columns"),
        ({"layout": "diagonal"}, r"damaged"),
        ({"sample": 3}, r"damaged"),
        ({"columns": ["ids"]}, r"'ids' is missing"),
    ],
)
def test_manifest_and_arrays_must_agree(changes, message):
    store = MemoryStore()
    write_dataset(store, np.zeros((4, 2)), np.zeros(4))
    change_manifest(store, **changes)
    with pytest.raises(StoreFormatError, match=message):
        open_dataset(store)


def test_a_memory_store_cannot_be_rewritten_onto_itself():
    store = MemoryStore()
    dataset = write_dataset(store, np.zeros((4, 2)), np.zeros(4))
    with pytest.raises(StoreError, match="onto itself"):
        dataset.repartition(store, "vertical", overwrite=True)
    same(open_dataset(store), np.zeros((4, 2)), np.zeros(4))


def test_a_folder_can_be_rewritten_onto_itself(tmp_path, flights):
    X, y = flights
    dataset = write_dataset(tmp_path / "d.zarr", X, y, chunks=(300, -1))
    dataset.repartition(tmp_path / "d.zarr", "vertical", overwrite=True)
    reopened = open_dataset(tmp_path / "d.zarr")
    assert reopened.layout == "vertical"
    same(reopened, X, y)
