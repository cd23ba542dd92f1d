"""Zarr groups with checksums that are whole or do not open: the one module that imports zarr.

Every chunk of every array ends with its crc32c, and is written even if it is all zeros, so that a
flipped byte and a lost chunk are errors that name the chunk. A group's manifest is the attribute
``dask_dml`` of its root; it is written last. A group in a local folder is written beside its place
under a hidden name, and renamed.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, Store
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.errors import ContainsArrayError
from zarr.storage import FsspecStore, LocalStore, MemoryStore, StorePath, WrapperStore, ZipStore

from dask_dml.errors import (
    CorruptChunkError,
    DataError,
    StoreError,
    StoreExistsError,
    StoreFormatError,
    StoreVersionError,
)

FORMAT = 1
KEY = "dask_dml"
MAX_CHUNK_BYTES = 2**31 - 2**20  # Blosc cannot compress more at once
Group = zarr.Group
Array = zarr.Array[Any]

METADATA_FILES = ("zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata")


def save_arrays(
    store: Any,
    arrays: dict[str, NDArray[Any]],
    attributes: dict[str, Any],
    overwrite: bool = False,
) -> None:
    """Write named arrays and JSON attributes to a Zarr group, as a model is saved.

    Parameters
    ----------
    store : str, Path or zarr store
        See `write_dataset`; written just as safely.
    arrays : dict of str to ndarray
        Numbers, booleans or strings, of any shape.
    attributes : dict
        What JSON can hold; kept in the manifest under ``"attributes"``.
    overwrite : bool

    Raises
    ------
    DataError
        If an array holds something else.
    StoreExistsError
        If something is there and ``overwrite`` is False, or it is not a Zarr store.
    """
    place = find_place(store)
    plain = {name: _storable(name, np.asarray(values)) for name, values in arrays.items()}
    with draft(place, overwrite) as group:
        for name, values in plain.items():
            write_whole(group, name, values)
        dtypes = {name: np.asarray(values).dtype.str for name, values in arrays.items()}
        seal(group, "model", {"dtypes": dtypes, "attributes": attributes})


def load_arrays(store: Any) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read what `save_arrays` wrote.

    Returns
    -------
    arrays : dict of str to ndarray
        With the dtypes and the bits that were saved.
    attributes : dict

    Raises
    ------
    StoreFormatError
        If there is no such group, or it is not complete.
    CorruptChunkError
        If bytes changed since.
    """
    place = find_place(store)
    group, manifest = open_group(place, "model")
    try:
        dtypes, attributes = manifest["dtypes"], manifest["attributes"]
    except KeyError as error:
        raise StoreFormatError(f"the manifest of {place.url} is damaged: {error!r}") from error
    arrays = {}
    for name, dtype in dtypes.items():
        values = read_whole(open_array(group, name, place.url), name, place.url)
        arrays[name] = values.astype(np.dtype(dtype))
    return arrays, attributes


def list_names(store: Any) -> list[str]:
    """Names of what stands directly in a folder or under a URL; empty where nothing does.

    Raises
    ------
    StoreError
        If it is a file, or cannot be reached.
    """
    place = find_place(store)
    if place.folder is not None and place.folder.is_file():
        raise StoreError(f"{place.url} is a file, and a folder is needed: choose another name")

    if isinstance(place.store, FsspecStore):
        place.store.fs.invalidate_cache()  # others may have written since

    async def listed() -> list[str]:
        return [name async for name in place.store.list_dir(place.path)]

    return sorted(set(sync(listed())))


def remove_store(store: Any) -> None:
    """Remove a store and all that is in it, so that it never opens half removed."""
    place = find_place(store)
    if place.folder is None:
        sync(_clear(place))
        return
    aside = place.folder.with_name(f".{place.folder.name}.{uuid.uuid4().hex}.old")
    place.folder.rename(aside)
    rmtree(aside)


@dataclass(frozen=True)
class Place:
    """Where a store is: a zarr store and a path in it, and its folder if that is local."""

    store: Store
    path: str
    url: str
    folder: Path | None

    def key(self, name: str) -> str:
        """Return the store's key of a file of the group."""
        return f"{self.path}/{name}".lstrip("/")


