from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore, MemoryStore, StorePath

from dask_dml.data import open_dataset, write_dataset
from dask_dml.data.store import load_arrays, save_arrays
from dask_dml.errors import (
    CorruptChunkError,
    DataError,
    StoreError,
    StoreExistsError,
    StoreFormatError,
)

X = np.arange(80, dtype=np.float64).reshape(20, 4)
Y = np.arange(20) % 3
CHUNKS = {
    "X": "X/c/1/1",
    "y": "y/c/1",
    "sample_weight": "sample_weight/c/1",
    "ids": "ids/c/1",
    "sample/X": "sample/X/c/0/0",
    "sample/y": "sample/y/c/0",
    "sample/index": "sample/index/c/0",
    "sample/sample_weight": "sample/sample_weight/c/0",
}


def write(store, **changes):
    arguments = {
        "layout": "hybrid",
        "chunks": (10, 2),
        "sample_weight": np.zeros(20),
        "ids": [f"row {i}" for i in range(20)],
        **changes,
    }
    return write_dataset(store, X, Y, **arguments)


def read_all(dataset) -> None:
    dask.compute(dataset.X, dataset.y, dataset.sample_weight, dataset.ids)
    assert dataset.sample.X.shape[1] == 4


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("name", CHUNKS)
@pytest.mark.parametrize("position", [0, -5, -1])
def test_a_flipped_byte_names_the_store_the_array_and_the_chunk(tmp_path, name, position):
    write(tmp_path / "d.zarr")
    flip(tmp_path / "d.zarr" / CHUNKS[name], position)
    dataset = open_dataset(tmp_path / "d.zarr")
    chunk = "c/" + CHUNKS[name].split("/c/")[1]
    with pytest.raises(CorruptChunkError, match=rf"d\.zarr: chunk {chunk} of array '{name}'"):
        read_all(dataset)


@pytest.mark.parametrize("name", CHUNKS)
def test_a_lost_chunk_is_an_error_even_if_it_was_all_zeros(tmp_path, name):
    write(tmp_path / "d.zarr")
    (tmp_path / "d.zarr" / CHUNKS[name]).unlink()
    dataset = open_dataset(tmp_path / "d.zarr")
    with pytest.raises(CorruptChunkError, match=rf"of array '{name}' is missing"):
        read_all(dataset)


@pytest.mark.parametrize("size", [0, 1, 4, 5, 30])
def test_a_cut_chunk_is_an_error(tmp_path, size):
    write(tmp_path / "d.zarr")
    file = tmp_path / "d.zarr" / CHUNKS["X"]
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(CorruptChunkError, match="of array 'X' is corrupt"):
        read_all(open_dataset(tmp_path / "d.zarr"))


def test_a_chunk_in_the_wrong_place_of_another_array_does_not_pass_in_silence(tmp_path):
    dataset = write(tmp_path / "d.zarr")
    (tmp_path / "d.zarr" / CHUNKS["X"]).write_bytes(
        (tmp_path / "d.zarr" / CHUNKS["y"]).read_bytes()
    )
    with pytest.raises(CorruptChunkError):
        dataset.X.compute()


def test_every_chunk_ends_with_its_crc32c_by_the_zarr_specification(tmp_path):
    write(tmp_path / "d.zarr")
    for name in CHUNKS:
        metadata = json.loads((tmp_path / "d.zarr" / name / "zarr.json").read_text())
        assert metadata["zarr_format"] == 3
        assert metadata["codecs"][-1]["name"] == "crc32c"
    np.testing.assert_array_equal(zarr.open_group(tmp_path / "d.zarr", mode="r")["X"][:], X)


# what does not open


def test_nothing_there(tmp_path):
    with pytest.raises(StoreFormatError, match=r"there is nothing at .*no\.zarr"):
        open_dataset(tmp_path / "no.zarr")
    with pytest.raises(StoreFormatError, match="there is nothing at"):
        open_dataset(MemoryStore())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_or_file_that_is_not_zarr(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreFormatError, match="is not a Zarr store"):
        open_dataset(tmp_path)
    with pytest.raises(StoreFormatError, match="is not a Zarr store"):
        open_dataset(tmp_path / "notes.txt")


