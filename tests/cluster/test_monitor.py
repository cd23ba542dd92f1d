"""The watcher on the scheduler, against real processes that are stopped, killed, held and drained.

What is waited for are events; how fast they come is measured elsewhere.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

import dask
import numpy as np
import pytest
from distributed import Client, Event, KilledWorker, LocalCluster

from dask_dml.errors import ClusterError
from dask_dml.faults import TOPIC, FaultEvent, FaultPolicy
from dask_dml.faults.chaos.metadata import StandInMetadata
from dask_dml.faults.telemetry import COLUMNS, FEATURES
from dask_dml.runtime.monitor import FaultMonitorWarning, Monitor
from dask_dml.runtime.scheduler_plugin import NAME, FaultMonitor

N_WORKERS = 2
DEADLINE_S = 90.0
LOCAL = {
    "threads_per_worker": 1,
    "memory_limit": "1GiB",
    "dashboard_address": ":0",
    "silence_logs": 50,
}
# Suspects soon; condemns by itself nobody whose nanny sees it run.
HASTY = FaultPolicy(pause_s=0.5, probe_s=0.5, confirm_s=1.0, unreachable_s=2.0)


@pytest.fixture(scope="module")
def fleet():
    """A cluster that may lose workers: its nannies start new ones."""
    with (
        dask.config.set({"dml.preemption.provider": "none"}),
        LocalCluster(n_workers=N_WORKERS, **LOCAL) as cluster,
    ):
        yield cluster


@pytest.fixture
def chief(fleet, until):
    """A client of that cluster, whose workers and nannies all have their plugins."""
    with Client(fleet) as client:
        client.wait_for_workers(N_WORKERS, timeout=DEADLINE_S)
        with Monitor(client, FaultPolicy(), "warm-up") as monitor:
            until(lambda: all_equipped(client), "plugins everywhere")
            until(lambda: not monitor.suspects, "no suspects")
        yield client
        until(lambda: len(workers_of(client)) == N_WORKERS, "as many workers as before")


@pytest.fixture
def watch(chief):
    """A monitor with the default policy."""
    with Monitor(chief, FaultPolicy(), "run-1") as monitor:
        assert monitor.is_watching
        yield monitor


@pytest.fixture
def heard(watch):
    return Heard(watch)


class Heard:
    """What a monitor has told so far, in order."""

    def __init__(self, monitor):
        self.monitor = monitor
        self.notices = []

    def __call__(self, kind, worker):
        """The first event of a kind about a worker; None if there was none yet."""
        self.notices += self.monitor.drain_events()
        found = (n for n in self.notices if (n.event.kind, n.event.worker) == (kind, worker))
        return next(found, None)

    def kinds(self, worker):
        self.notices += self.monitor.drain_events()
        return [n.event.kind for n in self.notices if n.event.worker == worker]


def all_equipped(client):
    def are(dask_scheduler):
        has = dask_scheduler.plugins[NAME]._crew.equipped
        workers = dask_scheduler.workers.values()
        return all(ws.address in has and (not ws.nanny or ws.nanny in has) for ws in workers)

    return client.run_on_scheduler(are)


def workers_of(client):
    return sorted(client.scheduler_info(n_workers=-1)["workers"])


def pid_of(client, worker):
    """Process of a worker, from the scheduler: it may be unable to answer."""
    return client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.workers[worker].pid)


def holding_the_gil(seconds):
    """A task that sleeps in C and does not let go of the GIL."""

    def hold():
        ctypes.PyDLL(None).usleep(int(seconds * 1e6))
        return seconds

    return hold


# -- detecting ------------------------------------------------------------------------------


def test_a_stopped_worker_is_suspected_evicted_and_started_again(chief, watch, heard, until):
    victim, other = workers_of(chief)
    pid = pid_of(chief, victim)
    key = ("dml-x-run-1", 0, 0, 1)
    os.kill(pid, signal.SIGSTOP)
    future = chief.submit(os.getpid, key=key, workers=[victim], allow_other_workers=True)
    until(lambda: heard("worker-suspected", victim), "the victim is suspected")
    until(lambda: heard("worker-evicted", victim), "the victim is evicted")
    # Not even a task that may die but once is blamed for an eviction.
    assert future.result(timeout=DEADLINE_S) != pid
    evicted = heard("worker-evicted", victim)
    assert not evicted.blamed
    assert evicted.processing == (key,)
    assert "stopped" in evicted.event.evidence
    until(lambda: heard("worker-restarted", victim), "its nanny has started another")
    until(lambda: len(workers_of(chief)) == N_WORKERS, "another worker has joined")
    assert victim not in workers_of(chief)
    assert heard.kinds(other) == []
    (newcomer,) = set(workers_of(chief)) - {other}
    until(lambda: heard("worker-joined", newcomer), "the newcomer is announced")
    until(lambda: all_equipped(chief), "the newcomer has its plugins")
    until(lambda: not watch.suspects, "no suspects")
    assert set(heard.kinds(victim)) == {
        "worker-suspected", "worker-evicted", "worker-restarted",
    }  # fmt: skip


def test_tasks_under_which_workers_die_are_given_up_by_attempt(chief, heard, until):
    # Dask itself would try each on four workers.
    def die():
        os._exit(1)

    first = chief.submit(die, key=("dml-x-run-1", 0, 0, 0))
    with pytest.raises(KilledWorker):
        first.result(timeout=DEADLINE_S)
    lost = [n for n in heard.monitor.drain_events() if n.event.kind == "worker-lost"]
    assert [n.processing for n in lost] == [(("dml-x-run-1", 0, 0, 0),)] * 2
    assert all(n.blamed and n.threads == 1 for n in lost)
    until(lambda: len(workers_of(chief)) == N_WORKERS, "the workers are back")
    later = chief.submit(die, key=("dml-x-run-1", 0, 0, 1))
    with pytest.raises(KilledWorker):
        later.result(timeout=DEADLINE_S)

    def n_lost():
        heard.kinds("")
        return sum(later.key in notice.processing for notice in heard.notices)

    until(n_lost, "the loss is told")
    assert n_lost() == 1


@pytest.mark.slow
def test_a_worker_that_holds_the_gil_is_suspected_and_not_evicted(chief, until):
    victim, _ = workers_of(chief)
    pid = pid_of(chief, victim)
    with Monitor(chief, HASTY, "hasty") as monitor:
        heard = Heard(monitor)
        future = chief.submit(holding_the_gil(6.0), workers=[victim], pure=False)
        until(lambda: heard("worker-suspected", victim), "the victim is suspected")
        assert victim in monitor.suspects
        # A suspect is given nothing, whoever asks.
        elsewhere = chief.submit(os.getpid, workers=[victim], allow_other_workers=True)
        assert elsewhere.result(timeout=DEADLINE_S) != pid
        assert future.result(timeout=DEADLINE_S) == 6.0
        until(lambda: heard("worker-recovered", victim), "the victim speaks again")
        until(lambda: not monitor.suspects, "no suspects")
        assert "worker-evicted" not in heard.kinds(victim)
        again = chief.submit(os.getpid, workers=[victim], pure=False)
        assert again.result(timeout=DEADLINE_S) == pid


TRACE = """
import ctypes, os, sys
libc, pid = ctypes.CDLL(None, use_errno=True), int(sys.argv[1])
if libc.ptrace(16, pid, None, None):  # PTRACE_ATTACH
    sys.exit(os.strerror(ctypes.get_errno()))
