"""What runs on the workers and nannies while fits are watched.

A thread of the worker sends heartbeats, so that a busy event loop does not stop them; a thread that
waits for the cloud's metadata service is apart from it. Rounds that come by call are done here, and
passed on to other workers. The nanny says what it sees of its worker's
process, which tells a stopped one from a busy one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from pathlib import Path
from typing import Any

import dask
import psutil
from distributed import Nanny, Status, Worker
from distributed.diagnostics.plugin import NannyPlugin, WorkerPlugin

from dask_dml.faults.membership import ProcessView
from dask_dml.faults.preemption import PreemptionNotice, PreemptionWatch
from dask_dml.faults.telemetry import Telemetry, pack
from dask_dml.runtime.relay import Call, joined, passed_on
from dask_dml.runtime.resident import Resident

logger = logging.getLogger(__name__)

# Over how long the growth of the memory is taken.
SLOPE_S = 5.0
_RELEASED_SHARE = 0.05
# How often the machine's own figures are read: on machines of many cores that takes a while.
_MACHINE_S = 2.0
_NOTICE_S = 2.0
# How often and how long a notice is repeated to a scheduler that does not take it.
_TELL_EVERY_S = 1.0
_TELL_TIMES = 60
_CPU_SAMPLE_S = 0.1
# How long the nanny gives a process to end by itself; one that is stopped never does.
_KILL_S = 1.0
_JOIN_S = 1.0


class Gauge:
    """Measures a worker for its heartbeats.

    Parameters
    ----------
    worker : distributed.Worker
    clock : callable
        Seconds that only go forward.
    """

    def __init__(self, worker: Worker, clock: Callable[[], float] = time.monotonic) -> None:
        self._worker = worker
        self._clock = clock
        self._process = psutil.Process()
        self._started_s: dict[Hashable, float] = {}
        self._rss: deque[tuple[float, float]] = deque()
        self._cpu: tuple[float, float] | None = None
        self._machine_s = -_MACHINE_S
        self._machine_cpu: tuple[float, float] | None = None
        self._steal_share = 0.0
        self._swap_share = 0.0
        self._asked_loop_s: float | None = None
        self._loop_lag_s = 0.0

    def task_changed(self, key: Hashable, start: str, finish: str) -> None:
        """Take note of a task that begins or ends."""
        if finish == "executing":
            self._started_s[key] = self._clock()
        elif start in ("executing", "long-running") and finish != "long-running":
            self._started_s.pop(key, None)

    def read(self, reconnects: int) -> Telemetry:
        """Measure now; not thread-safe against itself."""
        now_s = self._clock()
        limit = self._worker.memory_manager.memory_limit or 0
        rss_share = self._process.memory_info().rss / limit if limit else 0.0
        spilled = getattr(self._worker.data, "spilled_total", None)
        self._read_machine(now_s)
        # A copy in one step: the event loop's thread changes it meanwhile.
        started = list(self._started_s.values())
        return Telemetry(
            rss_share=rss_share,
            rss_slope=self._slope(now_s, rss_share),
            loop_lag_s=self._lag(now_s),
            cpu_share=self._cpu_share(now_s),
            steal_share=self._steal_share,
            swap_share=self._swap_share,
            spilled_share=spilled.disk / limit if spilled is not None and limit else 0.0,
            executing=float(len(started)),
            task_s=now_s - min(started) if started else 0.0,
            reconnects=float(reconnects),
        )

    def _slope(self, now_s: float, rss_share: float) -> float:
        # What was released before would hide the growth since.
        if self._rss and rss_share < self._rss[-1][1] - _RELEASED_SHARE:
            self._rss.clear()
        self._rss.append((now_s, rss_share))
        while now_s - self._rss[0][0] > SLOPE_S:
            self._rss.popleft()
        then_s, then_share = self._rss[0]
        return (rss_share - then_share) / (now_s - then_s) if now_s > then_s else 0.0

    def _lag(self, now_s: float) -> float:
        """How long the event loop takes to answer; so far, where it has not answered."""
        asked_s = self._asked_loop_s
        if asked_s is not None:
            return max(self._loop_lag_s, now_s - asked_s)
        lag_s = self._loop_lag_s
        self._asked_loop_s = now_s
        self._worker.loop.add_callback(self._loop_answered)
        return lag_s

    def _loop_answered(self) -> None:
        if self._asked_loop_s is not None:
            self._loop_lag_s = self._clock() - self._asked_loop_s
            self._asked_loop_s = None

    def _cpu_share(self, now_s: float) -> float:
        times = self._process.cpu_times()
        before, self._cpu = self._cpu, (now_s, times.user + times.system)
        if before is None or now_s <= before[0]:
            return 0.0
        return (self._cpu[1] - before[1]) / (now_s - before[0])

    def _read_machine(self, now_s: float) -> None:
        if now_s < self._machine_s + _MACHINE_S:
            return
        self._machine_s = now_s
        times = psutil.cpu_times()
        before, self._machine_cpu = self._machine_cpu, (getattr(times, "steal", 0.0), sum(times))
        if before is not None and self._machine_cpu[1] > before[1]:
            stolen = self._machine_cpu[0] - before[0]
            self._steal_share = stolen / (self._machine_cpu[1] - before[1])
        swap = psutil.swap_memory()
        self._swap_share = swap.used / swap.total if swap.total else 0.0


class Beacon(threading.Thread):
    """Sends a worker's heartbeats from a thread and a socket of its own.

    Parameters
    ----------
    gauge : Gauge
    address : str
        Of the worker.
    host, port : str, int
        Where the heartbeats go.
    key : bytes
        See `dask_dml.faults.telemetry.pack`.
    interval_s : float
        May be set anew at any time.
    """

    def __init__(
        self, gauge: Gauge, address: str, host: str, port: int, key: bytes, interval_s: float
    ) -> None:
        super().__init__(name="dml-heartbeat", daemon=True)
        self._gauge = gauge
        self._address = address
        self._key = key
        self._target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        self._ended = threading.Event()
        # Rises over restarts of the plugin as well: what does not rise counts as a repetition.
        self._sequence = time.time_ns() // 1000
        self._reconnects = 0
        self.interval_s = interval_s

    def run(self) -> None:
        """Send until told to stop."""
        link = self._connect()
        try:
            while not self._ended.is_set():
                try:
                    link.send(self._next())
                except psutil.Error as error:
                    logger.debug("no heartbeat: %r", error)
                except OSError as error:
                    # No route, or nobody listens: heartbeats count as lost, as all datagrams may.
                    logger.debug("heartbeat not sent: %r", error)
                    self._reconnects += 1
                    link.close()
                    link = self._connect()
                self._ended.wait(self.interval_s)
        finally:
            link.close()

    def stop(self) -> None:
        """Have the thread end; `join` waits for it."""
        self._ended.set()

    def _next(self) -> bytes:
        self._sequence += 1
        return pack(self._key, self._address, self._sequence, self._gauge.read(self._reconnects))

    def _connect(self) -> socket.socket:
        family, kind, protocol, _, address = self._target
        link = socket.socket(family, kind, protocol)
        link.setblocking(False)
        try:
            link.connect(address)
        except OSError as error:
            logger.debug("no way to %s yet: %r", address, error)
        return link


class NoticeWatch(threading.Thread):
    """Polls the cloud's metadata service, whose answers may take long.

    Parameters
    ----------
    watch : PreemptionWatch
    tell : callable
        Called in this thread with each new notice.
    interval_s : float
        Between two polls.
    """

    def __init__(
        self,
        watch: PreemptionWatch,
        tell: Callable[[PreemptionNotice], None],
        interval_s: float = _NOTICE_S,
    ) -> None:
        super().__init__(name="dml-preemption", daemon=True)
        self._watch = watch
        self._tell = tell
        self._interval_s = interval_s
        self._ended = threading.Event()

    def run(self) -> None:
        """Poll until told to stop."""
        told: PreemptionNotice | None = None
        while not self._ended.is_set():
            notice = self._watch.poll()
            if notice is not None and notice != told and not self._ended.is_set():
                self._tell(notice)
            told = notice
            self._ended.wait(self._interval_s)

    def stop(self) -> None:
        """Have the thread end, after the poll that is under way, of which nothing is told."""
        self._ended.set()


class HeartbeatPlugin(WorkerPlugin):
    """Heartbeats, notices, probes and calls of one worker.

    Where the metadata service is asked is said by the worker's Dask configuration, for sites whose
    service is elsewhere: ``dml.preemption.provider`` ("auto", "aws", "google", "azure" or "none"),
    ``dml.preemption.url`` and ``dml.preemption.heed-rebalance``. Likewise
    ``dml.heartbeats.address`` (host:port), where heartbeats have to go to another address than the
    one the scheduler knows.

    Parameters
    ----------
    name : str
        Of the plugin.
    host, port : str, int
        Where heartbeats go.
    key : bytes
        Secret that signs them.
    interval_s : float
        Between two of them.
    """

    def __init__(self, name: str, host: str, port: int, key: bytes, interval_s: float) -> None:
        self.name = name
        self.host = host
        self.port = port
        self.key = key
        self.interval_s = interval_s

    def setup(self, worker: Worker) -> None:
        """Start the threads, and take probes for others."""
        self._worker = worker
        self._gauge = Gauge(worker)
        self._resident = Resident(worker, self._gauge.task_changed)
        # Behind a gateway the scheduler is not where it believes to be.
        told = str(dask.config.get("dml.heartbeats.address", None) or f"{self.host}:{self.port}")
        host, _, port = told.rpartition(":")
        self._beacon = Beacon(
            self._gauge, worker.address, host, int(port), self.key, self.interval_s
        )
        watch = PreemptionWatch(
            dask.config.get("dml.preemption.provider", "auto"),
            dask.config.get("dml.preemption.url", None),
            heed_rebalance=bool(dask.config.get("dml.preemption.heed-rebalance", False)),
        )
        self._notices = NoticeWatch(
            watch, lambda notice: worker.loop.add_callback(self._report, notice)
        )
        self._handlers: dict[str, Callable[..., Any]] = {
            "dml_probe": self.probe,
            "dml_pace": self.pace,
            "dml_state": self.state,
            "dml_order": self._resident.take_order,
            "dml_dismiss": self._resident.dismiss,
            "dml_call": self.call,
        }
        worker.handlers.update(self._handlers)
        self._beacon.start()
        self._notices.start()

    async def teardown(self, worker: Worker) -> None:
        """End the threads, close the socket, take no more probes."""
        self._beacon.stop()
        self._notices.stop()
        for name, handler in self._handlers.items():
            if worker.handlers.get(name) == handler:
                del worker.handlers[name]
        # The other thread is not waited for: its poll of the metadata service may take seconds, and
        # a nanny kills a worker that does not close in time.
        await asyncio.to_thread(self._beacon.join, _JOIN_S)

    def transition(self, key: Hashable, start: str, finish: str, **kwargs: Any) -> None:
        """Take note of tasks that begin and end."""
        self._gauge.task_changed(key, start, finish)

    # -- what the scheduler asks ------------------------------------------------------------

    async def probe(self, address: str, timeout_s: float) -> bool:
        """Ping another worker in the scheduler's place."""
        try:
            async with asyncio.timeout(timeout_s):
                return bool(await self._worker.rpc(address).ping() == b"pong")
        except OSError:
            return False

    def pace(self, interval_s: float) -> None:
        """Send heartbeats at another interval."""
        self._beacon.interval_s = interval_s

    def state(self) -> str:
        """What the worker itself holds to be its status."""
        return str(self._worker.status.name)

    async def call(self, call: dict[str, Any]) -> dict[str, Any]:
        """Do this worker's share of a round, and have those below do theirs."""
        called = Call.of(call)
        own, below = await asyncio.gather(
            self._resident.do(called), passed_on(self._worker.rpc, called)
        )
        return (joined([own, *below], called.n_blocks) if below else own).message

    async def _report(self, notice: PreemptionNotice) -> None:
        message = {
            "worker": self._worker.address,
            "deadline_s": notice.deadline_s,
            "source": notice.source,
            "detail": notice.detail,
        }
        for _ in range(_TELL_TIMES):
            try:
                if await self._worker.scheduler.dml_notice(**message):
                    return
            except OSError as error:
                logger.info("the scheduler did not take the notice %s: %r", message, error)
            await asyncio.sleep(_TELL_EVERY_S)


