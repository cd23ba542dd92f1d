"""Data that does not fit in the workers' memory is read again each pass, a few blocks at a time."""

from __future__ import annotations

import uuid
from collections import Counter

import dask.array as da
import numpy as np
import pytest
from distributed import Queue

import dask_dml as dml
from dask_dml.data.source import dask_source
from dask_dml.errors import ClusterError
from dask_dml.linear_model import LogisticRegression, Ridge
from dask_dml.runtime import ClusterExecutor

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture
def streamed(monkeypatch):
    monkeypatch.setattr("dask_dml.runtime.cluster.RESIDENT_SHARE", 0.0)


@pytest.mark.usefixtures("streamed", "small_blocks")
@pytest.mark.parametrize("kind", ["lazy", "store"])
def test_the_same_bits_as_from_memory(client, problem, local, same_bits, tmp_path, kind):
    y, weight = problem.three, problem.weight
    expected = LogisticRegression(class_weight="balanced", runtime=local)
    expected.fit(problem.X, y, weight)
    model = LogisticRegression(class_weight="balanced")
    if kind == "lazy":
        model.fit(problem.lazy(problem.X), problem.lazy(y), problem.lazy(weight))
    else:
        store = tmp_path / "rows.zarr"
        model.fit(dml.write_dataset(store, problem.X, y, chunks=(128, 6), sample_weight=weight))
    same_bits(model, expected)


@pytest.fixture
def reads(client):
    """Makes rows that say when a block is read, and counts how often each was."""
    queue = Queue(f"reads-{uuid.uuid4()}", client)
    name = queue.name

    def noted(block, block_info=None):
        Queue(name).put(block_info[0]["chunk-location"][0])
        return block

    class Reads:
        def of(self, X):
            return X.map_blocks(noted, dtype=float, meta=np.empty((0, 0)))

        def counts(self):
            return Counter(queue.get(batch=True))

    yield Reads()
    queue.close()


@pytest.mark.usefixtures("streamed")
def test_every_pass_reads_every_block_once(client, problem, reads):
    fitted = Ridge().fit(reads.of(problem.lazy(problem.X)), problem.lazy(problem.number))
    assert reads.counts() == dict.fromkeys(range(8), int(fitted.n_passes_))


@pytest.mark.usefixtures("streamed", "split")
def test_every_pass_reads_a_chunk_of_several_blocks_once(client, problem, reads, local, same_bits):
    X, y = problem.lazy(problem.X, 250), problem.lazy(problem.number, 250)
    fitted = Ridge().fit(reads.of(X), y)
    assert reads.counts() == dict.fromkeys(range(4), int(fitted.n_passes_))
    same_bits(fitted, Ridge(runtime=local).fit(X, y))


@pytest.fixture
def half_stays(client, problem, monkeypatch):
    """Workers on which there is room for two of their four blocks."""
    source = dask_source(problem.lazy(problem.X), problem.lazy(problem.number), None, None)
    monkeypatch.setattr("dask_dml.runtime.cluster.RESIDENT_SHARE", 0.0)
    workers = client.scheduler_info(n_workers=-1)["workers"]
    room = dict.fromkeys(workers, 2.5 * max(source.block_nbytes))
    monkeypatch.setattr(ClusterExecutor, "_room_bytes", lambda *_: room)


@pytest.mark.usefixtures("half_stays", "small_blocks")
def test_blocks_that_fit_are_read_once_and_the_bits_are_the_same(
    client, problem, local, same_bits, reads
):
    X, y = reads.of(problem.lazy(problem.X)), problem.lazy(problem.two)
    fitted = LogisticRegression(solver="lbfgs").fit(X, y)
    times = Counter(reads.counts().values())
    assert times == {1: 4, int(fitted.n_passes_): 4}
    same_bits(fitted, LogisticRegression(solver="lbfgs", runtime=local).fit(problem.X, problem.two))


@pytest.mark.usefixtures("half_stays", "split")
def test_chunks_of_several_blocks_that_fit_are_read_once(client, problem, local, same_bits, reads):
    X, y = problem.lazy(problem.X), problem.lazy(problem.two)
    fitted = LogisticRegression(solver="lbfgs").fit(reads.of(X), y)
    assert Counter(reads.counts().values()) == {1: 4, int(fitted.n_passes_): 4}
    same_bits(fitted, LogisticRegression(solver="lbfgs", runtime=local).fit(X, y))


@pytest.mark.usefixtures("half_stays")
def test_what_a_suspect_keeps_is_read_by_others(client, problem):
    source = dask_source(problem.lazy(problem.X), problem.lazy(problem.two), None, None)
    executor = ClusterExecutor(client, source)
    blocks, placed = executor._blocks, executor.placement
    suspect, other = client.scheduler_info(n_workers=-1)["workers"]
    its = [block for block, worker in placed.items() if worker == suspect]
    assert blocks.kept_by(its, [suspect]) == suspect
    assert blocks.kept_by(its, [other]) == ""
    assert len(blocks.remake(its, other, [suspect])) == 2
    assert blocks.kept_by(its, [suspect]) == ""
    executor.close()


@pytest.mark.usefixtures("streamed")
def test_at_most_three_blocks_are_held_at_a_time(client, problem):
    """Each block says when it is made and when it is let go."""
    queue = Queue(f"alive-{uuid.uuid4()}", client)
    name = queue.name

    def tracked(block, block_info=None):
        import os
        import weakref

        from distributed import get_client

        # The client of this thread's task; the finaliser may run in another.
        here = Queue(name, client=get_client())
        block = block.copy()
        here.put((os.getpid(), 1))
        weakref.finalize(block, here.put, (os.getpid(), -1))
        return block

    X = problem.lazy(problem.X).map_blocks(tracked, dtype=float, meta=np.empty((0, 0)))
    Ridge().fit(X, problem.lazy(problem.number))
    alive, most = Counter(), Counter()
    for pid, change in queue.get(batch=True):
        alive[pid] += change
        most[pid] = max(most[pid], alive[pid])
    assert len(most) == 2
    # The one in use and two read ahead, and one more between a reader's letting go and its next.
    assert max(most.values()) <= 4
    queue.close()


@pytest.mark.parametrize(("size", "stays"), [(0.9, True), (1.1, False)])
def test_blocks_stay_up_to_a_share_of_the_memory(client, monkeypatch, size, stays):
    share = 1e-4
    monkeypatch.setattr("dask_dml.runtime.cluster.RESIDENT_SHARE", share)
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    rows = int(size * share * sum(worker["memory_limit"] for worker in workers) / 8)
    X, y = da.zeros((rows, 1), chunks=rows // 4 + 1), da.zeros(rows, chunks=rows // 4 + 1)
    executor = ClusterExecutor(client, dask_source(X, y, None, None))
    executor.close()
    assert executor.is_resident is stays


@pytest.mark.usefixtures("streamed")
def test_persisted_data_is_not_read_again(client, problem):
    X, y = client.persist([problem.lazy(problem.X), problem.lazy(problem.two)])
    executor = ClusterExecutor(client, dask_source(X, y, None, None))
    executor.close()
    assert executor.is_resident
    client.cancel([X, y])


def test_rows_of_this_process_that_do_not_fit_are_refused(client, problem, monkeypatch):
    monkeypatch.setattr("dask_dml.runtime.cluster.RESIDENT_SHARE", 1e-6)
    with pytest.raises(ClusterError, match=r"write_dataset.*client='local'"):
        LogisticRegression().fit(problem.X, problem.two)
