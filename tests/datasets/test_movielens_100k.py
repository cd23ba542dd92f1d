from __future__ import annotations

import dask
import numpy as np
import pytest

from dask_dml.datasets import movielens_100k


@pytest.fixture(scope="module")
def data():
    return movielens_100k.load(seed=0)


def test_every_rating_is_used_once(data):
    assert data.report.rows_read == 100_004
    assert data.train_X.shape[0] + data.test_X.shape[0] == 100_004
    assert set(data.train_y.index).isdisjoint(data.test_y.index)
    assert data.report.cells_imputed == {"year": 7}
    assert 0.45 < data.train_y.mean() < 0.6


def test_each_row_has_one_user_and_at_most_one_film(data):
    names = np.array(data.feature_names)
    assert len(names) == data.train_X.shape[1] == len(set(names))
    for prefix, most in (("user=", 1), ("film=", 1), ("genre=", 19)):
        columns = np.flatnonzero(np.char.startswith(names, prefix))
        counts = data.train_X[:, columns].sum(axis=1)
        assert counts.max() <= most
        if prefix == "user=":
            assert counts.min() == 1
            assert len(columns) == 671
    assert np.isfinite(data.train_X.data).all()
    assert data.train_X.dtype == np.float32


def test_a_film_with_a_column_has_enough_ratings_to_learn_from(data):
    films = np.char.startswith(np.array(data.feature_names), "film=")
    assert data.train_X[:, np.flatnonzero(films)].sum(axis=0).min() >= movielens_100k.MIN_RATINGS


def test_the_seed_chooses_the_split(data):
    again, other = movielens_100k.load(seed=0), movielens_100k.load(seed=1)
    assert again.train_X.data.tobytes() == data.train_X.data.tobytes()
    assert not other.test_y.index.equals(data.test_y.index)


def test_write_keeps_rows_and_names(data, tmp_path):
    train, test, report = movielens_100k.write(tmp_path)
    assert report == data.report
    assert train.target == "liked"
    assert train.feature_names == list(data.feature_names)
    assert train.grid.shape[0] >= 8
    X, y = dask.compute(test.X, test.y)
    np.testing.assert_array_equal(X.toarray(), data.test_X.toarray())
    np.testing.assert_array_equal(y, data.test_y)
