"""A chaos cluster: every fault hits whom it should, and is mended; nothing is left behind."""

from __future__ import annotations

import gc
import math
import os
import threading
import time
from pathlib import Path

import psutil
import pytest
from distributed import LocalCluster

from dask_dml.errors import ClusterError
from dask_dml.faults.chaos import Chaos, ChaosCluster, Fault, Schedule
from dask_dml.faults.chaos.network import NamespaceNetwork, why_no_namespaces
from dask_dml.faults.chaos.trial import run_trial

DEADLINE_S = 60.0
# How long nothing may come before somebody counts as cut off.
SILENCE_S = 1.0
PARTITIONS = ("partition", "partition-in", "partition-out")


def wait_until(condition, what):
    """Wait for a condition that nothing signals, up to a deadline."""
    never = threading.Event()
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_s, f"after {DEADLINE_S} s still not so: {what}"
        never.wait(0.01)


@pytest.fixture(scope="module")
def shared():
    with ChaosCluster(2, memory_limit="600MiB") as cluster:
        yield cluster


@pytest.fixture
def cluster(shared):
    """Two machines, in order before and after."""
    yield shared
    shared.mend()
    gc.collect()  # tracebacks that a test expected keep futures in cycles
    assert shared.leftovers() == []


def fault(kind, duration_s=60.0, target=0):
    return Fault(kind, 0.0, duration_s, target)


def asked(cluster, number=0):
    """A task for the worker of one machine."""
    worker = cluster.machine(number).worker
    return cluster.client.submit(int, workers=[worker], allow_other_workers=False, pure=False)


def registered(cluster):
    return cluster.client.scheduler_info(n_workers=-1)["workers"]


def assert_cut_off_and_back(cluster, cut):
    cluster.begin(cut)
    question = asked(cluster)
    with pytest.raises(TimeoutError):
        question.result(SILENCE_S)
    assert asked(cluster, 1).result(DEADLINE_S) == 0
    cluster.end(cut)
    assert question.result(DEADLINE_S) == 0


class TestFaults:
    def test_a_killed_worker_is_followed_by_another(self, cluster):
        pid = cluster.machine(0).pid
        cluster.begin(fault("kill", 0.0))
        wait_until(lambda: cluster.machine(0).pid != pid, "another worker")
        cluster.mend()
        assert asked(cluster).result(DEADLINE_S) == 0

    @pytest.mark.parametrize("duration_s", [60.0, math.inf])
    def test_a_hung_worker_is_stopped_and_goes_on(self, cluster, duration_s):
        process = psutil.Process(cluster.machine(0).pid)
        hang = fault("hang", duration_s)
        cluster.begin(hang)
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED, "stopped")
        if math.isinf(duration_s):
            cluster.mend()
        else:
            cluster.end(hang)
        assert process.status() != psutil.STATUS_STOPPED
        assert asked(cluster).result(DEADLINE_S) == 0

    def test_a_slow_worker_stops_and_goes_on_all_the_time(self, cluster):
        process = psutil.Process(cluster.machine(0).pid)
        cluster.begin(fault("slow"))
        for _ in range(2):
            wait_until(lambda: process.status() == psutil.STATUS_STOPPED, "stopped")
            wait_until(lambda: process.status() != psutil.STATUS_STOPPED, "going on")
        assert asked(cluster).result(DEADLINE_S) == 0
        cluster.mend()
        assert process.status() != psutil.STATUS_STOPPED

    @pytest.mark.parametrize("kind", PARTITIONS)
    def test_who_is_cut_off_does_not_answer_and_then_does(self, cluster, kind):
        assert_cut_off_and_back(cluster, fault(kind))

    def test_partitions_of_one_machine_add_up(self, cluster):
        cluster.begin(fault("partition-in"))
        cluster.begin(fault("partition-out"))
        cluster.end(fault("partition-in"))
        question = asked(cluster)
        with pytest.raises(TimeoutError):
            question.result(SILENCE_S)
        cluster.end(fault("partition-out"))
        assert question.result(DEADLINE_S) == 0

    def test_a_worker_that_grows_beyond_its_limit_is_ended_by_its_nanny(self, cluster):
        pid = cluster.machine(0).pid
        cluster.begin(fault("memory", 0.5))
        wait_until(lambda: cluster.machine(0).pid != pid, "another worker")

    def test_a_preempted_machine_is_switched_off(self, cluster):
        machine = cluster.machine(0)
        preempt = fault("preempt", 1.0)
        cluster.begin(preempt)
        cluster.end(preempt)
        assert not machine.child.is_on
        assert machine.child.members() == []
        with pytest.raises(ClusterError, match="machine-0 is not there"):
            cluster.begin(fault("kill", 0.0))
        cluster.mend()
        assert len(registered(cluster)) == 2

    def test_a_retired_worker_leaves_and_mending_brings_another(self, cluster):
        worker = cluster.machine(0).worker
        cluster.begin(fault("retire", 0.0))
        wait_until(lambda: worker not in registered(cluster), "it has left")
        cluster.mend()
        assert len(registered(cluster)) == 2
        assert worker not in registered(cluster)

    def test_a_machine_joins_and_is_taken_away_by_mending(self, cluster):
        cluster.begin(fault("join", 0.0, target=2))
        wait_until(lambda: len(registered(cluster)) == 3, "it has joined")
        cluster.mend()
        assert len(registered(cluster)) == 2

    def test_nobody_is_hit_who_is_not_there(self, cluster):
        with pytest.raises(ClusterError, match="machine-7 is not there"):
            cluster.begin(fault("kill", 0.0, target=7))