def find_place(store: Any) -> Place:
    """Find out where a store is, without reading it.

    Raises
    ------
    StoreError
        If it is not a path, a URL or a zarr store, or a package for its URL is missing.
    """
    path = ""
    if isinstance(store, StorePath):
        store, path = store.store, store.path
    if isinstance(store, str) and "://" in store and not store.startswith("file://"):
        try:
            return Place(FsspecStore.from_url(store), "", store, None)
        except (ImportError, ValueError) as error:
            raise StoreError(f"{store} cannot be reached: {error}") from error
    if isinstance(store, str | Path):
        text = str(store).removeprefix("file://")
        folder = Path(text).expanduser().absolute()
    elif isinstance(store, LocalStore):
        folder = (store.root / path).absolute()
    elif isinstance(store, Store):
        return Place(store, path, f"{store}/{path}".rstrip("/"), None)
    else:
        raise StoreError(f"a store is a path, a URL or a zarr store, found {type(store).__name__}")
    return Place(LocalStore(folder), "", str(folder), folder)


def check_free(place: Place, overwrite: bool) -> None:
    """Raise unless a store may be written to a place.

    Raises
    ------
    StoreExistsError
        If something is there and ``overwrite`` is False, or it is not a Zarr store.
    """
    if place.folder is not None:
        folder = place.folder
        is_empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    else:
        is_empty = sync(place.store.is_empty(place.path))
    if is_empty:
        return
    if not any(_exists(place, name) for name in (*METADATA_FILES[:3], "X/zarr.json")):
        raise StoreExistsError(
            f"{place.url} exists and is not a Zarr store, so it is not overwritten: choose "
            "another name"
        )
    if not overwrite:
        raise StoreExistsError(f"{place.url} exists: pass overwrite=True or choose another name")


def read_chunk(array: Array, name: str, url: str, block_id: tuple[int, ...]) -> NDArray[Any]:
    """Read one chunk of an array, and check its bytes; values may be read-only.

    Parameters
    ----------
    array : zarr.Array
    name, url : str
        Of the array and of its store, for messages.
    block_id : tuple of int
        Position of the chunk in the grid.

    Raises
    ------
    CorruptChunkError
        If the chunk is missing or its bytes are not those that were written.
    """
    bounds = [
        (i * size, min((i + 1) * size, length))
        for i, size, length in zip(block_id, array.chunks, array.shape, strict=True)
    ]
    try:
        # The chunks of an edge are as large as all others, filled up behind the array's end.
        values = sync(_decoded(array, block_id))[tuple(slice(b - a) for a, b in bounds)]
        return values.astype(object) if values.dtype.kind == "T" else values
    except (_MissingChunkError, ValueError, TypeError, RuntimeError, EOFError) as error:
        cause = error
    problem = "is missing" if isinstance(cause, _MissingChunkError) else f"is corrupt ({cause})"
    chunk = array.metadata.encode_chunk_key(block_id)
    raise CorruptChunkError(
        f"{url}: chunk {chunk} of array {name!r} {problem}. Restore it from a copy, or write the "
        "dataset again"
    ) from cause


async def _decoded(array: Array, block_id: tuple[int, ...]) -> NDArray[Any]:
    """One whole chunk as zarr's pipeline decodes it; indexing the array would copy it once more."""
    inner, prototype = array.async_array, default_buffer_prototype()
    key = inner.metadata.encode_chunk_key(block_id)
    encoded = await (inner.store_path / key).get(prototype)
    spec = inner.metadata.get_chunk_spec(block_id, array.config, prototype)
    (chunk,) = await inner.codec_pipeline.decode([(encoded, spec)])
    if chunk is None:
        raise _MissingChunkError(key)
    return np.asarray(chunk.as_numpy_array())


class _MissingChunkError(Exception):
    """A chunk that zarr would silently take for fill values."""


class _StrictStore(WrapperStore[Store]):
    """A store in which a missing chunk is an error."""

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        value = await super().get(key, prototype, byte_range)
        if value is None and not key.endswith(METADATA_FILES):
            raise _MissingChunkError(key)
        return value


@contextmanager
def draft(place: Place, overwrite: bool) -> Iterator[Group]:
    """Yield an empty group that stands in its place once the block ends well, and never else."""
    check_free(place, overwrite)
    unfinished = {KEY: {"format": FORMAT, "state": "writing"}}
    if place.folder is None:
        sync(_clear(place))
        try:
            yield zarr.create_group(place.store, path=place.path, attributes=unfinished)
        except BaseException:
            sync(_clear(place))
            raise
        return
    folder = place.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.partial")
    try:
        yield zarr.create_group(LocalStore(draft), attributes=unfinished)
        _move_into_place(draft, folder, overwrite)
    except BaseException:
        rmtree(draft, ignore_errors=True)
        raise


