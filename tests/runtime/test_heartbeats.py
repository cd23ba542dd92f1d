"""Both ends of the heartbeats, and what a nanny sees of a process, without a cluster."""

from __future__ import annotations

import asyncio
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import types

import pytest

from dask_dml.faults.preemption import PreemptionNotice
from dask_dml.faults.telemetry import Telemetry, pack, unpack, unpacked
from dask_dml.runtime.receiver import Receiver
from dask_dml.runtime.worker_plugin import SLOPE_S, Beacon, Gauge, NoticeWatch, look_at

KEY = b"k" * 32
HOST = "127.0.0.1"
WORKER = "tcp://10.0.0.1:4000"


@pytest.fixture
def receiver():
    receiver = Receiver(KEY, HOST)
    receiver.expect(WORKER)
    yield receiver
    receiver.close()


@pytest.fixture
def send(receiver):
    """Send datagrams; on this machine they have arrived when this returns."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.connect((HOST, receiver.port))
        yield lambda *datagrams: [link.send(datagram) for datagram in datagrams]


def beat(sequence, worker=WORKER, key=KEY, **measured):
    return pack(key, worker, sequence, Telemetry(**measured))


def test_heartbeats_of_expected_workers_are_received(receiver, send):
    other = "tcp://10.0.0.2:4000"
    receiver.expect(other)
    send(beat(1, rss_share=0.25), beat(1, other), beat(2))
    workers = [worker for worker, _ in receiver.receive()]
    assert workers == [WORKER, other, WORKER]
    assert receiver.receive() == []
    assert receiver.n_received == 3


def test_repeated_and_overtaken_heartbeats_tell_nothing(receiver, send):
    send(beat(7), beat(7), beat(6), beat(8))
    assert len(receiver.receive()) == 2


def test_a_worker_that_joined_again_may_count_from_anew(receiver, send):
    send(beat(7))
    assert receiver.receive()
    receiver.forget(WORKER)
    receiver.expect(WORKER)
    send(beat(1))
    assert receiver.receive()


def test_foreign_and_forged_datagrams_and_unknown_workers_are_not_heard(receiver, send):
    send(b"", b"hello", beat(1, key=b"x" * 32), beat(1)[:-1], beat(1) + b"\0")
    assert receiver.receive() == []
    assert receiver.n_refused == 5
    send(beat(1, "tcp://10.0.0.9:4000"))
    assert receiver.receive() == []
    receiver.forget(WORKER)
    send(beat(1))
    assert receiver.receive() == []


def test_who_was_heard_since_the_last_call(receiver, send):
    assert receiver.heard_since_last() == set()
    send(beat(1))
    receiver.receive()
    assert receiver.heard_since_last() == {WORKER}
    assert receiver.heard_since_last() == set()


class Counting:
    """A gauge that says how often it was read, and tells when that has been `enough` times."""

    def __init__(self, enough):
        self.enough = enough
        self.done = threading.Event()
        self.n = 0

    def read(self, reconnects):
        self.n += 1
        if self.n >= self.enough:
            self.done.set()
        return Telemetry(executing=float(self.n), reconnects=float(reconnects))


def test_a_beacon_sends_until_it_is_stopped(receiver):
    gauge = Counting(enough=5)
    beacon = Beacon(gauge, WORKER, HOST, receiver.port, KEY, interval_s=0.001)
    beacon.start()
    assert gauge.done.wait(60.0)
    beacon.stop()
    beacon.join(60.0)
    assert not beacon.is_alive()
    heard = receiver.receive()
    # The first ones, at the least; all in order.
    assert len(heard) >= 4
    assert {worker for worker, _ in heard} == {WORKER}


def test_a_beacon_to_nobody_connects_again_and_again():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind((HOST, 0))
        port = taken.getsockname()[1]
    reconnects = []

    class Watching(Counting):
        def read(self, n):
            reconnects.append(n)
            return super().read(n)

    gauge = Watching(enough=20)
    beacon = Beacon(gauge, WORKER, HOST, port, KEY, interval_s=0.001)
    beacon.start()
    assert gauge.done.wait(60.0)
    beacon.stop()
    beacon.join(60.0)
    assert reconnects == sorted(reconnects)
    assert reconnects[-1] > 0


def test_heartbeats_carry_what_was_measured(receiver):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
        there.bind((HOST, 0))
        there.settimeout(60.0)
        beacon = Beacon(Counting(1), WORKER, HOST, there.getsockname()[1], KEY, interval_s=60.0)
        beacon.start()
        _, _, features = unpack(KEY, there.recv(1000))
        beacon.stop()
        beacon.join(60.0)
    assert unpacked(features).executing == 1.0


def test_each_notice_is_told_once():
    notice = PreemptionNotice("aws", 100.0, "spot")
    later = PreemptionNotice("aws", 200.0, "spot again")
    answers = iter([None, notice, notice, later, later])
    told, done = [], threading.Event()

    class Watch:
        def poll(self):
            answer = next(answers, later)
            if answer is later:
                done.set()
            return answer

    watch = NoticeWatch(Watch(), told.append, interval_s=0.001)
    watch.start()
    assert done.wait(60.0)
    watch.stop()
    watch.join(60.0)
    assert told == [notice, later]


class FakeLoop:
    def __init__(self):
        self.callbacks = []

    def add_callback(self, callback):
        self.callbacks.append(callback)


@pytest.fixture
def worker():
    limits = types.SimpleNamespace(memory_limit=2**40)
    return types.SimpleNamespace(loop=FakeLoop(), data={}, memory_manager=limits)


def test_a_gauge_tells_how_long_the_event_loop_takes(worker):
    now = [0.0]
    gauge = Gauge(worker, clock=lambda: now[0])
    assert gauge.read(0).loop_lag_s == 0.0
    now[0] = 0.5
    # It has not answered so far.
    assert gauge.read(0).loop_lag_s == 0.5
    now[0] = 0.75
    (callback,) = worker.loop.callbacks
    callback()
    now[0] = 1.0
    assert gauge.read(0).loop_lag_s == 0.75
    worker.loop.callbacks[-1]()
    assert gauge.read(0).loop_lag_s == 0.0


def test_a_gauge_knows_the_tasks_that_run_and_the_longest(worker):
    now = [10.0]
    gauge = Gauge(worker, clock=lambda: now[0])
    gauge.task_changed("a", "ready", "executing")
    now[0] = 11.0
    gauge.task_changed("b", "ready", "executing")
    gauge.task_changed("a", "executing", "long-running")
    now[0] = 13.0
    assert gauge.read(0)[7:9] == (2.0, 3.0)
    gauge.task_changed("a", "long-running", "memory")
    assert gauge.read(0)[7:9] == (1.0, 2.0)
    gauge.task_changed("b", "executing", "error")
    assert gauge.read(3)[7:] == (0.0, 0.0, 3.0)


def test_a_gauge_sees_memory_grow(worker):
    now = [0.0]
    gauge = Gauge(worker, clock=lambda: now[0])
    shares = []
    kept = []
    for second in range(8):
        now[0] = float(second)
        reading = gauge.read(0)
        shares.append(reading.rss_share)
        # Mapped anew: other memory may have been used and freed before.
        kept.append(mmap.mmap(-1, 20_000_000))
        kept[-1].write(b"x" * 20_000_000)
    assert shares == sorted(shares)
    window = int(SLOPE_S)
    expected = (shares[-1] - shares[-1 - window]) / window
    assert reading.rss_slope == pytest.approx(expected)
    assert reading.rss_slope > 0.0


def test_without_a_memory_limit_there_are_no_shares(worker):
    worker.memory_manager.memory_limit = None
    reading = Gauge(worker).read(0)
    assert (reading.rss_share, reading.rss_slope, reading.spilled_share) == (0.0, 0.0, 0.0)


@pytest.fixture
def process():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_process_is_seen_running_stopped_and_gone(process):
    def seen():
        return asyncio.run(look_at(process.pid))

    assert seen().state == "running"
    assert seen().rss_bytes > 0
    os.kill(process.pid, signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    assert seen().state == "stopped"
    os.kill(process.pid, signal.SIGCONT)
    os.waitpid(process.pid, os.WCONTINUED)
    assert seen().state == "running"
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert seen().state == "gone"
    process.wait()
    assert seen().state == "gone"
    assert asyncio.run(look_at(None)).state == "gone"
