"""Workers die, leave and join in mid-fit: the same bits come out, and the faults are told."""

from __future__ import annotations

import importlib
import os
import signal
import uuid
from functools import partial

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Event as ClusterEvent
from distributed import wait

import dask_dml as dml
from dask_dml.runtime import RoundEnded


@pytest.fixture
def data(problem):
    return problem.lazy(problem.X), problem.lazy(problem.three), problem.lazy(problem.weight)


@pytest.fixture
def undisturbed(descent, local, data):
    return descent(runtime=local).fit(*data)


@pytest.fixture
def kill(client, until):
    """Kill a worker by SIGKILL and wait until the scheduler has noticed."""

    def kill_worker(index=0):
        workers = client.scheduler_info(n_workers=-1)["workers"]
        victim = sorted(workers)[index]
        (pid,) = client.run(os.getpid, workers=[victim]).values()
        os.kill(pid, signal.SIGKILL)
        until(
            lambda: victim not in client.scheduler_info(n_workers=-1)["workers"],
            "the scheduler has noticed",
        )
        return victim

    return kill_worker


def kinds(fitted):
    return list(fitted.faults_["kind"])


@pytest.mark.parametrize("kind", ["numpy", "lazy", "persisted"])
def test_a_worker_killed_between_rounds(
    client, data, problem, undisturbed, descent, same_bits, kill, on_round, kind, small_blocks
):
    killed, heard = [], []

    def listen(event):
        if isinstance(event, RoundEnded):
            heard.extend((event.round, fault.kind) for fault in event.result.faults)

    callbacks = [listen, on_round(2, lambda: killed.append(kill()))]
    if kind == "numpy":
        data = problem.X, problem.three, problem.weight
    elif kind == "persisted":
        data = dask.persist(*data)
        wait(data)
    fitted = descent(callbacks=callbacks).fit(*data)
    same_bits(fitted, undisturbed)
    lost = fitted.faults_[fitted.faults_["kind"] == "worker-lost"]
    assert list(lost["worker"]) == killed
    assert list(lost["round"]) == [3]
    assert lost["recomputed_blocks"].iloc[0] == 4
    assert fitted.history_["faults"].iloc[3] >= 1
    in_rounds = fitted.faults_[fitted.faults_["round"] >= 0]
    assert fitted.history_["faults"].sum() == len(in_rounds)
    assert heard == list(zip(in_rounds["round"], in_rounds["kind"], strict=True))


@pytest.mark.usefixtures("split")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_worker_with_parts_of_chunks_is_killed(
    few, problem, descent, local, same_bits, kill, on_round, victim
):
    """The first has two of three chunks, the other one its own and what was moved to it."""
    data = [problem.lazy(each, 350) for each in (problem.X, problem.three, problem.weight)]
    fitted = descent(callbacks=[on_round(2, partial(kill, victim))]).fit(*few)
    same_bits(fitted, descent(runtime=local).fit(*data))
    assert "worker-lost" in kinds(fitted)


def test_a_dataset_is_read_again_after_a_death(
    client, problem, descent, local, same_bits, kill, on_round, tmp_path
):
    store = tmp_path / "rows.zarr"
    dataset = dml.write_dataset(store, problem.X, problem.three, chunks=(128, 6))
    fitted = descent(callbacks=[on_round(1, kill)]).fit(dataset)
    same_bits(fitted, descent(runtime=local).fit(dataset))
    assert "worker-lost" in kinds(fitted)


def test_both_workers_die_one_after_the_other(
    client, data, undisturbed, descent, same_bits, kill, on_round
):
    def kill_and_await_the_next():
        victim = kill()
        client.wait_for_workers(2, timeout=60)
        return victim

    killed = []
    callbacks = [on_round(n, lambda: killed.append(kill_and_await_the_next())) for n in (1, 3)]
    fitted = descent(callbacks=callbacks).fit(*data)
    same_bits(fitted, undisturbed)
    lost = fitted.faults_[fitted.faults_["kind"] == "worker-lost"]
    assert list(lost["worker"]) == killed
    assert kinds(fitted).count("worker-joined") == 2


