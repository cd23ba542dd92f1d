"""What is made of how fast workers were."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_dml.runtime.speeds import UNEVEN_S, Speeds

NBYTES = [100.0] * 8
THREADS = {"a": 1, "b": 1}
EVEN = {block: "ab"[block % 2] for block in range(8)}
UNKNOWN = {"a": 1.0, "b": 1.0}


def speeds_of(overtaken=(), **measured):
    speeds = Speeds(NBYTES)
    speeds.learn(measured, overtaken, THREADS)
    return speeds


def test_while_nothing_is_known_all_are_alike():
    speeds = Speeds(NBYTES)
    assert speeds.capacity(THREADS, EVEN) == UNKNOWN
    assert speeds.capacity({"a": 1, "b": 4}, EVEN) == {"a": 1.0, "b": 4.0}
    assert speeds.shards(THREADS, EVEN) == {"a": 1, "b": 1}
    assert not speeds.is_uneven(THREADS, EVEN)


def test_capacity_is_measured_against_the_typical_worker():
    capacity = speeds_of(a=10.0, b=30.0).capacity(THREADS, EVEN)
    assert capacity == {"a": 0.5, "b": 1.5}


def test_in_short_rounds_nobody_is_twice_as_slow():
    capacity = speeds_of(a=1e4, b=1e7).capacity(THREADS, EVEN)
    assert capacity["a"] == 0.5
    assert capacity["b"] <= 2.0


def test_a_newcomer_counts_as_typical():
    speeds = speeds_of(a=10.0, b=30.0)
    assert speeds.capacity({**THREADS, "c": 2}, EVEN)["c"] == 2.0


def test_long_shards_are_cut():
    shards = speeds_of(a=400.0, b=100.0).shards(THREADS, EVEN)
    assert shards == {"a": 2, "b": 4}


def test_a_round_is_uneven_when_one_works_much_longer():
    speeds = speeds_of(a=100.0, b=10.0)
    assert speeds.is_uneven(THREADS, EVEN)
    by_speed = {block: "b" if block == 0 else "a" for block in range(8)}
    assert not speeds.is_uneven(THREADS, by_speed)


def test_a_short_round_is_never_uneven():
    load = 4 * NBYTES[0]
    assert not speeds_of(a=1e6, b=1.01 * load / UNEVEN_S).is_uneven(THREADS, EVEN)
    assert speeds_of(a=1e6, b=0.99 * load / UNEVEN_S).is_uneven(THREADS, EVEN)


def test_a_round_is_uneven_when_an_able_worker_has_nothing():
    alone = dict.fromkeys(range(8), "a")
    assert speeds_of(a=1e6, b=1e6).is_uneven(THREADS, alone)
    assert speeds_of(a=1e6).is_uneven(THREADS, alone)
    # One that is slow is left out on purpose.
    assert not speeds_of(a=1e6, b=1e5).is_uneven(THREADS, alone)
    # And with fewer blocks than workers somebody always is.
    many = dict.fromkeys([f"w{i}" for i in range(9)], 1)
    assert not Speeds(NBYTES).is_uneven(many, EVEN)


def test_moving_is_worth_more_the_slower_the_work_and_the_longer_the_fit():
    assert Speeds(NBYTES).worth(0, 1e8) == 2.0
    assert Speeds(NBYTES, n_rounds=1).worth(0, 1e8) == 0.1
    speeds = speeds_of(a=100.0, b=300.0)
    assert speeds.worth(0, 50.0) == speeds.worth(20, 50.0) == 5.0
    assert speeds.worth(100, 50.0) == 25.0


def test_the_first_round_of_a_newcomer_may_be_slow():
    speeds = speeds_of(a=1000.0, b=1000.0)
    threads = {**THREADS, "c": 1}
    placed = {block: "abc"[block % 3] for block in range(8)}
    late = {"a": 1000.0, "b": 1000.0, "c": 1.0}
    speeds.learn(late, [("c", 0.5)], threads)
    assert speeds.capacity(threads, placed)["c"] == 1.0
    speeds.learn(late, [], threads)
    assert speeds.capacity(threads, placed)["c"] == 1 / 20


def test_the_first_task_of_a_process_may_be_late():
    speeds = speeds_of([("b", 1.0)], a=1e4)
    assert speeds.capacity(THREADS, EVEN) == UNKNOWN
    speeds.learn({"a": 10.0}, [("b", 1.0)], THREADS)
    assert speeds.capacity(THREADS, EVEN)["b"] < 1.0


def test_who_was_given_nothing_is_thought_better_of_up_to_the_typical():
    speeds = speeds_of(a=10.0, b=1.0)
    shares = []
    for _ in range(20):
        speeds.learn({"a": 10.0}, [], THREADS)
        capacity = speeds.capacity(THREADS, EVEN)
        shares.append(capacity["b"] / capacity["a"])
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(0.12)
    assert 0.5 < shares[-1] <= 1.0


def test_who_is_gone_is_no_measure_of_others():
    speeds = speeds_of(a=10.0, b=1.0)
    speeds.learn({}, [], ["c"])
    assert speeds.capacity({"c": 1}, EVEN) == {"c": 1.0}


speed = st.floats(min_value=1e-3, max_value=1e9)


@given(st.lists(st.fixed_dictionaries({"a": speed, "b": speed}), min_size=1, max_size=6))
def test_capacity_is_positive_and_bounded(rounds):
    speeds = Speeds(NBYTES)
    for measured in rounds:
        speeds.learn(measured, [], THREADS)
    capacity = speeds.capacity(THREADS, EVEN)
    assert all(1 / 20 <= share <= 20 for share in capacity.values())
