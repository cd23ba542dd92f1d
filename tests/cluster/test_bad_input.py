"""What cannot be fitted on a cluster gets an error that says what and where, and leaves nothing."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import uuid
from contextlib import contextmanager

import numpy as np
import pytest
from distributed import Client, LocalCluster
from distributed import Event as ClusterEvent
from sklearn.exceptions import NotFittedError

import dask_dml as dml
from dask_dml.errors import (
    ClusterError,
    CorruptChunkError,
    DataError,
    FitError,
    NoWorkersError,
    WorkerPackageError,
)
from dask_dml.linear_model import LogisticRegression, Ridge


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("persisted", [False, True], ids=["lazy", "persisted"])
def test_values_that_are_not_finite_are_found(client, problem, bad, persisted):
    values = problem.X.copy()
    values[300, 4] = bad
    X, y = problem.lazy(values), problem.lazy(problem.two)
    if persisted:
        X, y = client.persist([X, y])
    kind = "NaN" if np.isnan(bad) else "infinity"
    with pytest.raises(DataError, match=rf"{kind} in block 2, column 4 \('x4'\).*row 44 "):
        LogisticRegression().fit(X, y)
    client.cancel([X, y])


def test_a_target_that_is_not_finite_is_found(client, problem):
    y = problem.number.copy()
    y[999] = np.nan
    with pytest.raises(DataError, match=r"y contains NaN or infinity in block 7.*row 103"):
        Ridge().fit(problem.lazy(problem.X), problem.lazy(y))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("lazy", [True, False])
def test_other_data_that_cannot_be_fitted(client, problem, lazy):
    def given(values):
        return problem.lazy(values) if lazy else values

    X, y = given(problem.X), given(problem.two)
    with pytest.raises(DataError, match="class"):
        LogisticRegression().fit(X, given(np.ones(1_000)))
    weight = problem.weight.copy()
    weight[130] = -1.0
    with pytest.raises(DataError, match=r"sample_weight\[.*block 1.*-1\.0.*not negative"):
        LogisticRegression().fit(X, y, given(weight))
    with pytest.raises(DataError, match="zero"):
        LogisticRegression().fit(X, y, given(np.zeros(1_000)))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        LogisticRegression().fit(X, given(problem.two[:-1]))
    fitted = LogisticRegression().fit(X, y)
    with pytest.raises(ValueError, match=r"has 5 features, but .* is expecting 6"):
        fitted.predict(X[:, :5])
    with pytest.raises(NotFittedError):
        LogisticRegression().predict(X)


def test_blocks_of_unequal_widths_are_found_where_they_are(client, problem):
    X = problem.lazy(problem.X).map_blocks(
        lambda block, block_info=None: block[:, : 6 - (block_info[0]["chunk-location"][0] == 4)],
        dtype=float,
        meta=np.empty((0, 0)),
    )
    with pytest.raises(DataError, match="X has 5 columns in block 4, expected 6"):
        LogisticRegression().fit(X, problem.lazy(problem.two))


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "streamed"])
def test_a_corrupt_chunk_is_named(client, problem, tmp_path, monkeypatch, resident):
    store = tmp_path / "rows.zarr"
    dataset = dml.write_dataset(store, problem.X, problem.two, chunks=(128, 6))
    if not resident:
        monkeypatch.setattr("dask_dml.runtime.cluster.RESIDENT_SHARE", 0.0)
    (chunk,) = (path for path in store.rglob("*") if path.as_posix().endswith("X/c/5/0"))
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(bytes(content))
    with pytest.raises(CorruptChunkError) as raised:
        LogisticRegression().fit(dataset)
    assert "rows.zarr" in str(raised.value)
    assert re.search(r"\b5\b", str(raised.value))
    assert "X" in str(raised.value)


def test_no_workers():
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as cluster,
        Client(cluster),
        pytest.raises(NoWorkersError, match=r"no workers.*wait_for_workers"),
    ):
        LogisticRegression().fit([[0.0], [1.0]], [0, 1])


def test_an_asynchronous_client(cluster, problem):
    async def fit():
        async with Client(cluster.scheduler_address, asynchronous=True) as client:
            LogisticRegression(runtime=dml.Runtime(client)).fit(problem.X, problem.two)

    with pytest.raises(ClusterError, match="asynchronous=False"):
        asyncio.run(fit())


WORKER = """
import asyncio, sys

{setup}

async def work():
    from distributed import Worker
    async with Worker({address!r}, name={name!r}, nthreads=1, dashboard=False) as worker:
        await worker.finished()

asyncio.run(work())
"""

MISSING = """
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "dask_dml":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""

OLD = """
import dask_dml

dask_dml.__version__ = "0.0.1"
"""


@contextmanager
def another_worker(client, until, setup):
    """A worker process of its own, after some setup; yields its address."""
    name = f"odd-{uuid.uuid4().hex}"
    before = set(client.scheduler_info(n_workers=-1)["workers"])
    code = WORKER.format(setup=setup, address=client.scheduler.address, name=name)
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as process:
        try:
            client.wait_for_workers(len(before) + 1, timeout=60)
            (address,) = set(client.scheduler_info(n_workers=-1)["workers"]) - before
            yield address
        finally:
            process.kill()
            process.wait()
            until(
                lambda: address not in client.scheduler_info(n_workers=-1)["workers"],
                "the worker has left",
            )


