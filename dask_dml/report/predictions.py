"""Predictions as files, written block by block and whole or not at all."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from dask_dml.data.tables import arrow
from dask_dml.errors import DataError


def prediction_frame(block: dict[str, Any], labels: list[str]) -> pd.DataFrame:
    """Lay out the predictions of a block as a table.

    Parameters
    ----------
    block : dict of str to ndarray
        Columns of shape (n,) by name and, under "proba", probabilities of shape (n, K).
    labels : list of str
        Names of the K columns of probabilities.

    Returns
    -------
    DataFrame of n rows
    """
    columns = {name: values for name, values in block.items() if name != "proba"}
    if "proba" in block:
        columns |= dict(zip(labels, block["proba"].T, strict=True))
    return pd.DataFrame(columns)


def write_frames(path: Path, frames: Iterator[pd.DataFrame]) -> None:
    """Write tables one below the other to a file of the kind that its suffix says.

    Parameters
    ----------
    path : Path
        Ends in .csv, .parquet or .npy. What is there is replaced once the new file is complete.
    frames : iterator of DataFrame
        With the same columns; at least one.

    Raises
    ------
    DataError
        If predictions that are text are to go to .npy.
    IngestError
        If Parquet is asked for and pyarrow is not installed.

    Notes
    -----
    A NumPy file holds the column "prediction", shape (n,), where there is one, otherwise all
    columns, shape (n, K).
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        WRITERS[path.suffix](draft, frames)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _write_csv(path: Path, frames: Iterator[pd.DataFrame]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        for i, frame in enumerate(frames):
            frame.to_csv(file, index=False, header=i == 0)


def _write_parquet(path: Path, frames: Iterator[pd.DataFrame]) -> None:
    to_table, parquet = arrow().Table.from_pandas, arrow("parquet")
    first = to_table(next(frames), preserve_index=False)
    with parquet.ParquetWriter(path, first.schema) as writer:
        writer.write_table(first)
        for frame in frames:
            writer.write_table(to_table(frame, schema=first.schema, preserve_index=False))


def _write_npy(path: Path, frames: Iterator[pd.DataFrame]) -> None:
    with path.open("wb") as file:
        n_rows = 0
        for frame in frames:
            values = frame.get("prediction", frame).to_numpy()
            if values.dtype.kind not in "biuf":
                raise DataError("predictions that are text cannot go to .npy: use .csv or .parquet")
            if n_rows == 0:
                _write_header(file, values.dtype, values.shape)
            file.write(np.ascontiguousarray(values).tobytes())
            n_rows += len(values)
        file.seek(0)
        _write_header(file, values.dtype, (n_rows, *values.shape[1:]))


def _write_header(file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    # NumPy leaves room in the header for the first axis to grow, so it can be written anew.
    descr = np.lib.format.dtype_to_descr(dtype)
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


WRITERS: dict[str, Callable[[Path, Iterator[pd.DataFrame]], None]] = {
    ".csv": _write_csv,
    ".parquet": _write_parquet,
    ".npy": _write_npy,
}
