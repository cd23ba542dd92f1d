"""A worker's share of rounds by call: which blocks it does for whom, and how.

A run tells each worker once, by its standing order, what its shards are; from then on a round is
one call. The blocks are those that tasks have put into the worker's memory, the work is done by
the threads that do its tasks, and what it does for whom ends with the run.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Hashable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from distributed import Status, Worker
from distributed.protocol.pickle import dumps, loads

from dask_dml.data.source import Rows, rows_of
from dask_dml.objective import TreeSum
from dask_dml.runtime.relay import Answer, Call
from dask_dml.runtime.shard import EncodedBlock, ShardResult, run_shard

logger = logging.getLogger(__name__)


class BlockKeys(NamedTuple):
    """Where a block is in a worker's memory.

    Attributes
    ----------
    X, target : hashable
        Keys of the chunk of X and of the encoded target.
    rows : Rows
        Those of the chunk that are the block.
    """

    X: Hashable
    target: Hashable
    rows: Rows


@dataclass(frozen=True, slots=True)
class ResidentShard:
    """A shard that stays with its worker.

    Attributes
    ----------
    number : int
        Of the shard, in the run.
    blocks : tuple of int
    keys : tuple of BlockKeys
        Of each block.
    """

    number: int
    blocks: tuple[int, ...]
    keys: tuple[BlockKeys, ...]


class Resident:
    """Does a worker's share of rounds by call; on its event loop and its threads.

    Parameters
    ----------
    worker : distributed.Worker
    changed : callable
        Told of each shard that begins and ends, as of a task: key, state before and after.
    """

    def __init__(self, worker: Worker, changed: Callable[[Hashable, str, str], None]) -> None:
        self._worker = worker
        self._changed = changed
        self._orders: dict[str, tuple[int, Sequence[ResidentShard]]] = {}
        self._serial = itertools.count()
        self._turn = asyncio.Semaphore(worker.state.nthreads)

    def take_order(self, run: str, number: int, shards: bytes) -> bool:
        """Do these shards whenever the run calls, in place of those of its last order."""
        self._orders[run] = number, loads(shards)
        return True

    def dismiss(self, run: str) -> bool:
        """Do nothing more for a run; what has begun is finished, and goes nowhere."""
        return self._orders.pop(run, None) is not None

    async def do(self, call: Call) -> Answer:
        """Do this worker's share of a call.

        Blocks that are not in memory, and what is not done in time, are left: somebody else does
        them.
        """
        me = self._worker.address
        number, shards = self._orders.get(call.run, (None, ()))
        if number != call.order:
            return Answer(b"", [], [(me, f"knows no order {call.order} of run {call.run}")])
        if self._worker.status != Status.running:
            return Answer(b"", [], [(me, f"is {self._worker.status.name}")])
        work = loads(call.work)
        tasks = [asyncio.create_task(self._shard(call, shard, work)) for shard in shards]
        _, late = await asyncio.wait(tasks, timeout=call.limit_s)
        for task in late:
            task.cancel()
        total: TreeSum[Any] = TreeSum(call.n_blocks)
        done: list[tuple[str, int, float, str]] = []
        undone = [(me, f"took more than {call.limit_s:.2f} s")] if late else []
        for shard, task in zip(shards, tasks, strict=True):
            if task in late:
                continue
            if (error := task.exception()) is not None:
                undone.append((me, repr(error)))
                continue
            result = task.result()
            total.update(result.nodes)
            done.append((me, shard.number, result.busy_s, result.blas))
        return Answer(dumps(total.nodes) if done else b"", done, undone)

    async def _shard(self, call: Call, shard: ResidentShard, work: Any) -> ShardResult[Any]:
        # No more at a time than there are threads: blocks that are on disk come as they are needed.
        async with self._turn:
            if call.run not in self._orders:
                raise KeyError(f"run {call.run} is over")
            data: MutableMapping[Any, Any] = self._worker.data
            blocks = [
                EncodedBlock(rows_of(data[X], rows), *data[target])
                for X, target, rows in shard.keys
            ]
            key = ("dml-call", call.run, shard.number, next(self._serial))
            self._changed(key, "ready", "executing")
            try:
                return await asyncio.get_running_loop().run_in_executor(
                    self._worker.executors["default"],
                    run_shard,
                    call.n_blocks,
                    shard.blocks,
                    work,
                    blocks,
                    self._worker.address,
                )
            finally:
                self._changed(key, "executing", "memory")
