"""How fast a fit recovers, and what watching costs; run by run.py."""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

from distributed import Client, LocalCluster, wait
from figures import Figure, Part
from fleet import watching_share

import dask_dml as dml
from dask_dml.datasets.synthetic import higgs_like
from dask_dml.linear_model import LogisticRegression
from dask_dml.runtime import RoundEnded

N_WORKERS = 3
REPEATS = 5
PAIRS = 9
FLEET, FLEET_S = 1_000, 20.0


def recovery_s(client: Client, data: Any, signal_number: int) -> float:
    """Seconds from a signal in mid-fit until a round that began after it is complete."""
    sent_s: list[float] = []
    ended_s: list[float] = []

    def strike(pid: int) -> None:
        sent_s.append(time.monotonic())
        os.kill(pid, signal_number)

    def listen(event: Any) -> None:
        if not isinstance(event, RoundEnded):
            return
        if sent_s:
            ended_s.append(time.monotonic())
        if event.round == 1:
            victim = sorted(client.scheduler_info(n_workers=-1)["workers"])[0]
            (pid,) = client.run(os.getpid, workers=[victim]).values()
            threading.Timer(0.05, strike, [pid]).start()

    LogisticRegression(solver="lbfgs", tol=1e-12, callbacks=[listen]).fit(*data)
    # The first round to end had begun before, and may have had all its results.
    return ended_s[1] - sent_s[0]


def bench_recovery(scale: float) -> Part:
    """SIGSTOP and SIGKILL of one of three workers in mid-fit.

    On a tenth of the rows: what is to be seen is how soon the work is done elsewhere, not how long
    it takes to make a third of the data again.
    """
    n_rows = int(400_000 * scale)
    figures = []
    for name, number, target in (
        ("SIGSTOP", signal.SIGSTOP, 5.0),
        ("SIGKILL", signal.SIGKILL, 1.5),
    ):
        times = []
        for _ in range(REPEATS):
            with (
                LocalCluster(
                    n_workers=N_WORKERS, threads_per_worker=1, dashboard_address=":0"
                ) as cluster,
                Client(cluster) as client,
            ):
                data = client.persist(higgs_like(n_rows))
                wait(data)
                LogisticRegression(max_iter=1, solver="lbfgs", tol=0.9).fit(*data)
                times.append(recovery_s(client, data, number))
        detail = (
            f"from the signal until a round begun after it is complete, {n_rows:,} x 28 persisted, "
            f"lost blocks made again; median of "
            f"{', '.join(f'{t:.2f}' for t in times)} s"
        )
        what = f"{name} of one of three workers"
        figures.append(Figure(what, statistics.median(times), "s", target, detail))
    return Part(figures)


def bench_watching(scale: float) -> Part:
    """What the watcher costs a fit without faults, in pairs with and without it."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        data = client.persist(higgs_like(int(4_000_000 * scale)))
        wait(data)

        def seconds(monitor: bool) -> float:
            runtime = dml.Runtime(faults=dml.FaultPolicy(monitor=monitor))
            model = LogisticRegression(solver="lbfgs", tol=1e-12, runtime=runtime)
            start_s = time.perf_counter()
            model.fit(*data)
            return time.perf_counter() - start_s

        seconds(True), seconds(False)
        pairs = []
        for number in range(PAIRS):
            order: tuple[bool, ...] = (True, False) if number % 2 else (False, True)
            taken = {monitor: seconds(monitor) for monitor in order}
            pairs.append((taken[True], taken[False]))
    watched, alone = zip(*pairs, strict=True)
    extra = 100.0 * (statistics.median(w / a for w, a in pairs) - 1.0)
    detail = (
        f"median of {PAIRS} pairs of fits of {statistics.median(alone):.2f} s; by the medians "
        f"{100.0 * (statistics.median(watched) / statistics.median(alone) - 1.0):.2f} %"
    )
    what = "a fit's time with the watcher, above that without"
    return Part([Figure(what, extra, "%", 2.0, detail)])


def bench_scheduler(scale: float) -> Part:
    """What the watcher costs the scheduler of a large fleet."""
    del scale
    shares, found = [], {}
    for _ in range(REPEATS):
        share, found = watching_share(FLEET, FLEET_S)
        shares.append(100.0 * (share - found["empty_loop"]))
    detail = (
        f"CPU of the plugin's process over its time, with the socket, at "
        f"{found['heartbeats_a_second']:.0f} heartbeats a second sent by another process; less "
        f"that of an event loop that wakes as often and does nothing, "
        f"{100.0 * found['empty_loop']:.2f} %; median of {', '.join(f'{s:.2f}' for s in shares)}"
    )
    name = f"the watcher's share of a core, {FLEET:,} workers"
    return Part([Figure(name, statistics.median(shares), "%", 0.5, detail)])


BENCHES: dict[str, Callable[[float], Part]] = {
    "recovery": bench_recovery,
    "watching": bench_watching,
    "scheduler": bench_scheduler,
}