def _move_into_place(draft: Path, folder: Path, overwrite: bool) -> None:
    old = draft.with_suffix(".old")
    if overwrite and folder.exists():
        folder.rename(old)
    try:
        draft.rename(folder)
    except OSError as error:
        if old.exists():
            old.rename(folder)
            raise
        if folder.exists():
            raise StoreExistsError(f"{folder} was written by someone else meanwhile") from error
        raise
    rmtree(old, ignore_errors=True)


async def _clear(place: Place) -> None:
    """Remove a group, its manifest first, so that it never opens half removed."""
    names = [name async for name in place.store.list_dir(place.path)]
    for name in sorted(names, key=lambda name: name not in METADATA_FILES):
        if name in METADATA_FILES:
            await place.store.delete(place.key(name))
        else:
            await place.store.delete_dir(place.key(name))


def create_array(
    group: Group,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    chunks: tuple[int, ...],
) -> Array:
    """Create an array whose chunks are compressed and end with their crc32c."""
    return group.create_array(
        name,
        shape=shape,
        dtype="string" if dtype.kind in "OUT" else dtype,
        chunks=chunks,
        filters=None,
        compressors=[BloscCodec(cname="lz4", shuffle="shuffle"), Crc32cCodec()],
        # A chunk of zeros is written as well, so that a missing one is known to be lost.
        config={"write_empty_chunks": True},
    )


