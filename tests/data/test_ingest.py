from __future__ import annotations

import gzip
import re
import sys
from decimal import Decimal

import dask.dataframe as dd
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from zarr.storage import MemoryStore

from dask_dml.data import ingest, open_dataset
from dask_dml.errors import IngestError, StoreExistsError

N = 500
FRAME = pd.DataFrame(
    {
        "distance": np.arange(N) * 1.5,
        "carrier": np.array(["UA", "AA", "B6", "DL"])[np.arange(N) % 4],
        "month": np.arange(N) % 12 + 1,
        "night": np.arange(N) % 2 == 0,
        "late": np.arange(N) % 3 == 0,
        "note": [f"note {i}" for i in range(N)],
        "id": np.arange(N) + 10**15,
        "weight": np.linspace(0, 1, N),
    }
)
USE = {
    "target": "late",
    "drop": ["note"],
    "one_hot": ["carrier"],
    "ids": "id",
    "sample_weight": "weight",
    "chunks": (170, -1),
}
NAMES = ["distance", "carrier=AA", "carrier=B6", "carrier=DL", "carrier=UA", "month", "night"]
EXPECTED = np.column_stack(
    [
        FRAME["distance"],
        *(FRAME["carrier"] == c for c in ("AA", "B6", "DL", "UA")),
        FRAME["month"],
        FRAME["night"],
    ]
).astype(float)


def write_csv(frame, path, **options):
    frame.to_csv(path, index=False, **options)
    return path


def make_source(kind: str, folder, frame=FRAME):
    if kind == "pandas":
        return frame
    if kind == "polars":
        return pl.from_pandas(frame)
    if kind == "dask":
        return dd.from_pandas(frame, npartitions=3)
    if kind == "csv":
        return write_csv(frame, folder / "all.csv")
    if kind == "csv.gz":
        return write_csv(frame, folder / "all.csv.gz")
    if kind == "tsv":
        return write_csv(frame, folder / "all.tsv", sep="\t")
    if kind == "csv glob":
        for i in range(5):
            write_csv(frame[i * 100 : (i + 1) * 100], folder / f"part-{i}.csv")
        return str(folder / "part-*.csv")
    if kind == "csv list":
        first = write_csv(frame[:100], folder / "z.csv")
        return [first, str(write_csv(frame[100:], folder / "a.csv"))]
    if kind == "parquet":
        frame.to_parquet(folder / "all.parquet")
        return folder / "all.parquet"
    assert kind == "parquet folder"
    (folder / "parts").mkdir()
    for i in range(5):
        part = frame[i * 100 : (i + 1) * 100]
        part[part.columns[:: (-1) ** i]].to_parquet(folder / "parts" / f"{i}.parquet")
    return folder / "parts"


FRAMES = ["pandas", "polars", "dask"]
FILES = ["csv", "csv.gz", "tsv", "csv glob", "csv list", "parquet", "parquet folder"]


@pytest.mark.parametrize("kind", FRAMES + FILES)
def test_every_source_gives_the_same_dataset_in_the_same_order(tmp_path, kind):
    written = ingest(make_source(kind, tmp_path), tmp_path / "d.zarr", **USE)
    opened = open_dataset(tmp_path / "d.zarr")
    for dataset in (written, opened):
        assert dataset.feature_names == NAMES
        np.testing.assert_array_equal(dataset.X.compute(), EXPECTED)
        np.testing.assert_array_equal(dataset.y.compute(), FRAME["late"])
        np.testing.assert_array_equal(dataset.ids.compute(), FRAME["id"])
        np.testing.assert_allclose(dataset.sample_weight.compute(), FRAME["weight"], rtol=1e-15)
        assert dataset.X.dtype == np.float64
        assert dataset.target == "late"
        assert dataset.classes.tolist() == [False, True]
        assert dataset.grid.row_chunks == (170, 170, 160)
        np.testing.assert_array_equal(dataset.sample.X, EXPECTED[dataset.sample.index])


