"""What a round costs the scheduler of a large fleet: by tasks, by call, and down a tree.

    python tests/benchmarks/scaling.py [--workers N ...] [--rounds N]

The scheduler with our plugin, the client with our executor, and the workers with our plugin are
real, each kind in a process of its own; all workers of a fleet are in one, without heartbeats, and
each holds a block that is too small to take any time. Times are of the processor, so that what else
runs on the machine does not count, and neither does it that a fleet shares one process.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import dask
import dask.array as da
import numpy as np
from distributed import Client, Scheduler, Worker
from figures import say

import dask_dml as dml
from dask_dml.data.source import dask_source
from dask_dml.linear_model import LogisticRegression
from dask_dml.objective import LogisticLoss, Request
from dask_dml.objective.survey import TargetEncoder
from dask_dml.runtime import ClusterExecutor, dispatch, worker_plugin
from dask_dml.runtime.relay import FAN_OUT, Call
from dask_dml.runtime.scheduler_plugin import NAME

N_COLUMNS = 28
N_ROWS = 8
# Nobody is missed: there are no heartbeats.
PATIENT = dml.FaultPolicy(pause_s=3600.0)
QUIET = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "1h",
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.scheduler.work-stealing": False,
    "distributed.comm.timeouts.connect": "600s",
    "dml.preemption.provider": "none",
}


@dataclass(frozen=True)
class Cost:
    """Processor time of a round, in seconds, at each place; of all workers together."""

    how: str
    n_workers: int
    scheduler_s: float
    client_s: float
    workers_s: float

    def row(self) -> str:
        return (
            f"| {self.n_workers:,} | {self.how} | {1e3 * self.scheduler_s:.1f} ms "
            f"| {1e3 * self.client_s:.1f} ms | {1e3 * self.workers_s / self.n_workers:.2f} ms "
            f"| {1.0 / self.scheduler_s:,.0f} |"
        )


def run_scheduler(address: Any) -> None:
    """A scheduler, until its process is ended."""

    async def serve() -> None:
        async with Scheduler(host="127.0.0.1", port=0, dashboard=False) as scheduler:
            address.put(scheduler.address)
            await scheduler.finished()

    with dask.config.set(QUIET), mock.patch.object(dispatch, "_ORDER_S", 600.0):
        asyncio.run(serve())


def run_workers(scheduler: str, n_workers: int, folder: str) -> None:
    """A fleet, until its process is ended."""

    async def serve() -> None:
        async def start(number: int) -> Worker:
            worker = Worker(
                scheduler, nthreads=1, name=f"{number:05d}", memory_limit=0, dashboard=False,
                local_directory=folder, host="127.0.0.1",
            )  # fmt: skip
            return await worker

        for first in range(0, n_workers, 50):
            await asyncio.gather(*map(start, range(first, min(first + 50, n_workers))))
        await asyncio.Event().wait()

    with (
        dask.config.set(QUIET),
        mock.patch.object(worker_plugin.Beacon, "start"),
        mock.patch.object(worker_plugin.Beacon, "join"),
        mock.patch.object(worker_plugin.NoticeWatch, "start"),
        mock.patch.object(worker_plugin.NoticeWatch, "join"),
    ):
        asyncio.run(serve())


@contextmanager
def fleet(n_workers: int) -> Iterator[Client]:
    """A client of a scheduler with so many workers."""
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as opened:
        folder = opened.enter_context(tempfile.TemporaryDirectory())
        address = spawn.Queue()
        scheduler = spawn.Process(target=run_scheduler, args=(address,), daemon=True)
        scheduler.start()
        opened.callback(scheduler.terminate)
        at = address.get(timeout=120)
        workers = spawn.Process(target=run_workers, args=(at, n_workers, folder), daemon=True)
        workers.start()
        opened.callback(workers.terminate)
        opened.enter_context(dask.config.set(QUIET))
        client = opened.enter_context(Client(at))
        client.wait_for_workers(n_workers, timeout=600)
        yield client


class Clocks:
    """Processor times of scheduler, client and workers."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._worker = next(iter(client.scheduler_info(n_workers=1)["workers"]))

    def read(self) -> tuple[float, float, float]:
        scheduler_s = self._client.run_on_scheduler(time.process_time)
        (workers_s,) = self._client.run(time.process_time, workers=[self._worker]).values()
        return scheduler_s, time.process_time(), workers_s


def wait_for_plugins(client: Client, n_workers: int) -> None:
    def n_equipped(dask_scheduler: Any) -> int:
        return len(dask_scheduler.plugins[NAME]._crew.equipped)

    while (n := client.run_on_scheduler(n_equipped)) < n_workers:
        say(f"{n} of {n_workers} workers have their plugin")
        time.sleep(2.0)


def costs_of(n_workers: int, n_rounds: int) -> list[Cost]:
    """Costs of rounds over a fleet with a block and a shard for each worker."""
    costs = []
    with fleet(n_workers) as client:
        say(f"{n_workers} workers")
        rng = np.random.default_rng(0)
        n_rows = N_ROWS * n_workers
        X = da.from_array(rng.normal(size=(n_rows, N_COLUMNS)), chunks=(N_ROWS, -1))
        y = da.from_array(rng.integers(0, 2, size=n_rows), chunks=N_ROWS)
        source = dask_source(X, y, None, None)
        executor = ClusterExecutor(client, source, policy=PATIENT)
        wait_for_plugins(client, n_workers)
        executor.survey(LogisticRegression._target_kind)
        executor.encode(TargetEncoder())
        request = Request(LogisticLoss(), np.zeros((1, N_COLUMNS + 1)), np.zeros(N_COLUMNS), 1)
        clocks = Clocks(client)

        def cost(how: str) -> Cost:
            executor.evaluate(request)
            before = clocks.read()
            for _ in range(n_rounds):
                executor.evaluate(request)
            spent = [(b - a) / n_rounds for a, b in zip(before, clocks.read(), strict=True)]
            say(f"{how}: {spent}")
            return Cost(how, n_workers, *spent)

        with mock.patch.object(ClusterExecutor, "_call", return_value=None):
            costs.append(cost("a task each"))
        # What a fleet in one process takes is no measure of how long a round takes one that is not.
        with (
            mock.patch("dask_dml.runtime.calls.LONGEST_S", 3600.0),
            mock.patch("dask_dml.runtime.calls._MARGIN_S", 600.0),
            mock.patch("dask_dml.runtime.calls.STRAGGLER_S", 600.0),
        ):
            for fan_out in dict.fromkeys((n_workers, 32, FAN_OUT)):
                with mock.patch("dask_dml.runtime.calls.Call", partial(Call, fan_out=fan_out)):
                    how = "all called by the scheduler"
                    if fan_out < n_workers:
                        how = f"called down a tree, {fan_out} by each"
                    costs.append(cost(how))
        executor.close()
    return costs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[64, 256, 1_000])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rows = [cost for n in arguments.workers for cost in costs_of(n, arguments.rounds)]
    print("| workers | round | scheduler | client | a worker | rounds a second, at most |")
    print("|---|---|---|---|---|---|")
    print("\n".join(cost.row() for cost in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
