"""Workers that hang, lag or take their data with them: work goes elsewhere, the bits stay."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from contextlib import suppress

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster, futures_of, wait
from distributed import Event as ClusterEvent

import dask_dml as dml
from dask_dml.runtime.speeds import Speeds

MORE_WORKERS = 3


@pytest.fixture(scope="module")
def hurt():
    """A cluster of its own: workers that were stopped may take a while to be replaced."""
    with (
        LocalCluster(
            n_workers=MORE_WORKERS,
            threads_per_worker=1,
            memory_limit="1GiB",
            dashboard_address=":0",
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def whole(hurt, until):
    """The client, once all workers are there and can be given work."""

    def is_whole():
        workers = hurt.scheduler_info(n_workers=-1).get("workers", {}).values()
        return [w["status"] for w in workers] == ["running"] * MORE_WORKERS

    until(is_whole, "all workers run")
    return hurt


@pytest.fixture
def store(problem, tmp_path):
    path = tmp_path / "rows.zarr"
    dml.write_dataset(path, problem.X, problem.three, chunks=(100, 6))
    return path


def workers_of(client):
    return sorted(client.scheduler_info(n_workers=-1)["workers"])


@pytest.fixture
def stop(whole, monkeypatch, on_round):
    """Callback that stops a worker which has blocks; should it live, it goes on after the test."""
    # On a busy machine one may have been so slow by then that it has no blocks any more.
    monkeypatch.setattr(Speeds, "is_uneven", lambda *_: False)
    stopped = []

    def stop_worker():
        (pid,) = whole.run(os.getpid, workers=stopping.busy[:1]).values()
        os.kill(pid, signal.SIGSTOP)
        stopped.append(pid)

    stopping = on_round(1, stop_worker)
    yield stopping
    for pid in stopped:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("kind", ["numpy", "dataset", "persisted", "streamed"])
def test_a_worker_that_is_stopped_is_done_without(
    whole,
    problem,
    store,
    descent,
    local,
    same_bits,
    small_blocks,
    monkeypatch,
    stop,
    kind,
):
    data = {
        "numpy": (problem.X, problem.three),
        "dataset": (store,),
        "streamed": (store,),
        "persisted": (problem.lazy(problem.X), problem.lazy(problem.three)),
    }[kind]
    undisturbed = descent(runtime=local).fit(*data)
    if kind == "streamed":
        monkeypatch.setattr("dask_dml.runtime.cluster.RESIDENT_SHARE", 0.0)
    if kind == "persisted":
        data = dask.persist(*data)
        wait(data)
    fitted = descent(callbacks=[stop]).fit(*data)
    same_bits(fitted, undisturbed)
    # Whichever comes first: its work takes too long, or it is seen to be silent.
    seen = {"work-duplicated", "worker-suspected", "worker-evicted"}
    assert seen & set(fitted.faults_["kind"]), fitted.faults_


def test_a_worker_that_is_stopped_is_named_with_the_evidence(
    whole, store, descent, local, same_bits, stop
):
    # Where no work is duplicated for being late, the fit goes on when the worker is suspect.
    runtime = dml.Runtime(faults=dml.FaultPolicy(speculation_factor=1e6))
    fitted = descent(runtime=runtime, callbacks=[stop]).fit(store)
    same_bits(fitted, descent(runtime=local).fit(store))
    faults = fitted.faults_
    concerned = set(faults.loc[faults["worker"] == stop.busy[0], "kind"])
    assert concerned & {"worker-suspected", "worker-evicted", "worker-lost"}, faults
    assert "stopped" in " ".join(faults["evidence"])


def test_a_worker_that_holds_the_global_lock_is_not_evicted(
    whole, store, descent, local, same_bits, on_round
):
    holding = []

    def hold_the_lock(seconds):
        """Sleep in C with Python's global lock held, as badly written extensions do."""
        ctypes.PyDLL(None).sleep(seconds)

    def hold():
        victim = workers_of(whole)[0]
        holding.append(whole.submit(hold_the_lock, 10, workers=[victim], pure=False))

    before = workers_of(whole)
    fitted = descent(callbacks=[on_round(1, hold)]).fit(store)
    wait(holding)
    same_bits(fitted, descent(runtime=local).fit(store))
    assert not {"worker-evicted", "worker-lost"} & set(fitted.faults_["kind"])
    assert workers_of(whole) == before
    assert "work-duplicated" in set(fitted.faults_["kind"])


