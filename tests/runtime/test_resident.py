"""A worker's share of rounds by call, with a stand-in for the worker."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from distributed import Status
from distributed.protocol.pickle import dumps, loads

from dask_dml.data.source import WHOLE
from dask_dml.objective import LogisticLoss, Request, TreeSum, block_statistics
from dask_dml.runtime.relay import Call
from dask_dml.runtime.resident import BlockKeys, Resident, ResidentShard
from dask_dml.runtime.shard import RoundWork

N_BLOCKS = 4
REQUEST = Request(LogisticLoss(), np.full((1, 4), 0.25), np.zeros(3), 2)


@dataclass(frozen=True)
class Stuck:
    """Work that goes on until it is released."""

    released = threading.Event()

    def begin(self):
        return self

    def keep(self, numbers, nodes):
        return False

    def __call__(self, number, block):
        self.released.wait()
        return 1.0


@pytest.fixture
def worker():
    rng = np.random.default_rng(0)
    data = {}
    for block in range(N_BLOCKS):
        data["X", block] = rng.normal(size=(10, 3))
        data["target", block] = rng.integers(0, 2, size=10), None
    with ThreadPoolExecutor(2) as pool:
        yield SimpleNamespace(
            address="tcp://here",
            status=Status.running,
            data=data,
            executors={"default": pool},
            state=SimpleNamespace(nthreads=2),
        )


def shard(number, *blocks):
    keys = tuple(BlockKeys(("X", b), ("target", b), WHOLE) for b in blocks)
    return ResidentShard(number, blocks, keys)


def call(order=1, work=None, limit_s=60.0, run="run"):
    return Call(run, order, dumps(work or RoundWork(REQUEST)), N_BLOCKS, limit_s)


def expected(data, *blocks):
    total = TreeSum(N_BLOCKS)
    for block in blocks:
        total.add((0, block), block_statistics(REQUEST, data["X", block], *data["target", block]))
    return total.nodes


THREE_BLOCKS = (1, [shard(0, 0, 1), shard(1, 2)])


def answered(worker, *calls, orders=(THREE_BLOCKS,)):
    """The answers to calls, one after the other, after these orders."""

    async def answers():
        here = Resident(worker, lambda *change: None)
        for number, shards in orders:
            assert here.take_order("run", number, dumps(shards))
        return [await here.do(one) for one in calls]

    return asyncio.run(answers())


def assert_nodes(answer, nodes):
    found = loads(answer.nodes)
    assert [node for node, _ in found] == [node for node, _ in nodes]
    for (_, one), (_, other) in zip(found, nodes, strict=True):
        assert one.loss == other.loss
        np.testing.assert_array_equal(one.gradient, other.gradient)
        np.testing.assert_array_equal(one.gram, other.gram)


def test_a_call_does_the_shards_of_the_order(worker):
    (answer,) = answered(worker, call())
    assert_nodes(answer, expected(worker.data, 0, 1, 2))
    assert [(at, number) for at, number, _, _ in answer.done] == [
        ("tcp://here", 0),
        ("tcp://here", 1),
    ]
    assert answer.undone == []


def test_the_last_order_holds(worker):
    orders = (1, [shard(0, 0)]), (2, [shard(0, 3)])
    stale, answer = answered(worker, call(1), call(2), orders=orders)
    assert stale.done == []
    assert "no order 1" in stale.undone[0][1]
    assert_nodes(answer, expected(worker.data, 3))


def test_a_shard_whose_blocks_are_not_here_is_left(worker):
    del worker.data["target", 2]
    (answer,) = answered(worker, call())
    assert_nodes(answer, expected(worker.data, 0, 1))
    assert [number for _, number, _, _ in answer.done] == [0]
    assert "('target', 2)" in answer.undone[0][1]


def test_another_run_is_unknown(worker):
    (answer,) = answered(worker, call(run="other"))
    assert answer.done == []
    assert "run other" in answer.undone[0][1]


def test_a_worker_that_is_paused_does_nothing(worker):
    worker.status = Status.paused
    (answer,) = answered(worker, call())
    assert answer.done == []
    assert answer.undone == [("tcp://here", "is paused")]


def test_what_takes_too_long_is_left(worker):
    changes = []

    async def late():
        resident = Resident(worker, lambda *change: changes.append(change[1:]))
        resident.take_order("run", 1, dumps([shard(0, 0), shard(1, 1), shard(2, 2)]))
        answer = await resident.do(call(work=Stuck(), limit_s=0.01))
        Stuck.released.set()
        return answer

    answer = asyncio.run(late())
    assert answer.done == []
    assert answer.undone == [("tcp://here", "took more than 0.01 s")]
    # The third one waited for a thread, and was not begun.
    assert changes.count(("ready", "executing")) == 2
    assert changes.count(("executing", "memory")) == 2


def test_nothing_is_done_for_a_run_that_is_over(worker):
    async def dismissed():
        resident = Resident(worker, lambda *change: None)
        resident.take_order("run", 1, dumps([shard(0, 0)]))
        assert resident.dismiss("run")
        assert not resident.dismiss("run")
        return await resident.do(call())

    assert asyncio.run(dismissed()).done == []