def test_a_foreign_zarr_store_says_how_to_write_ours(tmp_path):
    zarr.create_group(tmp_path / "g.zarr").create_array("X", data=X)
    zarr.create_array(tmp_path / "a.zarr", data=X)
    zarr.create_group(tmp_path / "old.zarr", zarr_format=2)
    for name in ("g.zarr", "a.zarr", "old.zarr"):
        with pytest.raises(StoreFormatError, match=r"dask_dml\.write_dataset\(store, X, y\)"):
            open_dataset(tmp_path / name)


def test_a_newer_format_asks_for_a_newer_version():
    store = MemoryStore()
    write(store)
    group = zarr.open_group(store, mode="r+")
    group.update_attributes({"dask_dml": {**group.attrs["dask_dml"], "format": 2}})
    with pytest.raises(StoreFormatError, match=r"format 2, .* reads up to 1: install a newer"):
        open_dataset(store)


def test_a_manifest_without_a_format_is_damaged():
    store = MemoryStore()
    zarr.create_group(store, attributes={"dask_dml": {"kind": "dataset"}})
    with pytest.raises(StoreFormatError, match="no format number"):
        open_dataset(store)


@pytest.mark.parametrize("content", ["{", "[]", '{"zarr_format": 3}'])
def test_unreadable_metadata(tmp_path, content):
    write(tmp_path / "d.zarr")
    (tmp_path / "d.zarr" / "zarr.json").write_text(content)
    with pytest.raises(StoreFormatError, match=r"d\.zarr"):
        open_dataset(tmp_path / "d.zarr")


def test_arrays_without_a_manifest_are_half_written(tmp_path):
    write(tmp_path / "d.zarr")
    (tmp_path / "d.zarr" / "zarr.json").unlink()
    with pytest.raises(StoreFormatError, match="half written"):
        open_dataset(tmp_path / "d.zarr")


def test_a_missing_array_is_named(tmp_path):
    write(tmp_path / "d.zarr")
    (tmp_path / "d.zarr" / "y" / "zarr.json").unlink()
    with pytest.raises(StoreFormatError, match="array 'y' is missing"):
        open_dataset(tmp_path / "d.zarr")


def test_a_model_is_not_a_dataset(tmp_path):
    save_arrays(tmp_path / "m.zarr", {"coef": np.ones(3)}, {})
    write(tmp_path / "d.zarr")
    with pytest.raises(StoreFormatError, match=r"holds a model.*load_model"):
        open_dataset(tmp_path / "m.zarr")
    with pytest.raises(StoreFormatError, match=r"holds a dataset.*open_dataset"):
        load_arrays(tmp_path / "d.zarr")


# writers that do not finish


class Stopped(BaseException):
    pass


def failing(error: type[BaseException]) -> da.Array:
    def block(values, block_info=None):
        if block_info[0]["chunk-location"][0] == 3:
            raise error("in mid-write")
        return values

    return da.from_array(X, chunks=(2, 4)).map_blocks(block, dtype=float)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, Stopped])
