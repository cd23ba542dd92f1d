"""Sparse rows on a cluster: they stay sparse, and give the bits that this process gives."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

import dask_dml as dml
from dask_dml.linear_model import LogisticRegression

pytestmark = pytest.mark.usefixtures("quiet", "small_blocks")


@pytest.fixture(scope="module")
def sparse(problem):
    return scipy.sparse.csr_array(np.where(np.abs(problem.X) < 1.0, 0.0, problem.X))


@pytest.mark.parametrize("target", ["two", "three"])
def test_rows_of_this_process(client, problem, local, same_bits, sparse, target):
    y = getattr(problem, target)
    fitted = LogisticRegression().fit(sparse, y, problem.weight)
    same_bits(fitted, LogisticRegression(runtime=local).fit(sparse, y, problem.weight))


@pytest.mark.parametrize("persisted", [False, True], ids=["lazy", "persisted"])
def test_dask_arrays_of_sparse_blocks(client, problem, local, same_bits, sparse, persisted):
    data = da.from_array(sparse, chunks=(128, -1), asarray=False), problem.lazy(problem.two)
    if persisted:
        data = dask.persist(*data)
    fitted = LogisticRegression().fit(*data)
    same_bits(fitted, LogisticRegression(runtime=local).fit(sparse, problem.two))
    predicted = fitted.predict(data[0])
    np.testing.assert_array_equal(predicted.compute(), fitted.predict(sparse))


@pytest.mark.parametrize("resident", [0.5, 0.0], ids=["held", "streamed"])
def test_a_store(client, problem, local, same_bits, sparse, tmp_path, monkeypatch, resident):
    monkeypatch.setattr("dask_dml.runtime.cluster.RESIDENT_SHARE", resident)
    rows = da.from_array(sparse, chunks=(100, -1), asarray=False)
    dataset = dml.write_dataset(tmp_path / "a.zarr", rows, problem.three, chunks=(128, -1))
    fitted = LogisticRegression().fit(dataset)
    same_bits(fitted, LogisticRegression(runtime=local).fit(sparse, problem.three))
    np.testing.assert_array_equal(fitted.predict(dataset).compute(), fitted.predict(sparse))


@pytest.mark.parametrize("resident", [0.5, 0.0], ids=["held", "streamed"])
def test_a_store_of_categories(client, problem, local, same_bits, tmp_path, monkeypatch, resident):
    monkeypatch.setattr("dask_dml.runtime.cluster.RESIDENT_SHARE", resident)
    frame = pd.DataFrame(problem.X[:, :2], columns=["a", "b"])
    frame["group"] = np.arange(len(frame)) * 7 % 11
    frame["y"] = problem.two
    store = tmp_path / "a.zarr"
    dataset = dml.ingest(frame, store, "y", categorical=["group"], chunks=(128, -1))
    fitted = LogisticRegression().fit(dataset)
    same_bits(fitted, LogisticRegression(runtime=local).fit(dataset))
    assert fitted.predict(dataset).compute().shape == (len(frame),)