def test_a_straggler_is_duplicated_and_not_waited_for(
    whole, problem, descent, local, same_bits, monkeypatch
):
    """Whoever reads the first block for the first time never ends, until it is told to."""
    monkeypatch.setattr("dask_dml.runtime.cluster.RESIDENT_SHARE", 0.0)
    taken, go_on = ClusterEvent("taken", whole), ClusterEvent("go-on", whole)

    def stuck(block, block_info=None):
        if block_info[0]["chunk-location"][0] == 0:
            here = ClusterEvent("taken")
            if not here.is_set():
                here.set()
                ClusterEvent("go-on").wait()
        return block

    X = problem.lazy(problem.X).map_blocks(stuck, dtype=float, meta=np.empty((0, 0)))
    y = problem.lazy(problem.three)
    fitted = descent().fit(X, y)
    go_on.set()
    same_bits(fitted, descent(runtime=local).fit(problem.lazy(problem.X), y))
    duplicated = fitted.faults_[fitted.faults_["kind"] == "work-duplicated"]
    assert -1 in set(duplicated["round"])
    # It still hangs: it is given nothing for a while, rather than overtaken in every round.
    assert len(duplicated) < len(fitted.history_) / 2
    taken.clear()
    go_on.clear()


def scattered(client, problem):
    """Rows that the client has put on the cluster, half here, half there."""
    halves = client.scatter([problem.X[:500], problem.X[500:]], direct=False)
    X = da.concatenate(
        [da.from_delayed(dask.delayed(part), shape=(500, 6), dtype=float) for part in halves]
    )
    return X, problem.lazy(problem.two, rows=500)


def holder_of(client, X):
    """A worker that alone has something of what was scattered."""
    return next(worker for worker, keys in client.has_what().items() if keys)


def test_scattered_data_that_is_held_twice_survives(
    whole, problem, descent, local, same_bits, on_round, until
):
    X, y = scattered(whole, problem)
    killed, held = [], []

    def kill():
        # Dask reduces replicas every two seconds, and now; workers have dropped what they were
        # told to drop before they do what they are given after that.
        whole.amm.run_once()
        wait([whole.submit(int, workers=[at], pure=False) for at in workers_of(whole)])
        held.extend(len(workers) for workers in whole.who_has(futures_of(X)).values())
        victim = holder_of(whole, X)
        (pid,) = whole.run(os.getpid, workers=[victim]).values()
        os.kill(pid, signal.SIGKILL)
        until(lambda: victim not in workers_of(whole), "the scheduler has noticed")
        killed.append(victim)

    twice = dml.Runtime(faults=dml.FaultPolicy(replicas=2))
    fitted = descent(runtime=twice, callbacks=[on_round(1, kill)]).fit(X, y)
    here = problem.lazy(problem.X, rows=500), y
    same_bits(fitted, descent(runtime=local).fit(*here))
    assert killed[0] in set(fitted.faults_["worker"])
    # A task that Dask has run elsewhere, as it may, has left a third.
    assert len(held) == 2
    assert min(held) >= 2


def test_the_error_of_lost_data_says_what_would_have_saved_it(
    whole, problem, descent, on_round, until
):
    X, y = scattered(whole, problem)

    def kill_all():
        pids = whole.run(os.getpid)
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
        until(lambda: not set(pids) & set(workers_of(whole)), "the scheduler has noticed")

    with pytest.raises(dml.errors.FitError, match="replicas=2") as raised:
        descent(callbacks=[on_round(1, kill_all)]).fit(X, y)
    assert raised.value.blocks


def test_a_fit_without_workers_waits_and_then_says_so(problem, descent, until):
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        heard = []

        def remove(event):
            if type(event).__name__ == "RoundEnded" and event.round == 1:
                cluster.scale(0)
                until(lambda: not workers_of(client), "no worker is left")

        policy = dml.FaultPolicy(wait_for_workers_s=1.0)
        client.subscribe_topic("dml-faults", lambda event: heard.append(event[1]["kind"]))
        with pytest.raises(dml.errors.FitError, match="no workers for 1 s"):
            descent(runtime=dml.Runtime(faults=policy), callbacks=[remove]).fit(
                problem.lazy(problem.X), problem.lazy(problem.two)
            )
        until(lambda: "workers-awaited" in heard, "the waiting was told")


def test_a_fit_without_workers_goes_on_when_one_comes(problem, descent, local, same_bits, until):
    data = problem.lazy(problem.X), problem.lazy(problem.two)
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        waiting = threading.Event()

        def heard(event):
            if event[1]["kind"] == "workers-awaited":
                waiting.set()

        def remove(event):
            if type(event).__name__ == "RoundEnded" and event.round == 1:
                cluster.scale(0)
                until(lambda: not workers_of(client), "no worker is left")

        def add():
            if waiting.wait(60.0):
                cluster.scale(2)

        client.subscribe_topic("dml-faults", heard)
        thread = threading.Thread(target=add)
        thread.start()
        fitted = descent(callbacks=[remove]).fit(*data)
        thread.join()
        same_bits(fitted, descent(runtime=local).fit(*data))
        assert "workers-awaited" in set(fitted.faults_["kind"])