def test_all_workers_die_at_once_and_new_ones_take_over(
    client, data, undisturbed, descent, same_bits, on_round
):
    def kill_all():
        for pid in client.run(os.getpid).values():
            os.kill(pid, signal.SIGKILL)

    persisted = dask.persist(*data)
    wait(persisted)
    fitted = descent(callbacks=[on_round(2, kill_all)]).fit(*persisted)
    same_bits(fitted, undisturbed)
    assert kinds(fitted).count("worker-lost") == 2


@pytest.mark.parametrize("when", ["survey", "round"])
def test_a_worker_killed_in_the_middle_of_a_round(
    client, problem, undisturbed, descent, same_bits, on_round, when, monkeypatch
):
    """Whoever reads the fourth block once the event is set dies of it."""
    armed = ClusterEvent(f"armed-{uuid.uuid4()}", client)
    name = armed.name

    def deadly(block, block_info=None):
        if block_info[0]["chunk-location"][0] == 3:
            here = ClusterEvent(name)
            if here.is_set():
                here.clear()
                os.kill(os.getpid(), signal.SIGKILL)
        return block

    X = problem.lazy(problem.X).map_blocks(deadly, dtype=float, meta=np.empty((0, 0)))
    callbacks = []
    if when == "survey":
        armed.set()
    else:
        # Blocks are read anew every round.
        monkeypatch.setattr("dask_dml.runtime.cluster.RESIDENT_SHARE", 0.0)
        callbacks.append(on_round(1, armed.set))
    data = X, problem.lazy(problem.three), problem.lazy(problem.weight)
    fitted = descent(callbacks=callbacks).fit(*data)
    same_bits(fitted, undisturbed)
    lost = fitted.faults_[fitted.faults_["kind"] == "worker-lost"]
    assert list(lost["round"]) == ([-1] if when == "survey" else [2])
    assert not armed.is_set()
    if when == "round":
        assert lost["recomputed_blocks"].iloc[0] >= 1


def test_a_worker_that_joins_is_given_its_share(
    client, cluster, problem, descent, local, same_bits, on_round, monkeypatch
):
    # The rounds that are left take less time than passes between two looks at a calm fleet.
    monkeypatch.setattr("dask_dml.runtime.cluster._LOOK_S", 0.0)

    def join():
        cluster.scale(3)
        client.wait_for_workers(3, timeout=60)
        # The rest of the fit takes less time than a newcomer does to import what it needs.
        client.run(importlib.import_module, "dask_dml")

    data = problem.lazy(problem.X, rows=40), problem.lazy(problem.three, rows=40)
    fitted = descent(callbacks=[on_round(1, join)]).fit(*data)
    same_bits(fitted, descent(runtime=local).fit(*data))
    joined = fitted.faults_[fitted.faults_["kind"] == "worker-joined"]
    assert len(joined) == 1
    assert fitted.history_["workers"].iloc[1] == 2
    assert fitted.history_["workers"].iloc[-1] == 3


def test_a_worker_that_is_retired_gives_its_blocks_away(
    client, data, undisturbed, descent, same_bits, on_round
):
    """Nothing is made again: the scheduler copies the blocks before the worker leaves."""
    retired = []

    def retire():
        victim = sorted(client.scheduler_info(n_workers=-1)["workers"])[0]
        client.retire_workers([victim])
        retired.append(victim)

    persisted = dask.persist(*data)
    wait(persisted)
    fitted = descent(callbacks=[on_round(1, retire)]).fit(*persisted)
    same_bits(fitted, undisturbed)
    lost = fitted.faults_[fitted.faults_["kind"] == "worker-left"]
    assert list(lost["worker"]) == retired
    assert lost["recomputed_blocks"].iloc[0] == 0
    assert "retired" in lost["evidence"].iloc[0]


def test_scattered_data_that_is_lost_ends_the_fit(client, problem, descent, kill, on_round):
    """Nobody can make it again; the error says so."""
    futures = client.scatter([problem.X[:500], problem.X[500:]], direct=False)
    X = da.concatenate(
        [da.from_delayed(dask.delayed(part), shape=(500, 6), dtype=float) for part in futures]
    )
    y = problem.lazy(problem.two, rows=500)
    with pytest.raises(dml.errors.FitError) as raised:
        descent(callbacks=[on_round(1, kill)]).fit(X, y)
    assert raised.value.blocks
    assert raised.value.run
