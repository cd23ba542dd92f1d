"""What the watcher costs the scheduler of a large fleet; run by recovery.py.

The plugin, its loop and its socket are real; the workers are a process that sends the heartbeats of
all of them, and questions to them are answered at once and counted. The scheduler does nothing
else. What an event loop takes to wake as often, and do nothing, is measured beside it: a scheduler
is awake anyway.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import socket
import time
from types import SimpleNamespace
from typing import Any
from unittest import mock

from distributed import Status
from distributed.protocol.pickle import dumps

from dask_dml.faults import FaultPolicy
from dask_dml.faults.telemetry import Telemetry, pack
from dask_dml.runtime.crew import Crew
from dask_dml.runtime.scheduler_plugin import FaultMonitor
from dask_dml.version import __version__

SETTLE_S = 5.0
JITTER_S = 0.05


def send_heartbeats(
    port: int, key: bytes, workers: list[str], interval_s: float, length_s: float
) -> None:
    """Send what a fleet sends, each worker at times of its own."""
    rng = random.Random(0)
    telemetry = Telemetry(rss_share=0.3, cpu_share=0.5)
    phases = [rng.random() * interval_s for _ in workers]
    beats = sorted(
        (number * interval_s + phase + abs(rng.gauss(0.0, JITTER_S)), number, worker)
        for number in range(int(length_s / interval_s))
        for worker, phase in zip(workers, phases, strict=True)
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.connect(("127.0.0.1", port))
        started_s = time.monotonic()
        for at_s, number, worker in beats:
            time.sleep(max(started_s + at_s - time.monotonic(), 0.0))
            link.send(pack(key, worker, number, telemetry))


class FleetScheduler:
    """As much of a scheduler as the watcher needs of one: its loop has nothing else to do."""

    def __init__(self, workers: list[str]) -> None:
        self.address = "tcp://127.0.0.1:8786"
        self.workers = {
            worker: SimpleNamespace(nthreads=1, nanny=f"{worker}0", status=Status.running)
            for worker in workers
        }
        self.clients = {"client": None}
        self.handlers: dict[str, Any] = {}
        self.plugins: dict[str, Any] = {}
        self.events: list[Any] = []

    def subscribe_topic(self, topic: str, client: str) -> None:
        pass

    unsubscribe_topic = subscribe_topic

    def log_event(self, topics: list[str], event: Any) -> None:
        self.events.append(event)


async def empty_loop_share(n_workers: int, length_s: float) -> float:
    """Share of a core for waking as often as the watcher does, and doing nothing."""
    nap_s = min(max(0.05, n_workers / 4_000), 0.25)
    cpu_s = time.process_time()
    for _ in range(round(length_s / nap_s)):
        await asyncio.sleep(nap_s)
    return (time.process_time() - cpu_s) / length_s


async def _measured(n_workers: int, length_s: float) -> tuple[float, dict[str, Any]]:
    workers = [f"tcp://10.0.{n // 250}.{n % 250}:{40000 + n}" for n in range(n_workers)]
    asked: list[str] = []

    def equip(crew: Crew, worker: str, nanny: str | None) -> None:
        crew.equipped |= {worker, str(nanny)}

    async def ask(crew: Crew, server: str, op: str, limit_s: float, /, **message: Any) -> bytes:
        asked.append(op)
        return b"pong"

    scheduler: Any = FleetScheduler(workers)
    with mock.patch.multiple(Crew, equip=equip, ask=ask, leave=mock.Mock()):
        monitor = FaultMonitor()
        await monitor.start(scheduler)
        answer = monitor.dml_watch("run", "client", __version__, dumps(FaultPolicy()))
        assert answer["status"] == "OK", answer
        receiver: Any = monitor._receiver
        beats = multiprocessing.get_context("spawn").Process(
            target=send_heartbeats,
            args=(
                receiver.port, receiver._key, workers, monitor._crew.interval_s,
                length_s + 4 * SETTLE_S,
            ),
            daemon=True,
        )  # fmt: skip
        beats.start()
        while not receiver.n_received:
            await asyncio.sleep(0.1)
        await asyncio.sleep(SETTLE_S)
        n_before, cpu_s = receiver.n_received, time.process_time()
        await asyncio.sleep(length_s)
        share = (time.process_time() - cpu_s) / length_s
        found = {
            "heartbeats_a_second": (receiver.n_received - n_before) / length_s,
            "asked": len(asked),
            "events": [event["kind"] for event in scheduler.events],
        }
        beats.terminate()
        beats.join()
        monitor.dml_unwatch("run")
        monitor._leave()
        monitor._crew.stop()
    return share, found | {"empty_loop": await empty_loop_share(n_workers, length_s)}


def watching_share(n_workers: int, length_s: float) -> tuple[float, dict[str, Any]]:
    """Share of a core that the watcher and its loop take, and what it had to do."""
    return asyncio.run(_measured(n_workers, length_s))