def test_a_failing_writer_leaves_nothing(tmp_path, error):
    with pytest.raises(error):
        write_dataset(tmp_path / "d.zarr", failing(error), Y, chunks=(2, -1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failing_writer_keeps_what_was_there(tmp_path, error):
    write(tmp_path / "d.zarr")
    with pytest.raises(error):
        write_dataset(tmp_path / "d.zarr", failing(error), Y, chunks=(2, -1), overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["d.zarr"]
    np.testing.assert_array_equal(open_dataset(tmp_path / "d.zarr").X.compute(), X)


def test_a_failing_writer_leaves_nothing_in_a_store_without_rename():
    store = MemoryStore()
    with pytest.raises(RuntimeError):
        write_dataset(store, failing(RuntimeError), Y, chunks=(2, -1))
    assert store._store_dict == {}


KILLED = """
import sys
import dask.array as da, numpy as np
from dask_dml.data import write_dataset

def block(values, block_info=None):
    if block_info[0]["chunk-location"][0] == 3:
        sys.stdout.write("writing\\n")
        sys.stdout.flush()
        sys.stdin.read()
    return values

if __name__ == "__main__":
    X = da.zeros((20, 4), chunks=(2, 4)).map_blocks(block, dtype=float)
    write_dataset(sys.argv[1], X, np.zeros(20), chunks=(2, -1))
"""


def kill_in_mid_write(store: str, tmp_path: Path) -> None:
    script = tmp_path / "writer.py"
    script.write_text(KILLED)
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, str(script), store],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as process:
        assert process.stdout.readline() == b"writing\n"
        process.kill()


def test_a_killed_writer_leaves_no_dataset_that_opens(tmp_path):
    folder = tmp_path / "data"
    kill_in_mid_write(str(folder / "d.zarr"), tmp_path)
    (left,) = folder.iterdir()
    assert left.name.startswith(".d.zarr.")
    with pytest.raises(StoreFormatError, match="nothing at"):
        open_dataset(folder / "d.zarr")
    with pytest.raises(StoreFormatError, match="half written: its writer was stopped"):
        open_dataset(left)
    write(folder / "d.zarr")
    read_all(open_dataset(folder / "d.zarr"))


def test_a_writer_to_s3_that_is_killed_leaves_no_dataset_that_opens(tmp_path, s3):
    kill_in_mid_write(f"{s3}/d.zarr", tmp_path)
    with pytest.raises(StoreFormatError, match="half written: its writer was stopped"):
        open_dataset(f"{s3}/d.zarr")
    with pytest.raises(StoreExistsError, match="overwrite=True"):
        write(f"{s3}/d.zarr")
    write(f"{s3}/d.zarr", overwrite=True)
    read_all(open_dataset(f"{s3}/d.zarr"))


def test_a_late_task_does_not_bring_a_draft_back(tmp_path):
    from dask_dml.data.store import create_array, write_chunk

    group = zarr.create_group(LocalStore(tmp_path / "draft"))
    array = create_array(group, "X", (4, 2), np.dtype(float), (4, 2))
    (tmp_path / "draft").rename(tmp_path / "done")
    with pytest.raises(StoreError, match="was given up"):
        write_chunk(array, (0, 0), np.zeros((4, 2)), np.arange(0))
    assert [p.name for p in tmp_path.iterdir()] == ["done"]


# overwriting


def test_an_existing_store_is_refused_and_untouched(tmp_path):
    write(tmp_path / "d.zarr")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(StoreExistsError, match=r"d\.zarr exists: pass overwrite=True"):
        write(tmp_path / "d.zarr")
    with pytest.raises(StoreExistsError):
        save_arrays(tmp_path / "d.zarr", {}, {})
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("make", ["folder", "store", "path", "memory"])
def test_overwrite_replaces_all_of_a_store(tmp_path, make):
    memory = MemoryStore()
    store = {
        "folder": tmp_path / "d.zarr",
        "store": LocalStore(tmp_path / "d.zarr"),
        "path": StorePath(memory, "deep/d.zarr"),
        "memory": memory,
    }[make]
    write(store)
    write_dataset(store, X + 1, Y, overwrite=True)
    dataset = open_dataset(store)
    np.testing.assert_array_equal(dataset.X.compute(), X + 1)
    assert dataset.ids is None
    assert {p.name for p in tmp_path.iterdir()} <= {"d.zarr"}
    assert not any("ids" in key for key in memory._store_dict)


def test_overwrite_never_touches_what_is_not_a_zarr_store(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    for target in (home, home / "thesis.tex"):
        with pytest.raises(StoreExistsError, match="is not a Zarr store"):
            write(target, overwrite=True)
    assert (home / "thesis.tex").read_text() == "years of work"


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "d.zarr").mkdir()
    write(tmp_path / "d.zarr")
    read_all(open_dataset(tmp_path / "d.zarr"))


def test_a_neighbour_in_the_same_zarr_store_is_left_alone():
    memory = MemoryStore()
    write(StorePath(memory, "a"))
    write(StorePath(memory, "b"))
    write(StorePath(memory, "a"), overwrite=True)
    read_all(open_dataset(StorePath(memory, "b")))
    read_all(open_dataset(StorePath(memory, "a")))


def test_relative_home_and_file_urls_are_one_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    write("d.zarr")
    for spelling in ("d.zarr", "~/d.zarr", f"file://{tmp_path}/d.zarr", tmp_path / "d.zarr"):
        assert open_dataset(spelling).url == str(tmp_path / "d.zarr")


@pytest.mark.parametrize("store", [3, None, ["a", "b"]])
def test_a_store_of_another_type_is_refused(store):
    with pytest.raises(StoreError, match="a store is a path, a URL or a zarr store"):
        open_dataset(store)


def test_an_unknown_url_says_what_is_wrong():
    with pytest.raises(StoreError, match="nosuch://place"):
        open_dataset("nosuch://place/d.zarr")


# S3


def test_s3_round_trip_overwrite_and_corruption(s3):
    import boto3

    url = f"{s3}/deep/d.zarr"
    with pytest.raises(StoreFormatError, match="nothing at"):
        open_dataset(url)
    write(url)
    read_all(open_dataset(url))
    with pytest.raises(StoreExistsError):
        write(url)
    write_dataset(url, X + 1, Y, overwrite=True)
    dataset = open_dataset(url)
    assert dataset.url == url
    np.testing.assert_array_equal(dataset.X.compute(), X + 1)
    moved = dataset.repartition(f"{s3}/v.zarr", "vertical")
    np.testing.assert_array_equal(moved.X.compute(), X + 1)
    boto3.client("s3").delete_object(Bucket=s3.split("/")[-1], Key="deep/d.zarr/X/c/0/0")
    with pytest.raises(CorruptChunkError, match="chunk c/0/0 of array 'X' is missing"):
        dataset.X.compute()


def test_s3_is_read_and_written_by_workers(s3):
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster),
    ):
        dataset = write_dataset(f"{s3}/d.zarr", da.from_array(X, chunks=(7, 4)), Y, chunks=(10, -1))
        np.testing.assert_array_equal(dataset.X.compute(), X)


