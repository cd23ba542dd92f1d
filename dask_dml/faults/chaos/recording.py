"""Record what workers say of themselves before they are lost, to fit a predictor to.

Workers of a cluster of real processes go through one episode after the other, drawn at random:
some harmless, some that end them; some are killed out of the blue, which nothing announces. Their
telemetry is taken as a fit's monitor takes it, by heartbeats from the worker's own thread, while no
monitor interferes.
"""

from __future__ import annotations

import logging
import math
import os
import random
import secrets
import signal
import socket
import threading
import time
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import click
import dask
import pandas as pd
import psutil
from distributed import Client, LocalCluster, Worker
from distributed.diagnostics.plugin import WorkerPlugin

from dask_dml.faults.chaos.episodes import FATAL, HARMLESS, Circumstance, block, idle
from dask_dml.faults.detectors import PhiAccrual
from dask_dml.faults.policy import FaultPolicy
from dask_dml.faults.telemetry import DatagramError, unpack, unpacked, worker_id
from dask_dml.faults.training import Records
from dask_dml.objective.blas import blas_environment
from dask_dml.runtime.monitor import Monitor
from dask_dml.runtime.worker_plugin import Beacon, Gauge

logger = logging.getLogger(__name__)

HEARTBEAT_S = 0.5
LIMITS_BYTES = (500_000_000, 700_000_000, 1_000_000_000, 1_400_000_000)
# Of the episodes: how many end the worker, fill it with data that spills, are cut short by a kill.
FATAL_SHARE = 0.3
SPILL_SHARE = 0.1
KILL_SHARE = 0.05
# Of the runs: how many have no faults at all.
QUIET_SHARE = 0.2
# As long as some memory hogs live, so that a long task by itself is no sign of danger.
EPISODE_S = (4.0, 100.0)
# An episode that goes on for so much longer than it should (of a starved worker) is given up.
PATIENCE_S = 20.0
_LOOK_S = 0.1
_DATAGRAM_BYTES = 4096


class TelemetryPlugin(WorkerPlugin):
    """Heartbeats with telemetry to one listener, and nothing else.

    Parameters
    ----------
    host, port : str, int
        Where they go.
    key : bytes
        Secret that signs them.
    """

    def __init__(self, host: str, port: int, key: bytes) -> None:
        self.host = host
        self.port = port
        self.key = key

    def setup(self, worker: Worker) -> None:
        """Start the thread."""
        self._gauge = Gauge(worker)
        self._beacon = Beacon(
            self._gauge, worker.address, self.host, self.port, self.key, HEARTBEAT_S
        )
        self._beacon.start()

    def teardown(self, worker: Worker) -> None:
        """End the thread."""
        logger.debug("no more telemetry of %s", worker.address)
        self._beacon.stop()

    def transition(self, key: Hashable, start: str, finish: str, **kwargs: Any) -> None:
        """Take note of tasks that begin and end."""
        self._gauge.task_changed(key, start, finish)


class _Listener(threading.Thread):
    """Takes heartbeats and keeps them as rows of telemetry."""

    def __init__(self) -> None:
        super().__init__(name="dml-recording", daemon=True)
        self.key = secrets.token_bytes(16)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.2)
        self.port: int = self._socket.getsockname()[1]
        self._detectors: dict[int, PhiAccrual] = {}
        self._ended = threading.Event()
        self.rows: list[tuple[Any, ...]] = []

    def run(self) -> None:
        while not self._ended.is_set():
            try:
                datagram = self._socket.recv(_DATAGRAM_BYTES)
                worker, _, features = unpack(self.key, datagram)
            except (TimeoutError, DatagramError):
                continue
            now_s = time.time()
            detector = self._detectors.setdefault(
                worker, PhiAccrual(pause_s=1.5, interval_s=HEARTBEAT_S)
            )
            detector.heard(now_s)
            jitter = detector.jitter_s / HEARTBEAT_S
            self.rows.append((now_s, worker, *unpacked(features), jitter))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self.join()
        self._socket.close()


@dataclass(slots=True)
class _Episode:
    """What a worker is going through."""

    name: str
    futures: list[Any]
    ends_s: float
    kill_s: float | None
    is_killed: bool = False

    def is_over(self, now_s: float) -> bool:
        if self.futures[0].done():  # the others are what it leaves on the worker
            return True
        return self.name not in FATAL and now_s > self.ends_s + PATIENCE_S

    def end(self) -> None:
        for future in self.futures:
            future.cancel()