class NannyWatch(NannyPlugin):
    """Says what a nanny sees of its worker's process, and restarts it when told to.

    Parameters
    ----------
    name : str
        Of the plugin.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def setup(self, nanny: Nanny) -> None:
        """Take questions."""
        self._nanny = nanny
        self._handlers: dict[str, Callable[..., Any]] = {
            "dml_look": self.look,
            "dml_restart": self.restart_worker,
        }
        nanny.handlers.update(self._handlers)

    def teardown(self, nanny: Nanny) -> None:
        """Take no more questions."""
        for name, handler in self._handlers.items():
            if nanny.handlers.get(name) == handler:
                del nanny.handlers[name]

    async def look(self, worker: str) -> dict[str, Any]:
        """See what the process of a worker is doing; a `ProcessView` as plain data."""
        process = self._nanny.process
        if process is not None and process.status == Status.starting:
            # Its address is still that of the process before.
            view = ProcessView("running", is_same=False)
        elif self._nanny.worker_address != worker:
            view = ProcessView("gone")
        else:
            view = await look_at(self._nanny.pid)
        return view._asdict()

    async def restart_worker(self, worker: str) -> str:
        """Have another process take the place of a worker's, unless that has happened already."""
        if self._nanny.worker_address == worker:
            process = self._nanny.process
            # One that comes up by itself has the old address until it is there, and is spared.
            if process is None or process.status != Status.starting:
                # At once: one that wakes up in the time it is given to end finds that it is not
                # wanted, and has its nanny close, which then ends the other one.
                self._kill_at_once()
                await self._nanny.kill(timeout=_KILL_S, reason="dml-worker-evicted")
            await self._nanny.instantiate()
        return str(self._nanny.worker_address)

    def _kill_at_once(self) -> None:
        if self._nanny.status == Status.closing_gracefully:
            self._nanny.status = Status.running
        if self._nanny.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self._nanny.pid, signal.SIGKILL)