@pytest.mark.parametrize(
    ("setup", "found"), [(MISSING, "missing"), (OLD, "0.0.1")], ids=["missing", "old"]
)
def test_workers_without_the_package(client, problem, until, monkeypatch, setup, found):
    monkeypatch.setattr("dask_dml.runtime.roster._ANSWER_S", 60.0)
    with another_worker(client, until, setup) as address:
        with pytest.raises(WorkerPackageError) as raised:
            LogisticRegression().fit(problem.X, problem.two)
        message = str(raised.value)
        assert re.search(rf"{re.escape(address)}: {re.escape(found)}", message)
        assert f"pip install dask-dml=={dml.__version__}" in message
        assert message.count("tcp://") == 1


def test_a_worker_without_the_package_that_joins_is_left_alone(
    client, problem, until, descent, local, patient, same_bits
):
    joined = []

    def join(event):
        if getattr(event, "round", None) == 0:
            context = another_worker(client, until, MISSING)
            joined.extend([context, context.__enter__()])

    data = problem.lazy(problem.X), problem.lazy(problem.two)
    try:
        fitted = descent(callbacks=[join], runtime=patient).fit(*data)
    finally:
        joined[0].__exit__(None, None, None)
    same_bits(fitted, descent(runtime=local).fit(*data))
    (row,) = fitted.faults_.itertuples()
    assert row.kind == "worker-joined"
    assert row.worker == joined[1]
    assert "given nothing" in row.action
    assert "missing" in row.action
    assert set(fitted.history_["workers"]) == {2}


def test_an_exception_in_a_block(client, problem):
    def broken(block, block_info=None):
        if block_info[0]["chunk-location"][0] == 3:
            raise ZeroDivisionError("broken sensor")
        return block

    X = problem.lazy(problem.X).map_blocks(broken, dtype=float, meta=np.empty((0, 0)))
    with pytest.raises(FitError, match=r"survey of run .*ZeroDivisionError: broken sensor") as got:
        LogisticRegression().fit(X, problem.lazy(problem.two))
    error = got.value
    assert error.round == -1
    assert 3 in error.blocks
    assert error.run in str(error)
    assert isinstance(error.__cause__, ZeroDivisionError)


def test_an_exception_in_a_later_round(client, problem, descent, on_round, monkeypatch):
    monkeypatch.setattr("dask_dml.runtime.cluster.RESIDENT_SHARE", 0.0)
    gone = ClusterEvent(f"gone-{uuid.uuid4()}", client)
    name = gone.name

    def vanishing(block, block_info=None):
        if block_info[0]["chunk-location"][0] == 6 and ClusterEvent(name).is_set():
            raise FileNotFoundError("rows-6.npy")
        return block

    X = problem.lazy(problem.X).map_blocks(vanishing, dtype=float, meta=np.empty((0, 0)))
    with pytest.raises(FitError, match=r"round 2 of run .*FileNotFoundError: rows-6") as raised:
        descent(callbacks=[on_round(1, gone.set)]).fit(X, problem.lazy(problem.two))
    assert raised.value.round == 2
    assert 6 in raised.value.blocks


def test_a_block_that_kills_every_worker(client, problem, cluster):
    def deadly(block, block_info=None):
        if block_info[0]["chunk-location"][0] == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return block

    X = problem.lazy(problem.X).map_blocks(deadly, dtype=float, meta=np.empty((0, 0)))
    allowed = cluster.scheduler.allowed_failures
    cluster.scheduler.allowed_failures = 0
    try:
        with pytest.raises(FitError, match="block 3 of 8 is poison") as raised:
            LogisticRegression().fit(X, problem.lazy(problem.two))
    finally:
        cluster.scheduler.allowed_failures = allowed
    assert raised.value.blocks == (3,)
    assert raised.value.worker.startswith("tcp://")


def test_a_client_that_is_closed_in_mid_fit(client, cluster, problem, descent, on_round):
    with Client(cluster, set_as_default=False) as other:
        callback = on_round(1, other.close)
        model = descent(runtime=dml.Runtime(other), callbacks=[callback])
        with pytest.raises(FitError, match=r"round 2 .*Client is closed"):
            model.fit(problem.lazy(problem.X), problem.lazy(problem.two))


def test_a_cluster_restarted_in_mid_fit(client, problem, descent, on_round):
    with pytest.raises(FitError) as raised:
        descent(callbacks=[on_round(1, client.restart)]).fit(
            problem.lazy(problem.X), problem.lazy(problem.two)
        )
    assert raised.value.round == 2


def test_data_persisted_on_another_cluster(client, problem):
    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as other,
        Client(other, set_as_default=False) as elsewhere,
    ):
        X, y = elsewhere.persist([problem.lazy(problem.X), problem.lazy(problem.two)])
        with pytest.raises(ClusterError, match=re.escape(elsewhere.scheduler.address)):
            LogisticRegression(runtime=dml.Runtime(client)).fit(X, y)
