"""Calls that go down a tree of workers, and sums that come up it, without a cluster."""

from __future__ import annotations

import asyncio
from functools import partial
from types import SimpleNamespace

import pytest
from distributed.protocol.pickle import dumps, loads
from hypothesis import given
from hypothesis import strategies as st

from dask_dml.objective import TreeSum
from dask_dml.runtime.relay import STEP_S, Answer, Call, asked, branches, joined, n_steps, passed_on


class Fleet:
    """Workers with a block each, some of which are dead."""

    def __init__(self, values, dead=()):
        self.values = values
        self.dead = set(dead)
        self.asked = []

    def __call__(self, worker):
        return SimpleNamespace(dml_call=partial(self.take, worker))

    async def take(self, worker, call):
        self.asked.append(worker)
        if worker in self.dead:
            raise OSError(f"{worker} is gone")
        called = Call.of(call)
        block = int(worker)
        own = Answer(dumps([((0, block), self.values[block])]), [(worker, block, 0.0, "")], [])
        below = await passed_on(self, called)
        return joined([own, *below], called.n_blocks).message

    def answer(self, fan_out):
        n_blocks = len(self.values)
        below = tuple(str(block) for block in range(n_blocks))
        call = Call("run", 1, b"", n_blocks, 1.0, below, fan_out)
        return joined(asyncio.run(passed_on(self, call)), n_blocks)


def below_of(worker, workers, fan_out):
    """Everybody whom a worker is to call, directly or not; None if it is not among them."""
    for head, below in branches(workers, fan_out):
        if head == worker:
            return set(below)
        if worker in below:
            return below_of(worker, below, fan_out)
    return None


floats = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


@given(floats, st.integers(1, 9))
def test_the_sum_has_the_same_bits_for_every_tree(values, fan_out):
    expected = TreeSum(len(values))
    expected.update(((0, block), value) for block, value in enumerate(values))
    fleet = Fleet(values)
    answer = fleet.answer(fan_out)
    assert loads(answer.nodes) == expected.nodes
    assert sorted(fleet.asked, key=int) == [str(block) for block in range(len(values))]
    assert sorted(block for _, block, _, _ in answer.done) == list(range(len(values)))
    assert list(answer.undone) == []


@given(floats, st.integers(1, 9), st.data())
def test_who_is_dead_is_missing_with_all_below_and_nobody_else(values, fan_out, data):
    workers = [str(block) for block in range(len(values))]
    dead = data.draw(st.sets(st.sampled_from(workers)))
    answer = Fleet(values, dead).answer(fan_out)
    lost = dead.union(*(below_of(worker, workers, fan_out) for worker in dead))
    done = [str(block) for _, block, _, _ in answer.done]
    assert sorted(done, key=int) == [worker for worker in workers if worker not in lost]
    assert {worker for worker, _ in answer.undone} <= dead
    expected = TreeSum(len(values))
    expected.update(((0, int(worker)), values[int(worker)]) for worker in done)
    assert (loads(answer.nodes) if answer.nodes else []) == expected.nodes


@pytest.mark.parametrize(("n_workers", "steps"), [(0, 0), (1, 1), (8, 1), (9, 2), (72, 2), (73, 3)])
def test_a_tree_is_as_deep_as_it_need_be(n_workers, steps):
    assert n_steps(n_workers, 8) == steps


def test_one_that_does_not_answer_is_waited_for_no_longer_than_its_limit():
    async def never(**message):
        await asyncio.Event().wait()

    def pool(worker):
        return SimpleNamespace(dml_call=never)

    call = Call("run", 1, b"", 2, -STEP_S, ("0", "1"))
    answers = asyncio.run(passed_on(pool, call))
    assert [answer.done for answer in answers] == [[], []]
    assert all("TimeoutError" in reason for answer in answers for _, reason in answer.undone)


def test_what_the_other_side_raises_is_an_answer():
    async def broken(**message):
        raise ZeroDivisionError(message["what"])

    answer = asyncio.run(asked(lambda _: SimpleNamespace(op=broken), "0", "op", 1.0, what="this"))
    assert isinstance(answer, ZeroDivisionError)


def test_a_worker_that_knows_no_calls_is_said_so():
    async def unknown(**message):
        return None

    call = Call("run", 1, b"", 1, 1.0, ("0",))
    (answer,) = asyncio.run(passed_on(lambda _: SimpleNamespace(dml_call=unknown), call))
    assert answer.undone == [("0", "takes no calls")]