class TestChaos:
    def test_steps_are_taken_in_their_time(self, cluster):
        pids = [cluster.machine(number).pid for number in (0, 1)]
        hang = Fault("hang", 0.2, 0.3, 1)
        schedule = Schedule(0, 2, 1.0, (Fault("kill", 0.1, 0.0, 0), hang))
        with Chaos(cluster, schedule) as chaos:
            assert chaos.wait(DEADLINE_S)
        assert chaos.is_over
        taken = sorted(chaos.injections, key=lambda injection: injection.at_s)
        assert [injection.step for injection in taken] == list(schedule.steps())
        assert all(injection.at_s >= injection.step.at_s for injection in taken)
        assert f"process {pids[0]}" in taken[0].outcome
        assert psutil.Process(pids[1]).status() != psutil.STATUS_STOPPED
        wait_until(lambda: cluster.machine(0).pid != pids[0], "another worker")

    def test_a_block_that_ends_leaves_out_the_rest(self, cluster):
        pid = cluster.machine(0).pid
        with Chaos(cluster, Schedule(0, 2, 99.0, (Fault("kill", 90.0, 0.0, 0),))) as chaos:
            pass
        assert chaos.injections == []
        assert cluster.machine(0).pid == pid

    def test_a_fault_without_anybody_to_hit_is_told(self, cluster):
        faults = (Fault("retire", 0.0, 0.0, 0), Fault("kill", 3.0, 0.0, 0))
        worker = cluster.machine(0).worker
        with Chaos(cluster, Schedule(0, 2, 4.0, faults)) as chaos:
            wait_until(lambda: worker not in registered(cluster), "it has left")
            chaos.wait(DEADLINE_S)
        assert chaos.injections[-1].outcome.startswith("nothing: ")


class TestLeftovers:
    def test_a_task_and_its_data_are_told(self, cluster, monkeypatch):
        monkeypatch.setattr("dask_dml.faults.chaos.harness._SETTLE_S", 0.0)
        kept = cluster.client.submit(int, key="kept")
        kept.result(DEADLINE_S)
        found = cluster.leftovers()
        assert "task kept" in found
        assert any(line.startswith("data kept on tcp://") for line in found)
        assert cluster.leftovers(["kept"]) == []

    def test_a_closed_cluster_leaves_nothing_behind(self):
        cluster = ChaosCluster(1, network="proxy")
        children = [cluster.machine(0).child, cluster._scheduler]
        relay, directory = cluster._network._process, Path(cluster._directory.name)
        cluster.close()
        assert [process for child in children for process in child.members()] == []
        assert relay.poll() is not None
        assert not directory.exists()
        cluster.close()


@pytest.fixture(scope="module")
def foreign():
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit="600MiB"
    ) as cluster:
        yield cluster


