"""Rounds by call on a real cluster: the same bits, whatever becomes of a call."""

from __future__ import annotations

import os
import signal
import threading
from functools import partial

import pytest
from distributed import Client, wait

from dask_dml.errors import FitError
from dask_dml.runtime import calls
from dask_dml.runtime.monitor import Monitor

FIRST_CALL = 2


@pytest.fixture
def data(client, problem):
    data = client.persist([problem.lazy(problem.X), problem.lazy(problem.three)])
    wait(data)
    yield data
    client.cancel(data)


@pytest.fixture
def called(monkeypatch):
    """The answers of all calls."""
    answers = []
    made = calls.Calls._made

    def noting(self, work, usual_s):
        answers.append(made(self, work, usual_s))
        return answers[-1]

    monkeypatch.setattr(calls.Calls, "_made", noting)
    return answers


@pytest.fixture
def expected(descent, local, data, problem):
    return descent(runtime=local).fit(problem.lazy(problem.X), problem.lazy(problem.three))


def on_worker(client, worker, function):
    return client.run(function, workers=[worker])[worker]


def workers_of(client):
    return sorted(client.scheduler_info(n_workers=-1)["workers"])


def residents_of(client):
    """For how many runs each worker has orders."""

    def count(dask_worker):
        plugins = dask_worker.plugins.values()
        return sum(len(p._resident._orders) for p in plugins if hasattr(p, "_resident"))

    return client.run(count)


def test_short_rounds_go_by_call_with_the_same_bits(
    client, data, descent, expected, same_bits, called
):
    fitted = descent().fit(*data)
    same_bits(fitted, expected)
    assert len(called) >= len(fitted.history_) - 4
    assert all(answer.done and not answer.undone for answer in called)
    assert (fitted.history_["bytes"] > 0).all()


def test_a_worker_that_dies_of_a_call_is_replaced_by_tasks(
    client, data, descent, expected, same_bits, called, on_round
):
    def arm_worker():
        from dask_dml.runtime import resident

        resident.run_shard = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)

    victim = workers_of(client)[0]
    arm = partial(on_worker, client, victim, arm_worker)
    fitted = descent(callbacks=[on_round(FIRST_CALL - 1, arm)]).fit(*data)
    same_bits(fitted, expected)
    broken = [answer for answer in called if answer.undone]
    assert [[worker for worker, _ in answer.undone] for answer in broken] == [[victim]]
    assert victim in set(fitted.faults_[fitted.faults_["kind"] == "worker-lost"]["worker"])


def test_a_worker_that_does_not_finish_a_call_is_not_waited_for(
    client, data, descent, expected, same_bits, called, on_round
):
    def hang():
        from dask_dml.runtime import resident

        go_on, before = threading.Event(), resident.run_shard
        resident.run_shard = lambda *arguments: go_on.wait(30.0)
        resident.release = lambda: (setattr(resident, "run_shard", before), go_on.set())

    def release():
        from dask_dml.runtime import resident

        resident.release()

    victim = workers_of(client)[0]
    callbacks = [
        on_round(FIRST_CALL - 1, partial(on_worker, client, victim, hang)),
        on_round(FIRST_CALL, partial(on_worker, client, victim, release)),
    ]
    fitted = descent(callbacks=callbacks).fit(*data)
    same_bits(fitted, expected)
    late = [answer for answer in called if len(answer.done) < 2]
    assert victim in {worker for answer in late for worker, _ in answer.undone}
    assert "work-duplicated" in set(fitted.faults_["kind"])


def test_what_a_call_raises_is_raised_by_the_task(client, data, descent, called, on_round):
    """The call only leaves the shard; the task's error says what is wrong."""

    def fail(*arguments):
        raise ZeroDivisionError("in the work")

    def arm():
        from dask_dml.runtime import blocks, resident

        resident.run_shard = blocks.run_shard = fail

    victim = workers_of(client)[0]
    with pytest.raises(FitError, match="in the work"):
        descent(callbacks=[on_round(FIRST_CALL - 1, partial(on_worker, client, victim, arm))]).fit(
            *data
        )
    assert len(called[-1].done) == 1
    client.restart_workers([victim])
    client.wait_for_workers(2)


def test_no_orders_are_left_when_a_fit_ends_or_is_interrupted(
    client, data, descent, called, on_round, until
):
    held = []

    def interrupt():
        held.append(residents_of(client))
        raise KeyboardInterrupt

    descent().fit(*data)
    until(lambda: not any(residents_of(client).values()), "no orders of the fit that ended")
    with pytest.raises(KeyboardInterrupt):
        descent(callbacks=[on_round(FIRST_CALL, interrupt)]).fit(*data)
    assert set(held[0].values()) == {1}
    until(lambda: not any(residents_of(client).values()), "no orders of the other one")


def test_no_orders_are_left_when_a_client_is_gone(
    client, cluster, problem, descent, called, on_round, until
):
    gone = threading.Event()

    def close(second):
        assert any(residents_of(client).values())
        second.close()
        gone.set()

    second = Client(cluster, set_as_default=False)
    data = second.persist([problem.lazy(problem.X), problem.lazy(problem.two)])
    with second.as_current(), pytest.raises(Exception, match=r"."):
        descent(callbacks=[on_round(FIRST_CALL, partial(close, second))]).fit(*data)
    assert gone.is_set()
    until(lambda: not any(residents_of(client).values()), "no orders of the client that is gone")


def test_without_the_watcher_rounds_go_by_tasks(
    client, data, descent, expected, same_bits, called, monkeypatch
):
    monkeypatch.setattr(Monitor, "_open", lambda self, policy: None)
    same_bits(descent().fit(*data), expected)
    assert called == []
