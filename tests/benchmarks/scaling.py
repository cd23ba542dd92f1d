"""What a round costs the scheduler of a large fleet: by tasks, by call, and down a tree.

    python tests/benchmarks/scaling.py [--workers N ...] [--stand-ins N ...] [--rounds N]

With ``--workers`` the scheduler with our plugin, the client with our executor, and the workers with
our plugin are real, each kind in a process of its own; all workers are in one, without heartbeats,
and each holds a block that is too small to take any time. With ``--stand-ins`` the scheduler's part
of a call and the relays' are real, and workers are servers that have their sums ready, so that
there can be a thousand of them. Times are of the processor, so that what else runs on the machine
does not count, and neither does it that a fleet shares one process.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import dask
import dask.array as da
import numpy as np
from distributed import Client, Scheduler, Worker
from distributed.core import ConnectionPool, Server
from distributed.protocol.pickle import dumps
from figures import say

import dask_dml as dml
from dask_dml.data.source import dask_source
from dask_dml.faults.membership import Membership
from dask_dml.linear_model import LogisticRegression
from dask_dml.objective import LogisticLoss, Request, Statistics
from dask_dml.objective.survey import TargetEncoder
from dask_dml.runtime import ClusterExecutor, dispatch, worker_plugin
from dask_dml.runtime.dispatch import Dispatch
from dask_dml.runtime.relay import FAN_OUT, Answer, Call, joined, passed_on
from dask_dml.runtime.scheduler_plugin import NAME
from dask_dml.runtime.shard import RoundWork

N_COLUMNS = 28
N_ROWS = 8
IDLE_S = 10.0
# So many rounds by call for one by tasks: each takes less.
CALLS = 5
# Nobody is late, where all share a process.
PATIENT = dml.FaultPolicy(speculation_factor=1e6)
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
    """Processor time of a round at each place; that of all workers together, nan if unknown."""

    how: str
    n_workers: int
    scheduler_s: float
    client_s: float
    workers_s: float

    def row(self) -> str:
        a_worker_ms = 1e3 * self.workers_s / self.n_workers
        a_worker = "" if math.isnan(a_worker_ms) else f"{a_worker_ms:.2f} ms"
        return (
            f"| {self.n_workers:,} | {self.how} | {1e3 * self.scheduler_s:.1f} ms "
            f"| {1e3 * self.client_s:.1f} ms | {a_worker} "
            f"| {1.0 / max(self.scheduler_s, 1e-6):,.0f} |"
        )


def hush() -> None:
    logging.getLogger("distributed").setLevel(logging.WARNING)


def run_scheduler(address: Any) -> None:
    """A scheduler, until its process is ended."""

    async def serve() -> None:
        async with Scheduler(host="127.0.0.1", port=0, dashboard_address=":0") as scheduler:
            address.put(scheduler.address)
            await scheduler.finished()

    hush()
    with (
        dask.config.set(QUIET),
        # Nobody is missed, for there are no heartbeats; what the watching takes is in fleet.py.
        mock.patch.object(Membership, "tick", return_value=()),
        mock.patch.object(dispatch, "_ORDER_S", 600.0),
    ):
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

    hush()
    with (
        dask.config.set(QUIET),
        mock.patch.object(worker_plugin.Beacon, "start"),
        mock.patch.object(worker_plugin.Beacon, "join"),
        mock.patch.object(worker_plugin.NoticeWatch, "start"),
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
    """Processor times of scheduler, client and workers, beyond what they take when nothing is done.

    A fleet is never idle: its workers tell Dask's scheduler that they are there.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._worker = next(iter(client.scheduler_info(n_workers=1)["workers"]))
        before = self._read()
        time.sleep(IDLE_S)
        self._idle = (self._read() - before) / IDLE_S

    def _read(self) -> np.ndarray:
        scheduler_s = self._client.run_on_scheduler(time.process_time)
        (workers_s,) = self._client.run(time.process_time, workers=[self._worker]).values()
        return np.array([scheduler_s, time.process_time(), workers_s])

    def of(self, function: Callable[[], object], times: int) -> list[float]:
        """What a call of a function takes, on the mean of several."""
        started_s, before = time.perf_counter(), self._read()
        for _ in range(times):
            function()
        spent = self._read() - before - self._idle * (time.perf_counter() - started_s)
        return [float(s) for s in np.maximum(spent, 0.0) / times]