def test_s3_objects_that_are_not_zarr_are_left_alone(s3):
    import boto3

    bucket = boto3.resource("s3").Bucket(s3.split("/")[-1])
    bucket.put_object(Key="home/thesis.tex", Body=b"years of work")
    with pytest.raises(StoreExistsError, match="is not a Zarr store"):
        write(f"{s3}/home", overwrite=True)
    assert bucket.Object("home/thesis.tex").get()["Body"].read() == b"years of work"


# arrays of models


@pytest.mark.parametrize("store", ["folder", "memory"])
def test_arrays_and_attributes_come_back_to_the_bit(tmp_path, store):
    place = tmp_path / "m.zarr" if store == "folder" else MemoryStore()
    arrays = {
        "coef": np.array([[1.5, np.nan, -0.0, np.inf]]),
        "intercept": np.float32(0.1) * np.ones(3, np.float32),
        "big": np.arange(6, dtype=">i4").reshape(2, 3),
        "flags": np.array([True, False]),
        "words": np.array(["a", "été", ""]),
        "objects": np.array(["a", "bc"], dtype=object),
        "scalar": np.array(3.25),
        "empty": np.empty((0, 4)),
        "complex": np.array([1 + 2j]),
    }
    attributes = {"class": "Ridge", "params": {"alpha": 1.0, "names": ["a", None]}, "n": 3}
    save_arrays(place, arrays, attributes)
    got, got_attributes = load_arrays(place)
    assert got_attributes == attributes
    assert list(got) == list(arrays)
    for name, values in arrays.items():
        assert got[name].dtype == values.dtype
        assert got[name].shape == values.shape
        if values.dtype != object:
            assert got[name].tobytes() == values.tobytes()
        np.testing.assert_array_equal(got[name], values)


def test_a_models_flipped_byte_is_an_error(tmp_path):
    save_arrays(tmp_path / "m.zarr", {"coef": np.ones(3)}, {})
    flip(tmp_path / "m.zarr" / "coef" / "c" / "0", 3)
    with pytest.raises(CorruptChunkError, match="chunk c/0 of array 'coef'"):
        load_arrays(tmp_path / "m.zarr")


@pytest.mark.parametrize("values", [np.array([{}]), np.array(["2013"], "M8[Y]")])
def test_arrays_that_are_not_plain_are_refused(tmp_path, values):
    with pytest.raises(DataError, match="array 'a' holds"):
        save_arrays(tmp_path / "m.zarr", {"a": values}, {})
    assert list(tmp_path.iterdir()) == []


def test_attributes_that_are_not_json_leave_nothing(tmp_path):
    with pytest.raises(TypeError):
        save_arrays(tmp_path / "m.zarr", {}, {"a": object()})
    assert list(tmp_path.iterdir()) == []