@pytest.mark.parametrize("kind", ["pandas", "dask", "csv", "parquet folder"])
@pytest.mark.parametrize("layout", ["vertical", "hybrid"])
def test_other_layouts(tmp_path, kind, layout):
    chunks = {"vertical": (-1, 3), "hybrid": (100, 3)}[layout]
    dataset = ingest(
        make_source(kind, tmp_path), MemoryStore(), **{**USE, "layout": layout, "chunks": chunks}
    )
    assert dataset.layout == layout
    np.testing.assert_array_equal(dataset.X.compute(), EXPECTED)


@pytest.mark.parametrize("kind", [*FRAMES, "csv", "parquet"])
@pytest.mark.parametrize(
    ("target", "classes"),
    [("carrier", ["AA", "B6", "DL", "UA"]), ("month", list(range(1, 13))), ("distance", None)],
)
def test_targets_of_text_integers_and_floats(tmp_path, kind, target, classes):
    dataset = ingest(
        make_source(kind, tmp_path), MemoryStore(), target, drop={"note", "carrier"} - {target}
    )
    np.testing.assert_array_equal(dataset.y.compute(), FRAME[target])
    assert (None if dataset.classes is None else dataset.classes.tolist()) == classes


@pytest.mark.parametrize("kind", [*FRAMES, "csv", "parquet"])
def test_integers_and_booleans_can_be_one_hot(tmp_path, kind):
    dataset = ingest(
        make_source(kind, tmp_path),
        MemoryStore(),
        "late",
        one_hot=["month", "night"],
        drop=["note", "carrier", "id", "weight"],
    )
    months = [f"month={m}" for m in range(1, 13)]
    assert dataset.feature_names == ["distance", *months, "night=False", "night=True"]
    assert (dataset.X.compute()[:, 1:].sum(axis=1) == 2).all()
    np.testing.assert_array_equal(dataset.X.compute()[:, 3], FRAME["month"] == 3)


def with_holes() -> pd.DataFrame:
    frame = FRAME.drop(columns=["note", "id", "weight"])
    frame["distance"] = frame["distance"].where(frame.index % 50 != 7)
    frame["carrier"] = frame["carrier"].where(frame.index % 100 != 9)
    return frame


@pytest.mark.parametrize("kind", [*FRAMES, "csv", "parquet"])
def test_missing_values_are_refused_dropped_or_kept_as_asked(tmp_path, kind):
    frame = with_holes()
    source = make_source(kind, tmp_path, frame)
    use = {"target": "late", "one_hot": ["carrier"]}
    with pytest.raises(IngestError, match=r"distance \(10\), carrier \(5\).*missing='drop'"):
        ingest(source, tmp_path / "d.zarr", **use)
    assert not (tmp_path / "d.zarr").exists()

    rows = frame.notna().all(axis=1).to_numpy()
    dropped = ingest(source, MemoryStore(), missing="drop", **use)
    np.testing.assert_array_equal(dropped.X.compute(), EXPECTED[rows])
    np.testing.assert_array_equal(dropped.y.compute(), FRAME["late"][rows])

    kept = ingest(source, MemoryStore(), missing="keep", **use).X.compute()
    holes = EXPECTED.copy()
    holes[frame["distance"].isna(), 0] = np.nan
    holes[frame["carrier"].isna(), 1:5] = np.nan
    np.testing.assert_array_equal(kept, holes)


def test_missing_targets_are_never_kept():
    frame = pd.DataFrame({"a": [1.0, 2, 3], "late": ["x", None, "y"]})
    with pytest.raises(IngestError, match=r"late \(1\).*missing='drop'"):
        ingest(frame, MemoryStore(), "late", missing="keep")
    dataset = ingest(frame, MemoryStore(), "late", missing="drop")
    assert dataset.y.compute().tolist() == ["x", "y"]
    assert dataset.classes.tolist() == ["x", "y"]


def test_a_csv_column_may_turn_from_integers_to_floats_or_text_late(tmp_path):
    rows = 400_000
    frame = pd.DataFrame({"a": np.arange(rows), "pad": ["x" * 40] * rows})
    frame["label"] = np.arange(rows) % 7
    frame["label"] = frame["label"].map("{:02d}".format)
    frame = frame.astype({"a": object})
    frame.loc[rows - 1, "a"] = 0.5
    frame.loc[rows - 1, "label"] = "other"
    path = write_csv(frame, tmp_path / "a.csv")
    assert path.stat().st_size > 16 * 2**20, "one block is not enough for this test"
    dataset = ingest(path, MemoryStore(), "label", drop=["pad"])
    assert dataset.n_rows == rows
    np.testing.assert_array_equal(dataset.X[:, 0].compute(), frame["a"].astype(float))
    assert dataset.classes.tolist() == ["00", "01", "02", "03", "04", "05", "06", "other"]
    np.testing.assert_array_equal(dataset.y.compute(), frame["label"])