def wait_for_plugins(client: Client, n_workers: int) -> None:
    async def n_equipped(dask_scheduler: Any) -> int:
        crew = dask_scheduler.plugins[NAME]._crew
        await asyncio.gather(*crew._adding)
        return len(crew.equipped)

    n = client.run_on_scheduler(n_equipped)
    assert n == n_workers, f"{n} of {n_workers} workers have their plugin"


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
        with mock.patch.object(ClusterExecutor, "_call", return_value=None):
            executor.evaluate(request)  # after which all are at rest
        clocks = Clocks(client)

        def cost(how: str, times: int) -> Cost:
            evaluate = partial(executor.evaluate, request)
            evaluate()
            spent = clocks.of(evaluate, times)
            say(f"{how}: {spent}")
            return Cost(how, n_workers, *spent)

        with mock.patch.object(ClusterExecutor, "_call", return_value=None):
            costs.append(cost("a task each", n_rounds))
        # What a fleet in one process takes is no measure of how long a round takes one that is not.
        with (
            mock.patch("dask_dml.runtime.calls.LONGEST_S", 3600.0),
            mock.patch("dask_dml.runtime.calls._MARGIN_S", 600.0),
        ):
            for fan_out in dict.fromkeys((n_workers, 32, FAN_OUT)):
                with mock.patch("dask_dml.runtime.calls.Call", partial(Call, fan_out=fan_out)):
                    how = "all called by the scheduler"
                    if fan_out < n_workers:
                        how = f"called down a tree, {fan_out} by each"
                    costs.append(cost(how, CALLS * n_rounds))
        executor.close()
    return costs


def run_stand_ins(addresses: Any, n_workers: int) -> None:
    """Servers that take calls as workers do, and have their sums ready."""
    sums = Statistics(N_ROWS, 1.0, np.ones((1, N_COLUMNS + 1)), None)

    async def start(number: int) -> Server:
        async def call(call: dict[str, Any]) -> dict[str, Any]:
            called = Call.of(call)
            own = Answer(dumps([((0, number), sums)]), [(server.address, number, 0.0, "")], [])
            below = await passed_on(server.rpc, called)
            return (joined([own, *below], called.n_blocks) if below else own).message

        server = Server({"dml_call": call})
        await server.listen("tcp://127.0.0.1:0")
        return server

    async def serve() -> None:
        servers = [await start(number) for number in range(n_workers)]
        addresses.put([server.address for server in servers])
        await asyncio.Event().wait()

    hush()
    with dask.config.set(QUIET):
        asyncio.run(serve())


async def call_costs(workers: list[str], n_rounds: int) -> list[Cost]:
    """Costs of calls to stand-ins, at the scheduler and where their answers are added up."""
    n_workers = len(workers)
    pool = await ConnectionPool(limit=2 * n_workers, deserialize=False)
    scheduler: Any = SimpleNamespace(rpc=pool, workers=set(workers))
    crew: Any = SimpleNamespace(equipped=set(workers), ask=mock.AsyncMock(return_value=True))
    parts = Dispatch(scheduler, crew)
    refused = await parts.order("run", 1, dict.fromkeys(workers, b""))
    assert not refused, refused
    work = dumps(RoundWork(Request(LogisticLoss(), np.zeros((1, 29)), np.zeros(28), 1)))
    costs = []
    for fan_out in dict.fromkeys((n_workers, 32, FAN_OUT)):
        call = Call("run", 1, work, n_workers, 600.0, fan_out=fan_out)
        await parts.call(call)
        scheduler_s = client_s = 0.0
        for _ in range(n_rounds):
            start_s = time.process_time()
            answers = await parts.call(call)
            middle_s = time.process_time()
            answer = joined((Answer(**message) for message in answers), n_workers)
            client_s += time.process_time() - middle_s
            scheduler_s += middle_s - start_s
            assert len(answer.done) == n_workers, answer.undone
        how = "all called by the scheduler"
        if fan_out < n_workers:
            how = f"called down a tree, {fan_out} by each"
        costs.append(Cost(how, n_workers, scheduler_s / n_rounds, client_s / n_rounds, math.nan))
        say(costs[-1].row())
    await pool.close()
    return costs


def costs_with_stand_ins(n_workers: int, n_rounds: int) -> list[Cost]:
    """Costs of calls in a fleet of stand-ins."""
    spawn = multiprocessing.get_context("spawn")
    addresses = spawn.Queue()
    fleet = spawn.Process(target=run_stand_ins, args=(addresses, n_workers), daemon=True)
    fleet.start()
    try:
        with dask.config.set(QUIET):
            return asyncio.run(call_costs(addresses.get(timeout=300), n_rounds))
    finally:
        fleet.terminate()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--workers", type=int, nargs="*", default=[64])
    parser.add_argument("--stand-ins", type=int, nargs="*", default=[64, 250, 1_000])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rows = [cost for n in arguments.workers for cost in costs_of(n, arguments.rounds)]
    rows += [c for n in arguments.stand_ins for c in costs_with_stand_ins(n, arguments.rounds)]
    print("| workers | round | scheduler | client | a worker | rounds a second, at most |")
    print("|---|---|---|---|---|---|")
    print("\n".join(cost.row() for cost in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