class TestForeign:
    @pytest.fixture
    def client(self, foreign):
        with foreign.get_client() as client:
            client.wait_for_workers(2, timeout=DEADLINE_S)
            yield client

    def test_it_is_left_alone_unless_told_otherwise(self, client):
        schedule = Schedule(0, 2, 1.0, (Fault("kill", 0.0, 0.0, 0),))
        with pytest.raises(ClusterError, match="allow_foreign=True"):
            Chaos(client, schedule)

    @pytest.mark.parametrize("kind", [*PARTITIONS, "preempt", "join"])
    def test_what_dask_cannot_do_is_refused(self, client, kind):
        target = 2 if kind == "join" else 0
        schedule = Schedule(0, 2, 1.0, (Fault(kind, 0.0, 0.0, target),))
        with pytest.raises(ClusterError, match=kind):
            Chaos(client, schedule, allow_foreign=True)

    @pytest.mark.parametrize("kind", ["kill", "memory"])
    def test_a_worker_is_ended(self, client, kind):
        worker = min(client.scheduler_info(n_workers=-1)["workers"])
        schedule = Schedule(0, 2, 1.0, (Fault(kind, 0.0, 0.0 if kind == "kill" else 0.5, 0),))
        with Chaos(client, schedule, allow_foreign=True) as chaos:
            chaos.wait(DEADLINE_S)
            wait_until(
                lambda: worker not in client.scheduler_info(n_workers=-1)["workers"],
                "it has ended",
            )
        assert any(worker in injection.outcome for injection in chaos.injections)

    @pytest.mark.parametrize("kind", ["hang", "slow"])
    def test_a_worker_is_disturbed_and_goes_on(self, client, kind):
        workers = client.scheduler_info(n_workers=-1)["workers"]
        worker = min(workers)
        process = psutil.Process(client.run(os.getpid, workers=[worker])[worker])
        schedule = Schedule(0, 2, 9.0, (Fault(kind, 0.0, 1.5, 0),))
        with Chaos(client, schedule, allow_foreign=True):
            wait_until(lambda: process.status() == psutil.STATUS_STOPPED, "stopped")
        assert client.submit(int, workers=[worker], pure=False).result(DEADLINE_S) == 0

    def test_a_worker_is_retired(self, foreign, client):
        worker = min(client.scheduler_info(n_workers=-1)["workers"])
        schedule = Schedule(0, 2, 1.0, (Fault("retire", 0.0, 0.0, 0),))
        with Chaos(client, schedule, allow_foreign=True) as chaos:
            chaos.wait(DEADLINE_S)
        wait_until(
            lambda: worker not in client.scheduler_info(n_workers=-1)["workers"], "it has left"
        )


@pytest.fixture(scope="module")
def namespaces():
    with ChaosCluster(2, network="netns") as cluster:
        yield cluster


@pytest.mark.skipif(why_no_namespaces() is not None, reason=str(why_no_namespaces()))
class TestNamespaces:
    @pytest.fixture
    def cluster(self, namespaces):
        yield namespaces
        namespaces.mend()

    @pytest.mark.parametrize("kind", PARTITIONS)
    def test_who_is_cut_off_does_not_answer_and_then_does(self, cluster, kind):
        assert_cut_off_and_back(cluster, fault(kind))

    @pytest.mark.parametrize("kind", PARTITIONS)
    def test_a_fit_ends_with_the_same_bits(self, cluster, arena, kind):
        schedule = Schedule(0, 2, 2.5, (Fault(kind, 0.3, 2.0, 0),))
        with arena.fitting("stored") as fit:
            trial = run_trial(cluster, schedule, fit, arena.expected, DEADLINE_S)
        assert trial.error == ""
        assert trial.same_bits
        assert trial.leftovers == ()

    def test_machines_have_addresses_of_their_own(self, cluster):
        hosts = {cluster.machine(number).worker.split(":")[1] for number in (0, 1)}
        assert len(hosts) == 2
        assert all(host.startswith(("//198.18.", "//198.19.")) for host in hosts)

    def test_nothing_is_left_of_a_network(self):
        network = NamespaceNetwork()
        network.join(0, "tcp://127.0.0.1:1", 1)
        prefix, uplink = network._prefix, network._uplink
        network.close()
        names = Path("/run/netns")
        assert [path for path in names.glob("*") if path.name.startswith(prefix)] == []
        assert not Path("/sys/class/net", uplink).exists()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("os.geteuid", lambda: 1000, "root"),
        ("shutil.which", lambda name: None, "iproute2"),
        ("sys.platform", "darwin", "Linux"),
    ],
)
def test_why_there_are_no_namespaces_is_said(monkeypatch, name, value, reason):
    for known, good in (
        ("os.geteuid", lambda: 0),
        ("shutil.which", lambda name: "/sbin/ip"),
        ("sys.platform", "linux"),
    ):
        monkeypatch.setattr(f"dask_dml.faults.chaos.network.{known}", good)
    monkeypatch.setattr(f"dask_dml.faults.chaos.network.{name}", value)
    assert reason in why_no_namespaces()
    with pytest.raises(ClusterError, match=reason):
        NamespaceNetwork()


@pytest.mark.parametrize("arguments", [{"n_workers": 0}, {"network": "wifi"}])
def test_a_cluster_that_makes_no_sense_is_refused(arguments):
    with pytest.raises(ValueError, match="ChaosCluster"):
        ChaosCluster(**arguments)


def test_a_cluster_on_the_plain_network_cannot_be_partitioned():
    with ChaosCluster(1, network=None) as cluster:
        with pytest.raises(ClusterError, match="network='proxy'"):
            cluster.begin(fault("partition"))
        cluster.mend()
        assert asked(cluster).result(DEADLINE_S) == 0