def write_chunk(
    array: Array, start: tuple[int, ...], values: Any, rows: NDArray[np.int64]
) -> NDArray[Any]:
    """Write one chunk and return the sampled rows of it.

    Parameters
    ----------
    array : zarr.Array
    start : tuple of int
        Position of the chunk's first value.
    values : ndarray
    rows : ndarray of int64
        Which rows of the chunk to return.

    Raises
    ------
    DataError
        If ``values`` is not of the chunk's shape.
    StoreError
        If the group was given up meanwhile.
    """
    stop = [min(a + c, n) for a, c, n in zip(start, array.chunks, array.shape, strict=True)]
    expected = tuple(b - a for a, b in zip(start, stop, strict=True))
    if values.shape != expected:
        raise DataError(
            f"the block of {array.basename} at {start} has shape {values.shape}, its dask chunks "
            f"say {expected}: the graph that makes it gives other chunks than it declares"
        )
    array[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = values
    if isinstance(array.store, LocalStore) and not (array.store.root / "zarr.json").exists():
        # The draft was given up or finished meanwhile: take away what this late task left.
        rmtree(array.store.root, ignore_errors=True)
        raise StoreError(f"{array.store.root} was given up while a block was written")
    return np.asarray(values)[rows]


def write_whole(group: Group, name: str, values: NDArray[Any]) -> None:
    """Create an array and write all of it."""
    row_bytes = max(1, values.nbytes // max(1, values.shape[0])) if values.ndim else 1
    rows = max(1, MAX_CHUNK_BYTES // 8 // row_bytes)
    chunks = tuple(max(1, size) for size in values.shape)
    array = create_array(
        group,
        name,
        values.shape,
        values.dtype,
        (min(rows, chunks[0]), *chunks[1:]) if chunks else (),
    )
    array[...] = values


def read_whole(array: Array, name: str, url: str) -> NDArray[Any]:
    """Read all chunks of an array, checked; see `read_chunk`."""
    out = np.empty(array.shape, dtype=object if array.dtype.kind == "T" else array.dtype)
    counts = (range(-(-n // c)) for n, c in zip(array.shape, array.chunks, strict=True))
    for block_id in product(*counts):
        chunk = read_chunk(array, name, url, block_id)
        start = [i * c for i, c in zip(block_id, array.chunks, strict=True)]
        stop = [a + n for a, n in zip(start, chunk.shape, strict=True)]
        out[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = chunk
    return out


def seal(group: Group, kind: str, manifest: dict[str, Any]) -> None:
    """Write the manifest, which makes a group complete."""
    try:
        written_by = version("dask-dml")
    except PackageNotFoundError:
        written_by = "unknown"
    complete = {
        "format": FORMAT,
        "kind": kind,
        "state": "complete",
        "uid": uuid.uuid4().hex,
        "written_by": written_by,
        **manifest,
    }
    group.update_attributes({KEY: complete})


def open_group(place: Place, kind: str) -> tuple[Group, dict[str, Any]]:
    """Open a complete group and read its manifest.

    Parameters
    ----------
    place : Place
    kind : {"dataset", "model"}
        What it should hold.

    Raises
    ------
    StoreFormatError
        If nothing is there, it is foreign, half written, of a newer format or another kind.
    """
    url = place.url
    if place.folder is not None and not place.folder.exists():
        raise StoreFormatError(f"there is nothing at {url}")
    try:
        group = zarr.open_group(_StrictStore(place.store), path=place.path, mode="r")
        manifest: Any = group.attrs.asdict().get(KEY)
    except ContainsArrayError as error:
        raise StoreFormatError(_foreign(url, "is a Zarr array, not a group")) from error
    except FileNotFoundError as error:
        if _exists(place, "X/zarr.json"):
            raise StoreFormatError(
                f"{url} is half written: it has arrays and no manifest. Write it again"
            ) from error
        if place.folder is not None and place.folder.is_file():
            raise StoreFormatError(f"{url} is a file, and is not a Zarr store") from error
        what = "there is nothing at {}" if _is_empty(place) else "{} is not a Zarr store"
        raise StoreFormatError(what.format(url)) from error
    except (ValueError, TypeError, KeyError) as error:
        raise StoreFormatError(f"the metadata of {url} cannot be read: {error!r}") from error
    if not isinstance(manifest, dict):
        raise StoreFormatError(_foreign(url, "is a Zarr store that dask_dml did not write"))
    if not isinstance(manifest.get("format"), int):
        raise StoreFormatError(f"the manifest of {url} is damaged: it has no format number")
    if manifest["format"] > FORMAT:
        raise StoreVersionError(
            f"{url} has format {manifest['format']}, and this dask_dml reads up to {FORMAT}: "
            "install a newer dask_dml"
        )
    if manifest.get("state") != "complete":
        raise StoreFormatError(f"{url} is half written: its writer was stopped. Write it again")
    found = manifest.get("kind")
    if found != kind:
        opener = "load_model" if found == "model" else "open_dataset"
        raise StoreFormatError(f"{url} holds a {found}, not a {kind}: use dask_dml.{opener}(store)")
    return group, manifest


def open_array(group: Group, name: str, url: str) -> Array:
    """Open an array of a group.

    Raises
    ------
    StoreFormatError
        If it is missing or not an array.
    """
    try:
        array = group[name]
    except KeyError as error:
        raise StoreFormatError(f"{url} is damaged: array {name!r} is missing") from error
    if not isinstance(array, zarr.Array):
        raise StoreFormatError(f"{url} is damaged: {name!r} is not an array")
    return array


def _foreign(url: str, what: str) -> str:
    return f"{url} {what}. Write a dataset from its arrays: dask_dml.write_dataset(store, X, y)"


def _exists(place: Place, name: str) -> bool:
    return bool(sync(place.store.exists(place.key(name))))


def _is_empty(place: Place) -> bool:
    return bool(sync(place.store.is_empty(place.path)))


def is_process_local(store: Store) -> bool:
    """Say whether other processes would see a copy of the store."""
    while isinstance(store, WrapperStore):
        store = store._store
    if isinstance(store, FsspecStore):
        return "memory" in str(store.fs.protocol)
    return isinstance(store, MemoryStore | ZipStore)


def check_all_chunks_arrived(arrays: dict[str, Array], place: Place) -> None:
    """Raise if chunks are missing.

    Workers on machines that do not share a folder write into folders of their own.

    Raises
    ------
    StoreError
        Naming the first missing block.
    """
    if place.folder is None:
        return
    for name, array in arrays.items():
        for block_id in product(*map(range, array.cdata_shape)):
            key = f"{array.path}/{array.metadata.encode_chunk_key(block_id)}"
            if not sync(array.store.exists(key)):
                raise StoreError(
                    f"block {block_id} of {name} was written and is not in {place.folder.parent} "
                    "on this machine: with workers on other machines, use a folder that all share "
                    "or a URL such as s3://"
                )


def _storable(name: str, values: NDArray[Any]) -> NDArray[Any]:
    kind = values.dtype.kind
    if kind in "UT" or (kind == "O" and all(isinstance(v, str) for v in values.ravel())):
        return values.astype(object)
    if kind in "biufc":
        return values.astype(values.dtype.newbyteorder("="))
    raise DataError(f"array {name!r} holds {values.dtype} values: numbers or strings are needed")