os.waitpid(pid, 0x40000000)  # __WALL
print("attached", flush=True)
sys.stdin.read()
libc.ptrace(17, pid, None, None)  # PTRACE_DETACH
"""


@pytest.mark.slow
def test_a_worker_in_a_debugger_is_suspected_and_not_evicted(chief, until):
    victim, _ = workers_of(chief)
    command = [sys.executable, "-c", TRACE, str(pid_of(chief, victim))]
    with (
        Monitor(chief, HASTY, "hasty") as monitor,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as tracer,
    ):
        heard = Heard(monitor)
        if tracer.stdout.readline() != "attached\n":
            pytest.skip(f"this system does not let processes be traced: {tracer.stderr.read()}")
        until(lambda: heard("worker-suspected", victim), "the victim is suspected")
        # The verdict would be due by the second look.
        looks = monitor.status()["looks"]
        until(lambda: monitor.status()["looks"] >= looks + 4, "its nanny has been asked again")
        assert "worker-evicted" not in heard.kinds(victim)
        tracer.communicate()
        until(lambda: heard("worker-recovered", victim), "the victim speaks again")
        assert "worker-evicted" not in heard.kinds(victim)


@pytest.mark.slow
def test_a_worker_without_a_nanny_is_evicted_when_nobody_can_reach_it(chief, until):
    scheduler = chief.scheduler.address
    command = [
        sys.executable, "-m", "distributed.cli.dask_worker", scheduler, "--no-nanny",
        "--name", "alone", "--nthreads", "1", "--no-dashboard",
    ]  # fmt: skip
    with (
        Monitor(chief, HASTY, "hasty") as monitor,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process,
    ):
        try:
            heard = Heard(monitor)
            until(lambda: len(workers_of(chief)) == N_WORKERS + 1, "the worker has joined")
            (victim,) = [w for w in workers_of(chief) if pid_of(chief, w) == process.pid]
            until(lambda: all_equipped(chief), "the newcomer has its plugin")
            os.kill(process.pid, signal.SIGSTOP)
            until(lambda: heard("worker-suspected", victim), "it is suspected")
            until(lambda: heard("worker-evicted", victim), "it is evicted")
            assert "reached" in heard("worker-evicted", victim).event.evidence
            os.kill(process.pid, signal.SIGCONT)
            # It finds that it is no longer wanted, and closes.
            assert process.wait(timeout=DEADLINE_S) is not None
            assert "worker-joined" not in heard.kinds(victim)[1:]
        finally:
            process.kill()


# -- leaving --------------------------------------------------------------------------------


def test_a_worker_retired_on_purpose_has_left_and_is_not_lost(chief, heard, restore, until):
    victim = workers_of(chief)[0]
    chief.retire_workers([victim])
    until(lambda: heard("worker-left", victim), "it has left")
    assert not heard("worker-left", victim).blamed
    assert "worker-lost" not in heard.kinds(victim)
    restore()


def test_a_notice_drains_a_worker_and_its_data_stays(chief, heard, restore, until):
    victim, other = workers_of(chief)
    held = chief.submit(np.arange, 1000, workers=[victim], allow_other_workers=True, pure=False)
    held.result(timeout=DEADLINE_S)
    told = chief.run_on_scheduler(
        lambda dask_scheduler: dask_scheduler.handlers["dml_notice"](
            worker=victim, deadline_s=time.time() + 30.0, source="aws", detail="made up"
        )
    )
    assert told
    until(lambda: heard("worker-left", victim), "it was retired")
    draining = heard("worker-draining", victim).event
    assert "notice" in draining.evidence
    assert "drained" in heard("worker-left", victim).event.evidence
    assert not heard("worker-left", victim).blamed
    # Copied, not made again.
    assert chief.who_has([held])[held.key] == (other,)
    assert "worker-lost" not in heard.kinds(victim)
    np.testing.assert_array_equal(held.result(timeout=DEADLINE_S), np.arange(1000))
    restore()


@pytest.mark.slow
def test_a_predicted_loss_drains_a_worker_and_starts_another(fleet, chief, until):
    class Pessimist:
        """Gives up on whoever does something."""

        def probabilities(self, X):
            return np.clip(X[:, FEATURES.index("executing")], 0.0, 1.0)

    victim, other = workers_of(chief)
    gate = Event("gate", client=chief)
    with Monitor(chief, FaultPolicy(predictor=Pessimist()), "run-1") as monitor:
        heard = Heard(monitor)

        def wait_at_the_gate():
            return Event("gate").wait()

        future = chief.submit(wait_at_the_gate, workers=[victim], pure=False)
        until(lambda: heard("worker-left", victim), "it was drained")
        assert "probability" in heard("worker-draining", victim).event.evidence
        until(lambda: heard("worker-restarted", victim), "its nanny has started another")
        until(lambda: len(workers_of(chief)) == N_WORKERS, "another worker has joined")
        assert heard.kinds(other) == []
        gate.set()
        future.release()


@pytest.mark.slow
def test_a_notice_of_the_cloud_reaches_the_watcher(fleet, chief, heard, restore, until):
    with StandInMetadata("aws") as metadata:
        settings = {"dml.preemption.provider": "aws", "dml.preemption.url": metadata.url}
        with dask.config.set(settings):
            before = set(workers_of(chief))
            fleet.scale(N_WORKERS + 1)
            until(lambda: len(workers_of(chief)) == N_WORKERS + 1, "one more worker")
        (newcomer,) = set(workers_of(chief)) - before
        metadata.announce(time.time() + 60.0)
        until(lambda: heard("worker-left", newcomer), "it was drained and retired")
        assert "aws" in heard("worker-draining", newcomer).event.evidence
    restore()


@pytest.fixture
def restore(fleet, chief, nannies_done, until):
    """As many workers as before, each with a nanny."""

    def again():
        nannies_done(fleet, chief)
        fleet.scale(0)
        until(lambda: not fleet.workers and not workers_of(chief), "no workers")
        fleet.scale(N_WORKERS)
        until(lambda: len(workers_of(chief)) == N_WORKERS, "as many workers as before")

    return again


# -- several fits, several clients ----------------------------------------------------------


def test_several_fits_and_clients_hear_the_same_and_handlers_of_people_stay(fleet, chief, until):
    theirs = []
    chief.subscribe_topic(TOPIC, lambda event: theirs.append(event[1]["kind"]))
    with (
        Client(fleet, set_as_default=False) as second,
        Monitor(chief, FaultPolicy(), "one") as one,
        Monitor(chief, FaultPolicy(), "two") as two,
        Monitor(second, FaultPolicy(), "three") as three,
    ):
        victim = workers_of(chief)[0]
        os.kill(pid_of(chief, victim), signal.SIGKILL)
        for monitor in (one, two, three):
            heard = Heard(monitor)
            until(lambda heard=heard: heard("worker-lost", victim), f"{monitor} has heard")
        until(lambda: "worker-lost" in theirs, "the user's handler has heard")
        assert set(one.status()["runs"]) == {"one", "two", "three"}
    chief.unsubscribe_topic(TOPIC)


def test_policies_of_several_fits_combine_to_the_most_patient(chief):
    def threshold(dask_scheduler):
        return dask_scheduler.plugins[NAME]._membership.policy.confirm_s

    with Monitor(chief, FaultPolicy(confirm_s=7.0), "slow"):
        assert chief.run_on_scheduler(threshold) == 7.0
        with Monitor(chief, FaultPolicy(confirm_s=2.0), "fast"):
            assert chief.run_on_scheduler(threshold) == 7.0
    with Monitor(chief, FaultPolicy(confirm_s=2.0), "fast"):
        assert chief.run_on_scheduler(threshold) == 2.0


def test_the_runs_of_a_client_that_is_gone_are_dropped(fleet, chief, watch, until):
    with Client(fleet, set_as_default=False) as second:
        Monitor(second, FaultPolicy(), "orphan")
        assert "orphan" in watch.status()["runs"]
    until(lambda: "orphan" not in watch.status()["runs"], "the run of the other client is gone")


def test_a_stale_run_is_refused_by_name(chief, watch):
    chief.sync(chief.scheduler.dml_unwatch, run="run-1")
    with pytest.raises(ClusterError, match="run-1 is not watched"):
        watch.recipe([("x", 0)])
    watch.close()


def test_events_of_a_fit_are_on_the_topic(chief, watch):
    event = FaultEvent(time.time(), "poison-block", "", "seen", "told", run="run-1")
    watch.publish(event)
    messages = [message for _, message in chief.get_events(TOPIC)]
    assert FaultEvent.from_message(messages[-1]) == event


# -- recipes, telemetry ---------------------------------------------------------------------


def test_a_recipe_makes_what_was_made_and_not_what_was_scattered(chief, watch):
    lazy = dask.array.arange(40, chunks=10) ** 2
    kept = chief.persist(lazy)
    (scattered,) = chief.scatter([np.arange(5)])
    child = chief.submit(np.sum, scattered)
    child.result(timeout=DEADLINE_S)
    keys = [future.key for future in chief.futures_of(kept)]
    chief.gather(chief.futures_of(kept))
    recipes = watch.recipe([*keys, scattered.key, child.key, "unheard-of"])
    assert set(recipes) == set(keys)
    for number, key in enumerate(keys):
        value = dask.get(dict(recipes[key]), key)
        np.testing.assert_array_equal(value, np.arange(40)[10 * number : 10 * number + 10] ** 2)


def test_telemetry_is_recorded_when_asked_for(chief, watch, until):
    watch.record(True)
    rows = {}

    def has_all():
        columns = watch.records()
        for name in COLUMNS:
            rows.setdefault(name, []).extend(columns[name])
        return set(rows["worker"]) == set(workers_of(chief))

    until(has_all, "telemetry of all workers")
    watch.record(False)
    assert len({len(values) for values in rows.values()}) == 1
    assert all(0.0 < share < 1.0 for share in rows["rss_share"])
    assert all(abs(then_s - time.time()) < 3600.0 for then_s in rows["time_s"])


def test_foreign_datagrams_are_refused_and_counted(chief, watch, until):
    def throw(dask_scheduler):
        import socket

        port = dask_scheduler.plugins[NAME]._receiver.port
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
            for payload in (b"", b"x" * 60, b"dml\x01" + b"\0" * 64):
                link.sendto(payload, ("127.0.0.1", port))

    before = watch.status()["datagrams_refused"]
    chief.run_on_scheduler(throw)
    until(lambda: watch.status()["datagrams_refused"] == before + 3, "all three are refused")
    assert not watch.suspects


# -- coming and going -----------------------------------------------------------------------


def test_nothing_is_left_when_the_last_fit_is_gone(until):
    def left_on(dask_worker):
        names = [thread.name for thread in threading.enumerate()]
        return (
            [name for name in names if name.startswith("dml-")]
            + [name for name in dask_worker.plugins if name.startswith("dml")]
            + [name for name in dask_worker.handlers if name.startswith("dml")]
        )

    def left_on_scheduler(dask_scheduler):
        servers = [*dask_scheduler.plugins, *dask_scheduler.handlers]
        return [name for name in servers if name.startswith("dml")]

    with LocalCluster(n_workers=1, **LOCAL) as cluster, Client(cluster) as client:
        client.register_plugin(FaultMonitor(linger_s=0.2))
        until(lambda: not client.run_on_scheduler(left_on_scheduler), "it leaves when not needed")
        client.register_plugin(FaultMonitor(linger_s=0.2))
        with Monitor(client, FaultPolicy(), "run") as monitor:
            assert monitor.is_watching
            until(lambda: all_equipped(client), "plugins everywhere")
            assert "dml-heartbeat" in str(client.run(left_on))
            port = client.run_on_scheduler(
                lambda dask_scheduler: dask_scheduler.plugins[NAME]._receiver.port
            )
        until(lambda: not client.run_on_scheduler(left_on_scheduler), "nothing on the scheduler")
        until(lambda: not any(client.run(left_on).values()), "nothing on the workers")
        nannies = client.run(lambda dask_worker: sorted(dask_worker.handlers), nanny=True).values()
        assert not any(name.startswith("dml") for names in nannies for name in names)
        with pytest.raises(ClusterError, match="there is none"):
            monitor.status()
        # The port is free again.
        import socket

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
            link.bind(("127.0.0.1", port))
        # And all of it comes back.
        with Monitor(client, FaultPolicy(), "later") as later:
            assert later.is_watching


def test_a_scheduler_that_refuses_plugins_gives_a_warning_that_says_what_is_lost():
    refusing = {"distributed.scheduler.blocked-handlers": ["register_scheduler_plugin"]}
    with (
        dask.config.set(refusing),
        LocalCluster(n_workers=0, **LOCAL) as cluster,
        Client(cluster) as client,
    ):
        with pytest.warns(FaultMonitorWarning, match="Dask's own recovery.*worker-ttl"):
            monitor = Monitor(client, FaultPolicy(), "run")
        assert_not_watching(monitor)


def test_a_scheduler_of_another_version_is_named(chief, monkeypatch):
    monkeypatch.setattr("dask_dml.runtime.monitor.__version__", "0.0.0")
    with pytest.warns(FaultMonitorWarning, match="run old comes from 0.0.0"):
        monitor = Monitor(chief, FaultPolicy(), "old")
    assert_not_watching(monitor)


WITHOUT_PACKAGE = """
import sys
sys.modules["dask_dml"] = None
from distributed.cli.dask_scheduler import main
main(["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", sys.argv[1]])
"""


@pytest.mark.slow
def test_a_scheduler_without_the_package_gives_a_warning(tmp_path, until):
    path = tmp_path / "scheduler.json"
    with subprocess.Popen(
        [sys.executable, "-c", WITHOUT_PACKAGE, str(path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            until(path.exists, "the scheduler is there")
            with Client(scheduler_file=str(path), timeout=DEADLINE_S) as client:
                with pytest.warns(FaultMonitorWarning, match="dask_dml"):
                    monitor = Monitor(client, FaultPolicy(), "run")
                assert_not_watching(monitor)
        finally:
            process.kill()


def assert_not_watching(monitor):
    assert not monitor.is_watching
    assert [notice.event.kind for notice in monitor.drain_events()] == ["monitor-refused"]
    assert monitor.suspects == frozenset()
    assert monitor.recipe([("x", 0)]) == {}
    monitor.close()


def test_a_policy_without_monitor_registers_nothing():
    with LocalCluster(n_workers=0, **LOCAL) as cluster, Client(cluster) as client:
        monitor = Monitor(client, FaultPolicy(monitor=False), "run")
        assert not monitor.is_watching
        assert monitor.drain_events() == []
        assert NAME not in client.run_on_scheduler(
            lambda dask_scheduler: list(dask_scheduler.plugins)
        )