async def look_at(pid: int | None) -> ProcessView:
    """See what a process is doing.

    Parameters
    ----------
    pid : int or None
        None for one that has ended.

    Returns
    -------
    ProcessView
        Its `is_same` says nothing.
    """
    if pid is None:
        return ProcessView("gone")
    try:
        process = psutil.Process(pid)
        state = process.status()
        if state in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return ProcessView("gone")
        if state == psutil.STATUS_TRACING_STOP or (
            state == psutil.STATUS_STOPPED and _is_traced(pid)
        ):
            return ProcessView("traced", 0.0, process.memory_info().rss)
        if state == psutil.STATUS_STOPPED:
            return ProcessView("stopped", 0.0, process.memory_info().rss)
        before = process.cpu_times()
        await asyncio.sleep(_CPU_SAMPLE_S)
        after = process.cpu_times()
        cpu_s = after.user + after.system - before.user - before.system
        waits_for_disk = process.status() == psutil.STATUS_DISK_SLEEP
        is_swapping = waits_for_disk and psutil.swap_memory().used > 0
        return ProcessView(
            "swapping" if is_swapping else "running",
            cpu_s / _CPU_SAMPLE_S,
            process.memory_info().rss,
        )
    except psutil.NoSuchProcess:
        return ProcessView("gone")
    except psutil.AccessDenied:
        return ProcessView("unreachable")


def _is_traced(pid: int) -> bool:
    """Whether a debugger holds a process; Linux alone says so."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    tracers = [line.split()[1] for line in status.splitlines() if line.startswith("TracerPid:")]
    return tracers not in ([], ["0"])
