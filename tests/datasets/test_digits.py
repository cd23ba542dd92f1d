from __future__ import annotations

import dask
import numpy as np

from dask_dml.datasets import digits


def test_images_are_split_between_training_and_test():
    data = digits.load(seed=3)
    assert data.train_X.shape == (1_438, 64)
    assert data.test_X.shape == (359, 64)
    for X, y in ((data.train_X, data.train_y), (data.test_X, data.test_y)):
        assert X.dtype == np.float32
        assert (X.min(), X.max()) == (0, 1)
        assert set(y) == set(range(10))
    assert digits.load(seed=3).test_X.tobytes() == data.test_X.tobytes()
    assert digits.load(seed=4).test_X.tobytes() != data.test_X.tobytes()


def test_write_keeps_rows_and_names(tmp_path):
    train, test = digits.write(tmp_path)
    data = digits.load()
    assert train.target == "digit"
    assert train.feature_names[:9] == [f"pixel_0_{i}" for i in range(8)] + ["pixel_1_0"]
    assert train.classes.tolist() == list(range(10))
    assert train.grid.shape[0] >= 8
    X, y = dask.compute(test.X, test.y)
    np.testing.assert_array_equal(X, data.test_X)
    np.testing.assert_array_equal(y, data.test_y)
