"""Files and frames to a `Dataset`: first a pass that looks, then a pass that writes.

Whatever the source, its rows come as Arrow tables (see `sources`). The first pass counts rows,
missing values and categories, so that every mistake is found before anything is written; the second
turns the columns into floats and writes them, a row of blocks at a time and in the source's order.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Literal, cast, get_args

import dask.array as da
import numpy as np
from dask.delayed import delayed
from numpy.typing import NDArray

from dask_dml.data.dataset import Dataset
from dask_dml.data.features import CategoricalFeatures, DenseFeatures, Features
from dask_dml.data.inputs import MAX_LABELS, Target, run
from dask_dml.data.layout import Layout
from dask_dml.data.store import check_free, find_place
from dask_dml.data.tables import (
    CsvFiles,
    Format,
    ParquetFiles,
    Table,
    TableSource,
    arrow,
    dask_tables,
    declared_kinds,
    find_files,
    is_dask_frame,
    load_svmlight,
    merge_kinds,
    open_source,
    unique_names,
)
from dask_dml.data.writing import Schema, grid_for, sample_size, write_bands, write_dataset
from dask_dml.errors import DataError, IncompatibleError, IngestError
from dask_dml.objective.categorical import NO_CATEGORY, CategoricalBlock

Missing = Literal["error", "drop", "keep"]
NUMERIC_KINDS = ("integer", "single", "float", "bool", "empty")


def ingest(
    source: Any,
    store: Any,
    target: str | None = None,
    *,
    drop: Sequence[str] = (),
    one_hot: Sequence[str] = (),
    categorical: Sequence[str] | Mapping[str, Sequence[Any]] = (),
    ids: str | None = None,
    sample_weight: str | None = None,
    missing: Missing = "error",
    dtype: Literal["float32", "float64"] | None = None,
    format: Format | None = None,
    layout: Layout = "horizontal",
    chunks: Any = "auto",
    overwrite: bool = False,
) -> Dataset:
    """Turn files or a DataFrame into a dataset, with rows in the source's order.

    Parameters
    ----------
    source : str, Path, list of them, or a pandas, dask or polars DataFrame
        CSV, Parquet or svmlight files, as paths, globs, folders or fsspec URLs. The files of a
        glob or folder are taken in sorted order, those of a list as listed. Compressed CSV is read
        by its suffix. A CSV file must end with a line break: without it, it counts as cut off.
    store : str, Path or zarr store
        Where to; see `write_dataset`.
    target : str
        Column to predict. Not given for svmlight, where the file says it.
    drop : sequence of str
        Columns to leave out.
    one_hot : sequence of str
        Columns to replace by an indicator column for each of their values, in sorted order and
        named like ``carrier=AA``.
    categorical : sequence of str, or dict of str to sequence
        The same, behind all other features, but only the number of its category is stored of a row,
        and the indicators are never written out: for many categories. A dict says the categories
        too, such as ``train.categories`` for the rows of a test. Where ``missing="keep"``, a row
        without a value has 0 in all of them. Files and frames of this process only.
    ids, sample_weight : str, optional
        Columns that name and weight the rows.
    missing : {"error", "drop", "keep"}
        Refuse missing values (null or NaN) in the columns used, drop their rows, or store NaN for
        them; in target, ids and weights they are never kept.
    dtype : {"float32", "float64"}, optional
        Of the features; by default float32 if all numeric columns are, else float64.
    format : {"csv", "parquet", "svmlight"}, optional
        By default told from the suffix.
    layout, chunks, overwrite
        See `write_dataset`.

    Returns
    -------
    Dataset

    Raises
    ------
    IngestError
        If files are missing, cut off, malformed or of different columns; if a column is unknown or
        not numeric, or values are missing. The message names the file or the columns.
    StoreExistsError
        If something is at ``store`` and ``overwrite`` is False.

    Notes
    -----
    Files and frames of this process are streamed through it, with a row of blocks in memory;
    the partitions of a dask DataFrame are read twice and written where dask computes. svmlight
    files are loaded as a sparse matrix.
    """
    if missing not in get_args(Missing):
        raise IngestError(f"missing must be 'error', 'drop' or 'keep', found {missing!r}")
    check_free(find_place(store), overwrite)
    place = {"layout": layout, "chunks": chunks, "overwrite": overwrite}
    if isinstance(source, list | tuple | str) or hasattr(source, "__fspath__"):
        found, files = find_files(source, format)
        if found == "svmlight":
            given = {"target": target, "ids": ids, "sample_weight": sample_weight}
            odd = [name for name, value in given.items() if value is not None]
            lists = {"drop": drop, "one_hot": one_hot, "categorical": categorical}
            odd += [name for name, value in lists.items() if value]
            if odd:
                raise IngestError(
                    f"svmlight files have no named columns: leave out {', '.join(odd)}"
                )
            X, y = load_svmlight(files, dtype or "float64")
            return write_dataset(store, X, y, **place)
        tables: TableSource = CsvFiles(files) if found == "csv" else ParquetFiles(files)
    elif format is not None:
        raise IngestError(f"format={format!r} is for files, source is a {type(source).__name__}")
    elif is_dask_frame(source):
        if categorical:
            raise IngestError(
                "categorical=[...] is for files and for frames of this process, and source is a "
                "dask DataFrame: write it to Parquet and ingest that, or use one_hot=[...]"
            )
        columns = unique_names(source.columns, "the DataFrame")
        roles = _check_roles(columns, target, drop, one_hot, (), ids, sample_weight)
        return _ingest_partitions(source, store, roles, missing, dtype, place)
    else:
        tables = open_source(source)
    roles = _check_roles(tables.columns, target, drop, one_hot, categorical, ids, sample_weight)
    if categorical and layout != "horizontal":
        raise IncompatibleError(
            f"categorical=[...] keeps rows whole, and layout={layout!r} cuts them: use "
            "layout='horizontal', or one_hot=[...]"
        )
    scanned = tables.scan(roles.columns, roles.encoded | {roles.target})
    profile = _merge((_profile(table, tables.kinds(table), roles) for table in scanned), roles)
    recipe = _make_recipe(profile, roles, missing, dtype, tables.label)
    n_rows = recipe.n_rows(profile)
    itemsize = recipe.row_nbytes / len(recipe.names)
    schema = Schema(
        grid=grid_for(n_rows, len(recipe.names), itemsize, chunks, layout),
        layout=layout,
        features=recipe.features,
        feature_names=recipe.names,
        target=recipe.target,
        target_name=roles.target,
        has_weight=sample_weight is not None,
        id_dtype=recipe.id_dtype,
        n_sample=sample_size("auto", n_rows, len(recipe.names), itemsize),
        seed=0,
    )
    rows = (_encode(table, recipe) for table in tables.read(roles.columns, profile.kinds))
    bands: Iterable[tuple[Any, dict[str, NDArray[Any]]]] = _rebatch(rows, schema.grid.row_chunks)
    if roles.categorical:
        bands = ((recipe.block(X, columns), columns) for X, columns in bands)
    try:
        return write_bands(store, schema, bands, overwrite)
    except DataError as error:
        raise IngestError(f"{tables.label}: {error}") from error


@dataclass(frozen=True)
class _Roles:
    """What each column is for."""

    features: list[str]
    one_hot: frozenset[str]
    categorical: Mapping[str, Sequence[Any] | None]
    target: str
    ids: str | None
    sample_weight: str | None

    @property
    def encoded(self) -> frozenset[str]:
        return self.one_hot | frozenset(self.categorical)

    @property
    def columns(self) -> list[str]:
        named = (self.target, self.ids, self.sample_weight)
        return [*self.features, *(name for name in named if name is not None)]


@dataclass
class _Profile:
    """What a pass over a table has found in the columns used.

    ``distinct`` has None where the values are too many to be categories.
    """

    n_rows: int = 0
    n_complete: int = 0
    kinds: dict[str, str] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    distinct: dict[str, set[Any] | None] = field(default_factory=dict)


@dataclass(frozen=True)
class _Recipe:
    """How a table becomes numbers."""

    roles: _Roles
    kinds: dict[str, str]
    names: list[str]
    categories: dict[str, list[Any]]
    target: Target
    id_dtype: np.dtype[Any] | None
    dtype: np.dtype[Any]
    drops_rows: bool

    @property
    def coded(self) -> dict[str, list[Any]]:
        """Categories of the columns of which the codes are stored."""
        roles = self.roles
        return {c: self.categories[c] for c in roles.features if c in roles.categorical}

    @property
    def n_numbers(self) -> int:
        """Features that are stored as numbers."""
        return len(self.names) - sum(map(len, self.coded.values()))

    @property
    def features(self) -> Features:
        """How the features are stored."""
        if not self.coded:
            return DenseFeatures(self.dtype)
        return CategoricalFeatures(self.dtype, self.n_numbers, self.coded)

    @property
    def row_nbytes(self) -> int:
        """Bytes of the features of a row."""
        return self.n_numbers * self.dtype.itemsize + 4 * len(self.coded)

    def block(self, numbers: NDArray[Any], columns: dict[str, NDArray[Any]]) -> CategoricalBlock:
        """Numbers, and the codes beside them, which are taken out there."""
        sizes = tuple(map(len, self.coded.values()))
        return CategoricalBlock(numbers, columns.pop("codes"), sizes)

    def n_rows(self, profile: _Profile) -> int:
        """Return how many of the profiled rows are written."""
        return profile.n_complete if self.drops_rows else profile.n_rows


def _check_roles(
    columns: list[str],
    target: str | None,
    drop: Sequence[str],
    one_hot: Sequence[str],
    categorical: Sequence[str] | Mapping[str, Sequence[Any]],
    ids: str | None,
    sample_weight: str | None,
) -> _Roles:
    lists = {"drop": drop, "one_hot": one_hot, "categorical": categorical}
    for argument, value in lists.items():
        if isinstance(value, str):
            raise IngestError(f"{argument} must be a list of columns: {argument}=[{value!r}]")
    if target is None:
        raise IngestError(f"target is needed: the column to predict, one of {_listed(columns)}")
    special = {"target": target, "ids": ids, "sample_weight": sample_weight}
    used = [(argument, name) for argument, name in special.items() if name is not None]
    used += [(argument, name) for argument, value in lists.items() for name in value]
    names = [name for _, name in used]
    for argument, name in used:
        if name not in columns:
            near = difflib.get_close_matches(str(name), columns, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise IngestError(
                f"{argument}: there is no column {name!r}; {hint}the columns are {_listed(columns)}"
            )
        if names.count(name) > 1:
            twice = " and ".join(sorted({a for a, other in used if other == name}))
            raise IngestError(f"column {name!r} is given more than once, in {twice}")
    apart = {target, ids, sample_weight, *drop}
    features = [name for name in columns if name not in apart]
    if not features:
        raise IngestError("no feature is left: all columns are target, ids, weights or dropped")
    known = categorical if isinstance(categorical, Mapping) else dict.fromkeys(categorical)
    return _Roles(features, frozenset(one_hot), known, target, ids, sample_weight)


def _missing_rows(column: Any) -> NDArray[np.bool_]:
    rows: NDArray[np.bool_] = arrow("compute").is_null(column, nan_is_null=True).to_numpy()
    return rows


def _profile(table: Table, kinds: dict[str, str], roles: _Roles) -> _Profile:
    complete = np.ones(table.num_rows, dtype=bool)
    profile = _Profile(n_rows=table.num_rows, kinds=kinds)
    for name in roles.columns:
        rows = _missing_rows(table[name])
        profile.missing[name] = int(rows.sum())
        complete &= ~rows
    profile.n_complete = int(complete.sum())
    for name in {*roles.encoded, roles.target}:
        values = arrow("compute").unique(table[name])
        if len(values) > MAX_LABELS + 1:
            profile.distinct[name] = None
        else:
            profile.distinct[name] = {v for v in values.to_pylist() if v is not None and v == v}
    return profile


def _merge(profiles: Iterable[_Profile], roles: _Roles) -> _Profile:
    total = _Profile(
        kinds=dict.fromkeys(roles.columns, "empty"),
        missing=dict.fromkeys(roles.columns, 0),
        distinct={name: set() for name in (*roles.encoded, roles.target)},
    )
    for profile in profiles:
        total.n_rows += profile.n_rows
        total.n_complete += profile.n_complete
        for name in roles.columns:
            total.missing[name] += profile.missing[name]
            total.kinds[name] = merge_kinds(total.kinds[name], profile.kinds[name])
        for name, distinct in profile.distinct.items():
            merged = total.distinct[name]
            if merged is None or distinct is None or len(merged | distinct) > MAX_LABELS:
                total.distinct[name] = None
            else:
                merged.update(distinct)
    return total


def _make_recipe(
    profile: _Profile, roles: _Roles, missing: Missing, dtype: str | None, label: str
) -> _Recipe:
    _check_kinds(profile.kinds, roles, label)
    _check_missing(profile, roles, missing, label)
    categories = {
        name: _categories(profile, name) for name in roles.features if name in roles.encoded
    }
    for name, given in roles.categorical.items():
        if given is not None:
            categories[name] = _given_categories(name, list(given), categories[name], label)
    names: list[str] = []
    for name in sorted(roles.features, key=roles.categorical.__contains__):
        names += [f"{name}={v}" for v in categories[name]] if name in categories else [name]
    kind = profile.kinds[roles.target]
    if kind == "text":
        target = Target.of_labels(np.array(_categories(profile, roles.target), dtype=object))
    elif kind == "bool":
        target = Target.of_labels(np.array([False, True]))
    else:
        dtypes = {"integer": np.int64, "single": np.float32}
        target = Target(np.dtype(dtypes.get(kind, np.float64)), None)
    numeric = {profile.kinds[name] for name in roles.features if name not in roles.encoded}
    if dtype is None:
        dtype = "float32" if "single" in numeric and numeric <= {"single", "bool"} else "float64"
    if dtype not in ("float32", "float64"):
        raise IngestError(f"dtype must be 'float32' or 'float64', found {dtype!r}")
    id_dtype = None
    if roles.ids is not None:
        id_dtype = np.dtype(np.int64 if profile.kinds[roles.ids] == "integer" else object)
    return _Recipe(
        roles,
        profile.kinds,
        unique_names(names, f"{label} with its indicator columns"),
        categories,
        target,
        id_dtype,
        np.dtype(dtype),
        missing == "drop",
    )


def _check_kinds(kinds: dict[str, str], roles: _Roles, label: str) -> None:
    odd = [
        name
        for name in roles.features
        if name not in roles.encoded and not _is_numeric(kinds[name])
    ]
    if odd:
        described = ", ".join(f"{name} ({kinds[name]})" for name in odd)
        raise IngestError(
            f"{label} has columns that are not numeric: {described}. Encode them with "
            f"one_hot={odd} or, of many values, categorical={odd}, or leave them out with "
            f"drop={odd}"
        )
    allowed: dict[str, tuple[str, ...]] = {roles.target: (*NUMERIC_KINDS, "text")}
    if roles.sample_weight is not None:
        allowed[roles.sample_weight] = NUMERIC_KINDS
    if roles.ids is not None:
        allowed[roles.ids] = ("integer", "text", "empty")
    allowed.update(dict.fromkeys(roles.encoded, (*NUMERIC_KINDS, "text")))
    for name, expected in allowed.items():
        if kinds[name] not in expected:
            raise IngestError(
                f"column {name!r} of {label} is of kind {kinds[name]}, which it cannot be there: "
                f"it must be one of {', '.join(expected)}"
            )


def _check_missing(profile: _Profile, roles: _Roles, missing: Missing, label: str) -> None:
    if profile.n_rows == 0:
        raise IngestError(f"{label} has no rows")
    counts = {name: count for name, count in profile.missing.items() if count}
    if missing == "error" and counts:
        raise IngestError(
            f"{label} has missing values: {_counted(counts)}. Leave out these rows with "
            "missing='drop', keep NaN with missing='keep', or leave out columns with drop=[...]"
        )
    if missing == "drop" and profile.n_complete == 0:
        raise IngestError(
            f"{label} has missing values in every row: {_counted(counts)}. Leave out columns with "
            "drop=[...]"
        )
    if missing == "keep":
        needed = {name: count for name, count in counts.items() if name not in roles.features}
        if needed:
            raise IngestError(
                f"{label} has missing values where none can be kept: {_counted(needed)}. Use "
                "missing='drop'"
            )


def _categories(profile: _Profile, name: str) -> list[Any]:
    distinct, kind = profile.distinct[name], profile.kinds[name]
    if distinct is None:
        raise IngestError(
            f"column {name!r} has more than {MAX_LABELS:,} distinct values, too many for categories"
        )
    pa = arrow()
    if kind == "text":
        return sorted(map(str, distinct))
    if any(isinstance(value, str) for value in distinct):
        return sorted(set(pa.array(distinct, pa.string()).cast(_arrow_type(kind)).to_pylist()))
    return sorted(distinct)


def _given_categories(name: str, given: list[Any], found: list[Any], label: str) -> list[Any]:
    unseen = [str(value) for value in found if value not in given]
    if unseen:
        raise IngestError(
            f"column {name!r} of {label} has values that are not among its categories: "
            f"{_listed(unseen)}. Drop their rows, or make them missing and pass missing='keep', "
            "which leaves them in no category"
        )
    return given


def _encode(table: Table, recipe: _Recipe) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """Turn a table into X of shape (m, p) and the columns beside it."""
    roles, kinds = recipe.roles, recipe.kinds
    if recipe.drops_rows:
        missing = [_missing_rows(table[name]) for name in roles.columns]
        table = table.filter(arrow().array(~np.any(missing, axis=0)))
    X = np.empty((table.num_rows, recipe.n_numbers), dtype=recipe.dtype)
    codes = []
    j = 0
    for name in roles.features:
        if name in roles.categorical:
            codes.append(_codes(table[name], kinds[name], recipe.categories[name]))
        elif name in recipe.categories:
            width = len(recipe.categories[name])
            X[:, j : j + width] = _indicators(table[name], kinds[name], recipe.categories[name])
            j += width
        else:
            X[:, j] = _numbers(table[name])
            j += 1
    columns = {"y": _target_values(table[roles.target], kinds[roles.target], recipe.target)}
    if codes:
        columns["codes"] = np.stack(codes, axis=1)
    if roles.sample_weight is not None:
        columns["sample_weight"] = _numbers(table[roles.sample_weight])
    if roles.ids is not None:
        ids = table[roles.ids].cast(_arrow_type(kinds[roles.ids]))
        columns["ids"] = ids.to_numpy().astype(recipe.id_dtype)
    return X, columns


def _numbers(column: Any) -> NDArray[np.float64]:
    pa = arrow()
    values: NDArray[np.float64] = column.cast(pa.float64(), safe=False).to_numpy()
    return values


def _codes(column: Any, kind: str, categories: list[Any]) -> NDArray[np.int32]:
    """Numbers of the categories, and NO_CATEGORY where a value is missing."""
    dtype = _arrow_type(kind)
    codes = arrow("compute").index_in(
        column.cast(dtype), value_set=arrow().array(categories, dtype)
    )
    return np.asarray(codes.fill_null(NO_CATEGORY).to_numpy(), dtype=np.int32)


def _indicators(column: Any, kind: str, categories: list[Any]) -> NDArray[np.float64]:
    codes = _codes(column, kind, categories)
    indicators = np.zeros((len(column), len(categories)))
    indicators[codes[:, None] == np.arange(len(categories))] = 1
    indicators[_missing_rows(column)] = np.nan
    return indicators


def _target_values(column: Any, kind: str, target: Target) -> NDArray[Any]:
    values = column.cast(_arrow_type(kind)).to_numpy()
    return np.asarray(values, dtype=target.dtype if target.labels is None else target.labels.dtype)


def _arrow_type(kind: str) -> Any:
    pa = arrow()
    return {
        "text": pa.string(),
        "integer": pa.int64(),
        "bool": pa.bool_(),
        "single": pa.float32(),
    }.get(kind, pa.float64())


def _rebatch(
    rows: Iterable[tuple[NDArray[Any], dict[str, NDArray[Any]]]], sizes: Sequence[int]
) -> Iterator[tuple[NDArray[Any], dict[str, NDArray[Any]]]]:
    """Cut a stream of rows into bands of the given numbers of rows; a shorter rest comes last."""
    left = iter(sizes)
    size, filled = next(left), 0
    band: dict[str, NDArray[Any]] = {}
    for X, columns in rows:
        start = 0
        while start < len(X):
            parts = {"X": X, **columns}
            if not band:
                band = {k: np.empty((size, *v.shape[1:]), v.dtype) for k, v in parts.items()}
            taken = min(size - filled, len(X) - start)
            for name, values in parts.items():
                band[name][filled : filled + taken] = values[start : start + taken]
            start, filled = start + taken, filled + taken
            if filled == size:
                yield band.pop("X"), band
                band, filled, size = {}, 0, next(left, size)
    if filled:
        yield band.pop("X")[:filled], {name: values[:filled] for name, values in band.items()}


def _ingest_partitions(
    frame: Any,
    store: Any,
    roles: _Roles,
    missing: Missing,
    dtype: str | None,
    place: dict[str, Any],
) -> Dataset:
    """Profile, encode and write a dask DataFrame's partitions where they are."""
    label = "the DataFrame"
    tables = dask_tables(frame, roles.columns)
    tasks = [delayed(_profile_typed)(table, roles) for table in tables]
    profiles = run(tasks, is_local=False)
    recipe = _make_recipe(_merge(profiles, roles), roles, missing, dtype, label)
    counts = [recipe.n_rows(profile) for profile in profiles]
    encoded = [delayed(_encode)(t, recipe) for t, n in zip(tables, counts, strict=True) if n]
    counts = [n for n in counts if n]

    def joined(item: Any, shape: tuple[int, ...], dtype: Any) -> da.Array:
        arrays = [
            da.from_delayed(item(part), (n, *shape), dtype=dtype)
            for part, n in zip(encoded, counts, strict=True)
        ]
        return cast(da.Array, da.concatenate(arrays))

    def column(name: str, dtype: Any) -> da.Array:
        return joined(lambda part: part[1][name], (), dtype)

    labels = recipe.target.labels
    X = joined(itemgetter(0), (len(recipe.names),), recipe.dtype)
    return write_dataset(
        store,
        X,
        column("y", recipe.target.dtype if labels is None else labels.dtype),
        feature_names=recipe.names,
        sample_weight=None if roles.sample_weight is None else column("sample_weight", float),
        ids=None if roles.ids is None else column("ids", recipe.id_dtype),
        target=roles.target,
        **place,
    )


def _profile_typed(table: Table, roles: _Roles) -> _Profile:
    return _profile(table, declared_kinds(table), roles)


def _is_numeric(kind: str) -> bool:
    return kind in NUMERIC_KINDS


def _listed(names: list[str]) -> str:
    return ", ".join(names[:30]) + (f" and {len(names) - 30} more" if len(names) > 30 else "")


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in counts.items())
