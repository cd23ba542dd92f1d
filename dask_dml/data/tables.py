"""Where rows come from: files and frames as a stream of Arrow tables.

A source is passed over twice. `scan` gives its tables as they are, CSV as text; `read` gives them
with the kinds of columns that the scan found.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from os import fspath
from pathlib import PurePosixPath
from typing import Any, Literal, Protocol, get_args

import fsspec
import fsspec.core
import numpy as np
import pandas as pd
import scipy.sparse
from dask.base import is_dask_collection
from dask.delayed import delayed
from numpy.typing import NDArray

from dask_dml.errors import IngestError

Format = Literal["csv", "parquet", "svmlight"]
Table = Any  # pyarrow.Table

SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".parq": "parquet",
    ".pq": "parquet",
    ".svm": "svmlight",
    ".svmlight": "svmlight",
    ".libsvm": "svmlight",
}
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst", ".zip")
ROWS_PER_TABLE = 65_536
CSV_BLOCK_BYTES = 16 * 2**20


class TableSource(Protocol):
    """Rows that can be passed over more than once.

    Attributes
    ----------
    label : str
        What to call it in messages.
    columns : list of str
    """

    label: str
    columns: list[str]

    def kinds(self, table: Table) -> dict[str, str]:
        """Return the kind of each column of a scanned table; see `merge_kinds`."""

    def scan(self, columns: list[str], labels: Set[str]) -> Iterator[Table]:
        """Give the rows for the first time; of text files, ``labels`` are given as spelled."""

    def read(self, columns: list[str], kinds: dict[str, str]) -> Iterator[Table]:
        """Give the same rows again, with columns of the kinds that the scan found."""


def arrow(module: str = "") -> Any:
    """Import pyarrow, or a module of it, when it is needed.

    Raises
    ------
    IngestError
        If it is not installed.
    """
    try:
        return importlib.import_module(f"pyarrow.{module}".rstrip("."))
    except ImportError as error:
        raise IngestError("ingest needs pyarrow: pip install 'dask-dml[frames]'") from error


def open_source(source: Any) -> TableSource:
    """Wrap a pandas or polars DataFrame.

    Raises
    ------
    IngestError
        If it is something else.
    """
    if isinstance(source, pd.DataFrame):
        return PandasFrame(source)
    if type(source).__module__.startswith("polars") and hasattr(source, "collect"):
        raise IngestError("source is a polars LazyFrame: pass source.collect()")
    if type(source).__module__.startswith("polars") and hasattr(source, "to_arrow"):
        return PolarsFrame(source)
    raise IngestError(
        "source must be files (CSV, Parquet, svmlight) or a pandas, dask or polars DataFrame, "
        f"found {type(source).__name__}; arrays are written with dask_dml.write_dataset"
    )


def is_dask_frame(source: Any) -> bool:
    """Say whether a source is a dask DataFrame."""
    return (
        is_dask_collection(source) and hasattr(source, "to_delayed") and hasattr(source, "dtypes")
    )


def dask_tables(frame: Any, columns: list[str]) -> list[Any]:
    """Return a dask DataFrame's partitions as Delayed Arrow tables."""
    named = frame.rename(columns={name: str(name) for name in frame.columns})
    return [delayed(pandas_table)(part) for part in named[columns].to_delayed()]


def pandas_table(frame: pd.DataFrame) -> Table:
    """Convert a pandas DataFrame to an Arrow table, column by column.

    Raises
    ------
    IngestError
        If a column mixes types; it is named.
    """
    pa = arrow()
    columns = {}
    for name in frame.columns:
        try:
            columns[str(name)] = pa.Array.from_pandas(frame[name])
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise IngestError(f"column {name!r} mixes types or cannot be read: {error}") from error
    return pa.table(columns)


