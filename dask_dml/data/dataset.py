"""A dataset: rows and columns in a Zarr store, seen as dask arrays.

The group holds the features ``X`` (see `features`), ``y`` (n,), optionally ``sample_weight`` and
``ids`` (n,), and a group ``sample`` with a small random sample of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from html import escape
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from dask_dml.data.features import (
    features_of,
)
from dask_dml.data.layout import (
    BlockGrid,
    Layout,
    check_layout,
)
from dask_dml.data.store import (
    Array,
    Place,
    find_place,
    open_array,
    open_group,
    read_chunk,
    read_whole,
)
from dask_dml.errors import StoreError, StoreFormatError


@dataclass(frozen=True)
class Sample:
    """Rows drawn at random from a dataset.

    Attributes
    ----------
    X : ndarray or CSR array of shape (m, p)
    y : ndarray of shape (m,)
    index : ndarray of int64 of shape (m,)
        Which rows of the dataset they are, sorted.
    sample_weight : ndarray of shape (m,) or None
    """

    X: Any
    y: NDArray[Any]
    index: NDArray[np.int64]
    sample_weight: NDArray[Any] | None


class Dataset:
    """Rows and columns in a Zarr store, seen as dask arrays.

    Made by `write_dataset`, `open_dataset` and `ingest`; it reads nothing but metadata until its
    arrays are computed. It can be pickled.

    Attributes
    ----------
    X : dask array of shape (n_rows, n_columns)
        One chunk, and one task, for each block of the grid; NumPy arrays, or CSR where the
        features are sparse. Of categories it has the indicator columns, as codes until computed.
    y : dask array of shape (n_rows,)
        The values that were written, with X's row chunks.
    sample_weight, ids : dask array of shape (n_rows,) or None
    layout : {"horizontal", "vertical", "hybrid"}
    grid : BlockGrid
    feature_names : list of str
    target : str or None
        Name of y.
    classes : ndarray or None
        Sorted distinct values of y, where they are labels or at most 1,000 integers.
    n_rows, n_columns : int
    storage : {"dense", "sparse", "categorical"}
        How the features lie in the store.
    n_values : int or None
        Values that are stored of sparse features.
    categories : dict of str to list
        Categories, in order, of the columns of which codes are stored; see `ingest`.
    block_nbytes : tuple of int
        Bytes of the features of each row of blocks, in memory.
    url : str
    sample : Sample
        A small random sample of the rows, read at the first use.
    """

    def __init__(
        self, place: Place, manifest: dict[str, Any], grid: BlockGrid, arrays: dict[str, Array]
    ) -> None:
        self._place = place
        self._manifest = manifest
        self._features = features_of(manifest)
        self._arrays = arrays
        self.grid = grid
        self.layout: Layout = manifest["layout"]
        self.feature_names: list[str] = list(manifest["feature_names"])
        self.target: str | None = manifest["target"]
        self.n_rows, self.n_columns = grid.n_rows, grid.n_columns
        self.storage = self._features.storage
        self.n_values = self._features.n_values
        self.categories = self._features.categories
        self.block_nbytes = self._features.block_nbytes(grid)
        self.url = place.url
        self.classes = _classes(manifest)
        self._labels = None if manifest["labels"] is None else self.classes

    @cached_property
    def X(self) -> da.Array:  # noqa: N802
        """The features, a dask array of shape (n_rows, n_columns)."""
        name = self._array_name("X")
        return self._features.blocks(self._arrays, self.grid, self.url, name)

    @cached_property
    def y(self) -> da.Array:
        """The target as it was written, a dask array of shape (n_rows,)."""
        if self._labels is None:
            return self._dask_array("y")
        codes = self._dask_array("y", suffix="-codes")
        y: da.Array = da.map_blocks(
            partial(np.take, self._labels),
            codes,
            dtype=self._labels.dtype,
            meta=np.empty(0, dtype=self._labels.dtype),
            name=self._array_name("y"),
        )
        return y

    @cached_property
    def sample_weight(self) -> da.Array | None:
        """The weights of the rows, a dask array of shape (n_rows,), or None."""
        return self._dask_array("sample_weight") if "sample_weight" in self._arrays else None

    @cached_property
    def ids(self) -> da.Array | None:
        """The ids of the rows, a dask array of shape (n_rows,), or None."""
        return self._dask_array("ids") if "ids" in self._arrays else None

    @cached_property
    def sample(self) -> Sample:
        """A small random sample of the rows, as NumPy arrays."""
        parts = {
            name: read_whole(self._arrays[f"sample/{name}"], f"sample/{name}", self.url)
            for name in ("y", "index", "sample_weight")
            if f"sample/{name}" in self._arrays
        }
        X = self._features.read_sample(self._arrays, self.n_columns, self.url)
        y = parts["y"]
        if self._labels is not None:
            y = self._labels[y]
        return Sample(X, y, parts["index"], parts.get("sample_weight"))

    def repartition(
        self,
        store: Any,
        layout: Layout,
        chunks: Any = "auto",
        overwrite: bool = False,
    ) -> Dataset:
        """Write the same rows and columns in another layout or other blocks.

        Parameters
        ----------
        store : str, Path or zarr store
            Where to; see `write_dataset`.
        layout : {"horizontal", "vertical", "hybrid"}
        chunks : "auto", (int, int), dict or int
            See `write_dataset`.
        overwrite : bool

        Returns
        -------
        Dataset
            With the same values, row order, names and classes.

        Raises
        ------
        StoreError
            If a store that cannot be replaced in one step is to be written onto itself.
        """
        from dask_dml.data.writing import write_dataset

        place = find_place(store)
        if place.url == self.url and place.folder is None:
            raise StoreError(f"{self.url} cannot be rewritten onto itself: choose another store")
        return write_dataset(
            store,
            self.X,
            self.y,
            layout=layout,
            chunks=chunks,
            feature_names=self.feature_names,
            sample_weight=self.sample_weight,
            ids=self.ids,
            overwrite=overwrite,
            target=self.target,
            sample_rows=self._manifest["sample"]["rows"],
            seed=self._manifest["sample"]["seed"],
        )

    def __repr__(self) -> str:
        down, across = self.grid.shape
        return (
            f"<Dataset {self.url}: {self.n_rows:,} rows x {self.n_columns:,} columns "
            f"{self._dtype}, {self.layout} {down} x {across} blocks, "
            f"target {self.target or 'y'}{_describe_classes(self.classes)}>"
        )

    def _repr_html_(self) -> str:
        down, across = self.grid.shape
        names = ", ".join(self.feature_names[:8]) + (", ..." if self.n_columns > 8 else "")
        rows = {
            "store": self.url,
            "shape": f"{self.n_rows:,} rows x {self.n_columns:,} columns",
            "dtype": self._dtype,
            "blocks": f"{self.layout}, {down} x {across}",
            "features": names,
            "target": (self.target or "y") + _describe_classes(self.classes),
        }
        cells = (f"<tr><th>{k}</th><td>{escape(v)}</td></tr>" for k, v in rows.items())
        return f"<table>{''.join(cells)}</table>"

    @property
    def _dtype(self) -> str:
        dtype = str(self._features.dtype)
        return dtype if self.n_values is None else f"{dtype}, {self.n_values:,} values"

    def __dask_tokenize__(self) -> tuple[str, str]:
        return "dask_dml.Dataset", self._manifest["uid"]

    def _array_name(self, name: str) -> str:
        return f"dml-{self._manifest['uid']}-{name}"

    def _dask_array(self, name: str, suffix: str = "") -> da.Array:
        array = self._arrays[name]
        dtype = np.dtype(object) if array.dtype.kind in "TO" else array.dtype.newbyteorder("=")
        blocks: da.Array = da.map_blocks(
            partial(read_chunk, array, name, self.url),
            chunks=(self.grid.row_chunks,),
            dtype=dtype,
            meta=np.empty(0, dtype=dtype),
            name=self._array_name(name) + suffix,
        )
        return blocks


def open_dataset(store: Any) -> Dataset:
    """Open a dataset that `write_dataset` or `ingest` wrote.

    Parameters
    ----------
    store : str, Path or zarr store
        A path, an fsspec URL such as ``s3://bucket/name.zarr``, or a zarr store.

    Returns
    -------
    Dataset

    Raises
    ------
    StoreFormatError
        If nothing is there, it is not ours, not complete, of a newer format, or its manifest
        and arrays disagree; the message says which.
    """
    place = find_place(store)
    group, manifest = open_group(place, "dataset")
    try:
        n_rows, n_columns = manifest["n_rows"], manifest["n_columns"]
        n_sample = manifest["sample"]["rows"]
        features = features_of(manifest)
        arrays = {name: open_array(group, name, place.url) for name in features.names}
        grid = features.grid(arrays, n_rows, n_columns)
        expected = {
            **features.shapes(grid, n_sample),
            **dict.fromkeys(("y", *manifest["columns"]), (n_rows,)),
            "sample/y": (n_sample,),
            "sample/index": (n_sample,),
        }
        if "sample_weight" in expected:
            expected["sample/sample_weight"] = (n_sample,)
        check_layout(manifest["layout"])
        n_names = len(manifest["feature_names"])
        sampled = [f"sample/{name}" for name in features.names]
        for name in {*expected, *sampled} - {*arrays}:
            arrays[name] = open_array(group, name, place.url)
        dataset = Dataset(place, manifest, grid, arrays)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, StoreFormatError):
            raise
        raise StoreFormatError(f"the manifest of {place.url} is damaged: {error!r}") from error
    found = {name: arrays[name].shape for name in expected}
    if found != expected or n_names != n_columns:
        odd = [f"{k} is {found[k]}, not {expected[k]}" for k in expected if found[k] != expected[k]]
        raise StoreFormatError(
            f"manifest and arrays of {place.url} disagree: "
            f"{'; '.join(odd) or f'{n_names} names for {n_columns} columns'}"
        )
    row_chunks = {name: arrays[name].chunks[0] for name in ("y", *manifest["columns"])}
    row_chunks["X"] = grid.row_chunks[0]
    if len(set(row_chunks.values())) > 1:
        raise StoreFormatError(f"the arrays of {place.url} have unequal row chunks: {row_chunks}")
    return dataset


def _classes(manifest: dict[str, Any]) -> NDArray[Any] | None:
    if manifest["classes"] is None:
        return None
    dtypes = {"O": object, "U": str, "b": bool}
    return np.array(manifest["classes"], dtype=dtypes.get(manifest["labels"]))


def _describe_classes(classes: NDArray[Any] | None) -> str:
    return "" if classes is None else f" ({len(classes)} classes)"
