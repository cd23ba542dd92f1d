"""Synchronous, bounded staleness, asynchronous: who may go on, and what still counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_dml.exchange.consistency import SYNC, Consistency, VectorClock

BOUNDED = Consistency("bounded", 2)
ASYNC = Consistency("async")
CLOCKS = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 9)).map(VectorClock)


def test_in_step_nothing_stale_counts():
    assert SYNC.admits(0)
    assert not SYNC.admits(1)
    assert not ASYNC.admits(-1)


def test_a_bound_admits_up_to_it():
    assert [BOUNDED.admits(delay) for delay in range(4)] == [True, True, True, False]
    assert ASYNC.admits(10**6)


def test_steps_shrink_with_the_delay():
    assert [BOUNDED.step_scale(delay) for delay in range(4)] == [1.0, 1.0, 0.5, 0.0]
    assert ASYNC.step_scale(8) == 0.125


@pytest.mark.parametrize(("kind", "staleness"), [("bounded", 0), ("sync", 1), ("async", 3)])
def test_a_bound_goes_with_bounded_only(kind, staleness):
    with pytest.raises(ValueError, match=f"kind='{kind}', staleness={staleness}"):
        Consistency(kind, staleness)


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match=r"'eventual'.*must be one of sync, bounded, async"):
        Consistency("eventual")


@given(CLOCKS, st.lists(st.sampled_from("abcd"), max_size=30), st.integers(1, 3))
def test_workers_are_never_further_apart_than_the_bound_and_one(clock, order, bound):
    consistency = Consistency("bounded", bound)
    clock = VectorClock(dict.fromkeys(clock.steps, 0))
    for worker in order:
        if worker in clock.steps and clock.may_go_on(worker, consistency):
            clock = clock.ticked(worker)
    steps = clock.steps.values()
    assert not steps or max(steps) - min(steps) <= bound + 1


@given(CLOCKS)
def test_somebody_may_always_go_on(clock):
    assert not clock.steps or any(clock.may_go_on(worker, SYNC) for worker in clock.steps)
    assert all(clock.may_go_on(worker, ASYNC) for worker in clock.steps)


def test_nobody_waits_for_one_that_left():
    clock = VectorClock({"slow": 0, "fast": 3})
    assert not clock.may_go_on("fast", BOUNDED)
    assert clock.without("slow").may_go_on("fast", BOUNDED)


def test_one_that_joins_starts_with_the_slowest():
    assert VectorClock({"a": 4, "b": 6}).ticked("new").steps["new"] == 5


@given(CLOCKS, CLOCKS)
def test_what_two_know_together(one, other):
    both = one.merged(other)
    assert both == other.merged(one)
    assert one.precedes(both)
    assert other.precedes(both)
    assert both.merged(one) == both


@given(CLOCKS)
def test_clocks_are_plain_data(clock):
    arrays = clock.as_arrays()
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    assert VectorClock.from_arrays(arrays) == clock