class _TypedTables(ABC):
    """A source whose columns have declared types, so that both passes are alike."""

    def kinds(self, table: Table) -> dict[str, str]:
        return declared_kinds(table)

    @abstractmethod
    def tables(self, columns: list[str]) -> Iterator[Table]:
        """Give the rows, some at a time."""

    def scan(self, columns: list[str], labels: Set[str]) -> Iterator[Table]:
        del labels  # values that have types have no other spelling
        return self.tables(columns)

    def read(self, columns: list[str], kinds: dict[str, str]) -> Iterator[Table]:
        del kinds  # declared
        return self.tables(columns)


class PandasFrame(_TypedTables):
    """The rows of a pandas DataFrame."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.label = "the DataFrame"
        self.columns = unique_names(frame.columns, self.label)
        self._frame = frame.set_axis(self.columns, axis=1)

    def tables(self, columns: list[str]) -> Iterator[Table]:
        """Give the rows, some at a time."""
        for start in range(0, len(self._frame), ROWS_PER_TABLE):
            yield pandas_table(self._frame[columns].iloc[start : start + ROWS_PER_TABLE])


class PolarsFrame(_TypedTables):
    """The rows of a polars DataFrame."""

    def __init__(self, frame: Any) -> None:
        self.label = "the DataFrame"
        self.columns = list(frame.columns)
        self._frame = frame

    def tables(self, columns: list[str]) -> Iterator[Table]:
        """Give the rows, some at a time."""
        for start in range(0, len(self._frame), ROWS_PER_TABLE):
            yield self._frame.select(columns).slice(start, ROWS_PER_TABLE).to_arrow()


@dataclass(frozen=True)
class File:
    """A file on any file system that fsspec knows."""

    filesystem: Any
    path: str
    url: str

    @contextmanager
    def open(self, compression: str | None = None) -> Iterator[_TailFile]:
        """Open it for reading; trouble with it becomes an IngestError that names it."""
        pa = arrow()
        try:
            opened = fsspec.core.OpenFile(self.filesystem, self.path, compression=compression)
            with opened as stream:
                yield _TailFile(stream)
        except IngestError:
            raise
        except (pa.ArrowException, OSError, EOFError, ValueError) as error:
            raise IngestError(
                f"{self.url} cannot be read, it may be cut off or malformed: {error}"
            ) from error


class _TailFile:
    """A stream that remembers the last byte it gave."""

    closed = False

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._stream.read(size)
        self.last = data[-1:] or self.last
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._stream.seek(offset, whence))

    def tell(self) -> int:
        return int(self._stream.tell())

    def seekable(self) -> bool:
        return bool(self._stream.seekable())

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True


class ParquetFiles(_TypedTables):
    """The rows of Parquet files, one file after the other."""

    def __init__(self, files: list[File]) -> None:
        self.label = _label(files)
        self._files = files
        names = [(file, self._names(file)) for file in files]
        self.columns = _common_columns(names)

    def tables(self, columns: list[str]) -> Iterator[Table]:
        """Give the rows, some at a time."""
        pa = arrow()
        for file in self._files:
            with file.open() as stream:
                reader = arrow("parquet").ParquetFile(stream)
                for batch in reader.iter_batches(ROWS_PER_TABLE, columns=columns):
                    yield pa.Table.from_batches([batch]).select(columns)

    @staticmethod
    def _names(file: File) -> list[str]:
        with file.open() as stream:
            return unique_names(arrow("parquet").ParquetFile(stream).schema_arrow.names, file.url)


class CsvFiles:
    """The rows of CSV files, one file after the other."""

    def __init__(self, files: list[File]) -> None:
        self.label = _label(files)
        self._files = files
        self._guesses: dict[str, dict[str, Any]] = {}
        self.columns = _common_columns([(file, self._names(file)) for file in files])

    def kinds(self, table: Table) -> dict[str, str]:
        """Tell the kinds of columns from their types, and of text from its values."""
        kinds = declared_kinds(table)
        return {n: text_kind(table[n]) if kind == "text" else kind for n, kind in kinds.items()}

    def scan(self, columns: list[str], labels: Set[str]) -> Iterator[Table]:
        """Give the rows, and make sure that no file is cut off.

        Arrow guesses types from a file's first block, and to read by them is several times faster
        than to read text. From the block on that they do not fit, the rest is given as text.
        """
        text = arrow().string()
        for file in self._files:
            guesses = {n: text if n in labels else self._guesses[file.url][n] for n in columns}
            n_given = 0
            try:
                for table in self._checked_tables(file, guesses):
                    yield table
                    n_given += table.num_rows
            except IngestError as error:
                if "CSV conversion error" not in str(error):
                    raise
                for table in self._checked_tables(file, dict.fromkeys(columns, text)):
                    if n_given < table.num_rows:
                        yield table.slice(n_given)
                    n_given = max(0, n_given - table.num_rows)

    def read(self, columns: list[str], kinds: dict[str, str]) -> Iterator[Table]:
        """Give the rows with typed columns."""
        pa = arrow()
        types = {"integer": pa.int64(), "float": pa.float64(), "empty": pa.float64()}
        column_types = {
            name: pa.bool_() if kinds[name] == "bool" else types.get(kinds[name], pa.string())
            for name in columns
        }
        for file in self._files:
            with file.open("infer") as stream:
                yield from self._tables(file, stream, column_types)

    def _checked_tables(self, file: File, types: dict[str, Any]) -> Iterator[Table]:
        with file.open("infer") as stream:
            yield from self._tables(file, stream, types)
            if stream.last not in (b"\n", b"\r"):
                raise IngestError(
                    f"{file.url} is cut off: its last row has no line break. If the file is "
                    "complete, end it with one"
                )

    def _tables(self, file: File, stream: _TailFile, types: dict[str, Any]) -> Iterator[Table]:
        convert = arrow("csv").ConvertOptions(
            include_columns=list(types), column_types=types, strings_can_be_null=True
        )
        for batch in self._open(file, stream, convert):
            yield arrow().Table.from_batches([batch])

    @staticmethod
    def _open(file: File, stream: _TailFile, convert: Any) -> Any:
        csv = arrow("csv")
        delimiter = "\t" if ".tsv" in PurePosixPath(file.path).suffixes else ","
        return csv.open_csv(
            stream,
            read_options=csv.ReadOptions(block_size=CSV_BLOCK_BYTES),
            parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=convert,
        )

    def _names(self, file: File) -> list[str]:
        with file.open("infer") as stream:
            schema = self._open(file, stream, arrow("csv").ConvertOptions()).schema
        names = unique_names(schema.names, file.url)
        self._guesses[file.url] = {
            field.name: field.type
            if type_kind(field.type) in ("integer", "float", "bool")
            else arrow().string()
            for field in schema
        }
        return names


def find_files(source: Any, given: Format | None) -> tuple[Format, list[File]]:
    """Find the files that paths, globs, folders and URLs stand for, and their format.

    Raises
    ------
    IngestError
        If there is no file, or their formats cannot be told or differ.
    """
    if given is not None and given not in get_args(Format):
        raise IngestError(f"format must be one of {', '.join(get_args(Format))}, found {given!r}")
    patterns = list(source) if isinstance(source, list | tuple) else [source]
    files = [file for pattern in patterns for file in _matching_files(pattern)]
    if not files:
        raise IngestError("source is an empty list of files")
    formats = {file.url: given or _format_of(file) for file in files}
    first = formats[files[0].url]
    for url, found in formats.items():
        if found != first:
            raise IngestError(f"{files[0].url} is {first} and {url} is {found}: ingest one format")
    return first, files


def load_svmlight(files: list[File], dtype: str) -> tuple[Any, NDArray[Any]]:
    """Load svmlight files as one sparse matrix (n, p) and its target (n,).

    Raises
    ------
    IngestError
        If a file cannot be read or is malformed, or none has a row.
    """
    from sklearn.datasets import load_svmlight_file, load_svmlight_files

    contents = []
    for file in files:
        with file.open("infer") as stream:
            contents.append(stream.read())
            load_svmlight_file(BytesIO(contents[-1]))  # alone, so that an error names its file
    parts = load_svmlight_files([BytesIO(content) for content in contents], dtype=np.dtype(dtype))
    X, y = scipy.sparse.vstack(parts[0::2], format="csr"), np.concatenate(parts[1::2])
    if 0 in X.shape:
        raise IngestError(f"{_label(files)} has no rows")
    return X, y


def declared_kinds(table: Table) -> dict[str, str]:
    """Tell the kinds of columns from their Arrow types."""
    return {name: type_kind(table.schema.field(name).type) for name in table.column_names}


def type_kind(dtype: Any) -> str:
    """Tell the kind of an Arrow type; that of dates and the like is their type's name."""
    types = arrow("types")
    if types.is_dictionary(dtype):
        return type_kind(dtype.value_type)
    for kind, tests in (
        ("empty", (types.is_null,)),
        ("bool", (types.is_boolean,)),
        ("integer", (types.is_integer,)),
        ("single", (types.is_float16, types.is_float32)),
        ("float", (types.is_float64, types.is_decimal)),
        ("text", (types.is_string, types.is_large_string, _is_string_view)),
    ):
        if any(test(dtype) for test in tests):
            return kind
    return str(dtype)