def test_float32_is_kept_and_can_be_asked_for():
    frame = FRAME[["distance", "late"]]
    assert ingest(frame, MemoryStore(), "late").X.dtype == np.float64
    assert ingest(frame, MemoryStore(), "late", dtype="float32").X.dtype == np.float32
    single = frame.astype({"distance": np.float32})
    assert ingest(single, MemoryStore(), "late").X.dtype == np.float32


def test_quoted_line_breaks_and_separators(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('a,c,late\n1,"x,\ny",0\n2,"z",1\n')
    dataset = ingest(path, MemoryStore(), "late", one_hot=["c"])
    assert dataset.feature_names == ["a", "c=x,\ny", "c=z"]


def test_a_parquet_dictionary_and_decimal_columns(tmp_path):
    table = pa.table(
        {
            "c": pa.array(["x", "y", "x"]).dictionary_encode(),
            "d": pa.array([Decimal("1.00"), Decimal("2.00"), Decimal("3.00")]),
            "late": [0, 1, 0],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    dataset = ingest(tmp_path / "a.parquet", MemoryStore(), "late", one_hot=["c"])
    np.testing.assert_array_equal(dataset.X.compute(), [[1, 0, 1], [0, 1, 2], [1, 0, 3]])


def test_svmlight(tmp_path):
    from sklearn.datasets import dump_svmlight_file

    rng = np.random.default_rng(0)
    X = np.round(rng.normal(size=(40, 6)) * (rng.random((40, 6)) < 0.4), 3)
    y = np.arange(40) % 2
    dump_svmlight_file(X[:25], y[:25], str(tmp_path / "a.svm"))
    dump_svmlight_file(X[25:], y[25:], str(tmp_path / "b.svm"))
    dataset = ingest(str(tmp_path / "*.svm"), MemoryStore(), chunks=(15, -1))
    np.testing.assert_array_equal(dataset.X.compute().toarray(), X)
    np.testing.assert_array_equal(dataset.y.compute(), y)
    with pytest.raises(IngestError, match="leave out target, drop"):
        ingest(str(tmp_path / "*.svm"), MemoryStore(), "y", drop=["x"])


def test_malformed_svmlight_names_the_file(tmp_path):
    (tmp_path / "a.svm").write_text("1 1:0.5\n")
    (tmp_path / "b.svm").write_text("1 one:0.5\n")
    with pytest.raises(IngestError, match=r"b\.svm cannot be read"):
        ingest(str(tmp_path / "*.svm"), MemoryStore())


def test_s3_to_s3(s3):
    FRAME.to_csv(f"{s3}/in/b.csv", index=False)
    dataset = ingest(f"{s3}/in/*.csv", f"{s3}/out.zarr", **USE)
    np.testing.assert_array_equal(dataset.X.compute(), EXPECTED)
    with pytest.raises(IngestError, match="no file matches s3://"):
        ingest(f"{s3}/in/*.parquet", f"{s3}/other.zarr", "late")


def test_dask_partitions_are_ingested_on_the_cluster(tmp_path, client):
    source = dd.from_pandas(FRAME, npartitions=4)
    dataset = ingest(source, tmp_path / "d.zarr", **USE)
    np.testing.assert_array_equal(dataset.X.compute(), EXPECTED)


# mistakes


@pytest.mark.parametrize("kind", [*FRAMES, "csv", "parquet"])
def test_columns_that_are_not_numeric_are_all_named(tmp_path, kind):
    frame = FRAME.assign(day=pd.Timestamp("2013-01-01"))
    with pytest.raises(IngestError) as caught:
        ingest(make_source(kind, tmp_path, frame), tmp_path / "d.zarr", "late")
    message = str(caught.value)
    assert re.search(r"not numeric: carrier \(text\), note \(text\), day \(", message)
    assert "one_hot=['carrier', 'note', 'day']" in message
    assert "drop=['carrier', 'note', 'day']" in message
    assert not (tmp_path / "d.zarr").exists()


@pytest.mark.parametrize("kind", [*FRAMES, "csv", "parquet"])
@pytest.mark.parametrize("argument", ["target", "ids", "sample_weight", "drop", "one_hot"])
def test_an_unknown_column_gets_a_suggestion(tmp_path, kind, argument):
    value = ["carier"] if argument in ("drop", "one_hot") else "carier"
    use = {"target": "late", argument: value}
    with pytest.raises(IngestError) as caught:
        ingest(make_source(kind, tmp_path), MemoryStore(), **use)
    message = str(caught.value)
    assert message.startswith(f"{argument}: there is no column 'carier'; did you mean 'carrier'?")
    assert "distance, carrier, month" in message


@pytest.mark.parametrize(
    ("use", "message"),
    [
        ({"target": None}, "target is needed"),
        ({"drop": ["late"]}, "'late' is given more than once, in drop and target"),
        ({"one_hot": ["carrier", "carrier"]}, "more than once, in one_hot"),
        ({"one_hot": "carrier"}, r"one_hot must be a list of columns: one_hot=\['carrier'\]"),
        ({"drop": list(FRAME.columns.drop("late"))}, "no feature is left"),
        ({"missing": "skip"}, "missing must be"),
        ({"format": "csv"}, "format='csv' is for files"),
        ({"sample_weight": "carrier", "drop": ["note"]}, "column 'carrier' .* kind text"),
        ({"ids": "distance", "drop": ["note", "carrier"]}, "column 'distance' .* kind float"),
        ({**USE, "dtype": "int8"}, "dtype must be"),
        ({**USE, "chunks": "large"}, "chunks must be"),
    ],
)
def test_arguments_that_cannot_be(use, message):
    with pytest.raises(ValueError, match=message):
        ingest(FRAME, MemoryStore(), **{"target": "late", **use})


@pytest.mark.parametrize("cut", [1, 2, 9, 25, 60])
def test_a_csv_cut_off_in_mid_row_is_named(tmp_path, cut):
    FRAME.drop(columns="carrier").to_csv(tmp_path / "a.csv", index=False)
    whole = (tmp_path / "a.csv").read_bytes()
    (tmp_path / "b.csv").write_bytes(whole[:-cut])
    with pytest.raises(IngestError, match=r"b\.csv .*cut off"):
        ingest(str(tmp_path / "*.csv"), tmp_path / "d.zarr", "late", drop=["note"])
    assert not (tmp_path / "d.zarr").exists()


def test_a_compressed_csv_that_is_cut_off(tmp_path):
    whole = gzip.compress(FRAME.to_csv(index=False).encode())
    (tmp_path / "a.csv.gz").write_bytes(whole[:-200])
    with pytest.raises(IngestError, match=r"a\.csv\.gz cannot be read, it may be cut off"):
        ingest(tmp_path / "a.csv.gz", MemoryStore(), **USE)


def test_a_malformed_csv_says_what_arrow_said(tmp_path):
    (tmp_path / "a.csv").write_text("a,b,late\n1,2,0\n1,2\n")
    with pytest.raises(IngestError, match=r"a\.csv cannot be read.*Expected 3 columns, got 2"):
        ingest(tmp_path / "a.csv", MemoryStore(), "late")


def test_a_cut_parquet_file_is_named(tmp_path):
    FRAME.to_parquet(tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[:-30])
    with pytest.raises(IngestError, match=r"a\.parquet cannot be read"):
        ingest(tmp_path / "a.parquet", MemoryStore(), **USE)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_files_of_other_columns_are_named(tmp_path, suffix):
    frame = FRAME[["distance", "month", "late"]]
    for name, part in (("a", frame), ("b", frame.rename(columns={"month": "mon"}))):
        if suffix == "csv":
            write_csv(part, tmp_path / f"{name}.csv")
        else:
            part.to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(IngestError, match=r"b\.\w+ lacks month and has mon besides.*a\.\w+$"):
        ingest(str(tmp_path / f"*.{suffix}"), MemoryStore(), "late")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", r"a\.csv cannot be read"),
        ("a.csv", "a,late\n", r"a\.csv has no rows"),
        ("a.csv", "a,a,late\n1,2,3\n", r"a\.csv has more than one column named a"),
        ("a.parquet", "", r"a\.parquet cannot be read"),
        ("a.svm", "", r"a\.svm has no rows"),
        ("a.xyz", "1", r"a\.xyz: its format cannot be told .* format='csv'"),
    ],
)
def test_files_that_hold_no_table(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    target = None if name == "a.svm" else "late"
    with pytest.raises(IngestError, match=message):
        ingest(tmp_path / name, tmp_path / "d.zarr", target)
    assert not (tmp_path / "d.zarr").exists()


def test_no_file_matches(tmp_path):
    for source in (tmp_path / "no.csv", str(tmp_path / "*.csv"), tmp_path):
        with pytest.raises(IngestError, match="no file matches"):
            ingest(source, MemoryStore(), "late")
    with pytest.raises(IngestError, match="empty list of files"):
        ingest([], MemoryStore(), "late")


def test_formats_are_not_mixed(tmp_path):
    write_csv(FRAME, tmp_path / "a.csv")
    FRAME.to_parquet(tmp_path / "b.parquet")
    with pytest.raises(IngestError, match=r"a\.csv is csv and .*b\.parquet is parquet"):
        ingest([tmp_path / "a.csv", tmp_path / "b.parquet"], MemoryStore(), "late")


def test_a_format_can_be_given(tmp_path):
    write_csv(FRAME, tmp_path / "a.data")
    dataset = ingest(tmp_path / "a.data", MemoryStore(), format="csv", **USE)
    np.testing.assert_array_equal(dataset.X.compute(), EXPECTED)
    with pytest.raises(IngestError, match="format must be one of csv, parquet, svmlight"):
        ingest(tmp_path / "a.data", MemoryStore(), "late", format="excel")


@pytest.mark.parametrize("kind", FRAMES)
def test_an_empty_frame_has_no_rows(tmp_path, kind):
    with pytest.raises(IngestError, match="has no rows"):
        ingest(make_source(kind, tmp_path, FRAME[:0]), MemoryStore(), **USE)


def test_rows_that_are_all_incomplete():
    frame = pd.DataFrame({"a": [np.nan, 1], "b": [1, np.nan], "late": [0, 1]})
    with pytest.raises(IngestError, match=r"missing values in every row: a \(1\), b \(1\)"):
        ingest(frame, MemoryStore(), "late", missing="drop")


def test_too_many_categories():
    frame = pd.DataFrame({"a": [f"{i}" for i in range(10_001)], "late": 0})
    with pytest.raises(IngestError, match="'a' has more than 10,000 distinct values"):
        ingest(frame, MemoryStore(), "late", one_hot=["a"])


def test_a_column_of_mixed_types_is_named():
    frame = pd.DataFrame({"a": pd.Series([1, "x", 2.5], dtype=object), "late": 0})
    with pytest.raises(IngestError, match="column 'a' mixes types"):
        ingest(frame, MemoryStore(), "late")


@pytest.mark.parametrize("source", [3, np.eye(3), pl.LazyFrame({"a": [1]})])
def test_other_sources_are_refused(source):
    with pytest.raises(IngestError, match=r"write_dataset|collect"):
        ingest(source, MemoryStore(), "late")


def test_an_existing_store_is_refused_before_the_source_is_read(tmp_path):
    ingest(FRAME, tmp_path / "d.zarr", **USE)
    with pytest.raises(StoreExistsError, match="overwrite=True"):
        ingest(tmp_path / "no.csv", tmp_path / "d.zarr", "late")
    ingest(FRAME[:50], tmp_path / "d.zarr", overwrite=True, **USE)
    assert open_dataset(tmp_path / "d.zarr").n_rows == 50


def test_negative_weights_are_refused_and_leave_nothing(tmp_path):
    frame = FRAME.assign(weight=-1.0)
    with pytest.raises(IngestError, match="sample_weight must be finite and not negative"):
        ingest(frame, tmp_path / "d.zarr", **USE)
    assert list(tmp_path.iterdir()) == []


def test_without_pyarrow_the_extra_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(IngestError, match=r"needs pyarrow: pip install 'dask-dml\[frames\]'"):
        ingest(FRAME, MemoryStore(), **USE)