class _Director:
    """Draws the episodes of one run."""

    def __init__(self, client: Client, limit_bytes: int, rng: random.Random) -> None:
        self._client = client
        self._limit_bytes = limit_bytes
        self._rng = rng
        self._fatal_share = 0.0 if rng.random() < QUIET_SHARE else FATAL_SHARE

    def begin(self, worker: str, now_s: float) -> _Episode:
        """Put a worker into its next episode."""
        seconds = math.exp(self._rng.uniform(*map(math.log, EPISODE_S)))
        draw = self._rng.random()
        if draw < self._fatal_share:
            return self._begin_one(FATAL, worker, now_s, seconds, None)
        if draw < self._fatal_share + SPILL_SHARE:
            n_blocks = self._rng.randint(8, 25)
            blocks = [self._submit(block, worker, seconds) for _ in range(n_blocks)]
            pause = self._submit(idle, worker, seconds)  # after them, as it was submitted later
            return _Episode("spill", [pause, *blocks], now_s + seconds, None)
        kill_s = None
        if self._fatal_share and self._rng.random() < KILL_SHARE:
            kill_s = now_s + self._rng.uniform(1.0, seconds)
        return self._begin_one(HARMLESS, worker, now_s, seconds, kill_s)

    def _begin_one(
        self, pool: dict[str, Any], worker: str, now_s: float, seconds: float, kill_s: float | None
    ) -> _Episode:
        shares = [share for _, share in pool.values()]
        name = self._rng.choices(list(pool), shares)[0]
        future = self._submit(pool[name][0], worker, seconds)
        return _Episode(name, [future], now_s + seconds, kill_s)

    def _submit(self, task: Any, worker: str, seconds: float) -> Any:
        case = Circumstance(self._limit_bytes, seconds, self._rng.getrandbits(31))
        return self._client.submit(task, case, workers=[worker], pure=False, retries=0)


def record(seconds: float, seed: int, n_workers: int = 3) -> Records:
    """Record one run, on a cluster of its own.

    Parameters
    ----------
    seconds : float
        How long.
    seed : int
        Of what happens; not of how long the machine takes for it.
    n_workers : int
        Processes, of one thread each.

    Returns
    -------
    Records
        Kinds of loss are the names of the episodes that the workers did not survive, and "kill".
    """
    rng = random.Random(seed)
    limit_bytes = rng.choice(LIMITS_BYTES)
    losses: list[tuple[float, int, str]] = []
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        _Listener() as listener,
        LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            env=blas_environment(),
            memory_limit=limit_bytes,
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.register_plugin(TelemetryPlugin("127.0.0.1", listener.port, listener.key))
        director = _Director(client, limit_bytes, rng)
        episodes: dict[str, _Episode] = {}
        pids: dict[str, int] = {}
        lost: set[str] = set()
        ends_s = time.time() + seconds
        while time.time() < ends_s:
            time.sleep(_LOOK_S)
            now_s = time.time()
            for worker, pid in list(pids.items()):
                if not _is_alive(pid):
                    episode = episodes.pop(worker)
                    losses.append(
                        (now_s, worker_id(worker), "kill" if episode.is_killed else episode.name)
                    )
                    episode.end()
                    lost.add(worker)
                    del pids[worker]
                    continue
                episode = episodes[worker]
                if episode.kill_s is not None and now_s >= episode.kill_s:
                    episode.kill_s, episode.is_killed = None, True
                    os.kill(pid, signal.SIGKILL)
                elif episode.is_over(now_s):
                    episode.end()
                    episodes[worker] = director.begin(worker, now_s)
            present = client.scheduler_info(n_workers=-1)["workers"]
            for nanny in cluster.workers.values():
                worker = nanny.worker_address
                if worker in present and worker not in pids and worker not in lost and nanny.pid:
                    pids[worker] = nanny.pid
                    episodes[worker] = director.begin(worker, now_s)
        for episode in episodes.values():
            episode.end()
    return Records.of(listener.rows, losses, run=f"seed {seed}")


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def collect(client: Client, seconds: float) -> Records:
    """Record a cluster that others work on; it is watched meanwhile as by a fit with defaults.

    Parameters
    ----------
    client : distributed.Client
    seconds : float
        How long.

    Returns
    -------
    Records
        The kinds are "lost", for whatever reason, and "left". A worker that is drained counts as
        left: nobody knows whether it would have been lost.

    Raises
    ------
    ClusterError
        If the scheduler takes no plugin.
    """
    run = f"records-{secrets.token_hex(4)}"
    with Monitor(client, FaultPolicy(), run) as monitor:
        monitor.record(on=True)
        threading.Event().wait(seconds)
        columns = monitor.records()
        events = [notice.event for notice in monitor.drain_events()]
        monitor.record(on=False)
    frame = pd.DataFrame(
        [(event.time_s, event.kind, event.worker) for event in events],
        columns=["time_s", "kind", "worker"],
    )
    return Records.of_events(columns, frame, run)


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--runs", type=click.IntRange(1), default=40, show_default=True)
@click.option("--seconds", type=float, default=180.0, show_default=True, help="Of each run.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the first run.")
@click.option("--scheduler", help="Address of a cluster to record, instead of ones for chaos.")
def main(folder: Path, runs: int, seconds: float, seed: int, scheduler: str | None) -> None:
    """Write records of workers to FOLDER, a file a run."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(seed, seed + runs):
        try:
            if scheduler is None:
                records = record(seconds, number)
            else:
                with Client(scheduler, set_as_default=False) as client:
                    records = collect(client, seconds)
        except TimeoutError as error:
            # On a machine that is busier than it can bear a cluster may not open or close in time.
            click.echo(f"run {number} gave up: {error!r}", err=True)
            continue
        path = folder / f"{number:05d}.csv.gz"
        records.write(path)
        click.echo(f"{path}: {len(records.telemetry)} rows, {len(records.losses)} losses", err=True)


if __name__ == "__main__":
    main()