def text_kind(column: Any) -> str:
    """Tell the kind of a column of text from its values."""
    pa = arrow()
    if column.null_count == len(column):
        return "empty"
    for kind, dtype in (("integer", pa.int64()), ("float", pa.float64()), ("bool", pa.bool_())):
        try:
            column.cast(dtype)
        except pa.ArrowInvalid:
            continue
        return kind
    return "text"


def merge_kinds(a: str, b: str) -> str:
    """Return the kind of a column that is of kind ``a`` in one table and ``b`` in another.

    Kinds are "empty", "bool", "integer", "single" (float32), "float", "text", and the names of
    other types.
    """
    if b in (a, "empty"):
        return a
    if a == "empty":
        return b
    return "float" if {a, b} <= {"integer", "single", "float"} else "text"


def unique_names(names: Any, label: str) -> list[str]:
    """Return column names as strings.

    Raises
    ------
    IngestError
        If one is there twice.
    """
    columns = [str(name) for name in names]
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise IngestError(f"{label} has more than one column named {', '.join(twice)}")
    return columns


def _is_string_view(dtype: Any) -> bool:
    return str(dtype) == "string_view"


def _common_columns(names: list[tuple[File, list[str]]]) -> list[str]:
    first_file, first = names[0]
    for file, columns in names[1:]:
        missing = [name for name in first if name not in columns]
        extra = [name for name in columns if name not in first]
        if missing or extra:
            parts = [f"lacks {', '.join(missing)}"] if missing else []
            parts += [f"has {', '.join(extra)} besides"] if extra else []
            raise IngestError(
                f"columns differ: {file.url} {' and '.join(parts)}, compared with {first_file.url}"
            )
    return first


def _label(files: list[File]) -> str:
    return files[0].url if len(files) == 1 else f"{files[0].url} and {len(files) - 1} more files"


def _matching_files(pattern: Any) -> list[File]:
    url = fspath(pattern)
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise IngestError(f"{url} cannot be reached: {error}") from error
    prefix = url.split("://")[0] + "://" if "://" in url else ""
    if any(c in path for c in "*?["):
        paths = sorted(p for p in filesystem.glob(path) if filesystem.isfile(p))
    elif filesystem.isdir(path):
        known = (*SUFFIXES, *COMPRESSIONS)
        paths = sorted(p for p in filesystem.find(path) if p.endswith(known))
    else:
        paths = [path] if filesystem.exists(path) else []
    if not paths:
        raise IngestError(f"no file matches {url}")
    return [File(filesystem, p, f"{prefix}{p}") for p in paths]


def _format_of(file: File) -> Format:
    for suffix in reversed(PurePosixPath(file.path).suffixes):
        if suffix in SUFFIXES:
            return SUFFIXES[suffix]
        if suffix not in COMPRESSIONS:
            break
    raise IngestError(
        f"{file.url}: its format cannot be told from its name: pass format='csv', 'parquet' or "
        "'svmlight'"
    )
