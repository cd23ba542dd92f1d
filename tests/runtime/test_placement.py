from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_dml.runtime.placement import TOLERANCE, keepable, place, shards


def busy(placed, nbytes, capacity):
    load = dict.fromkeys(capacity, 0.0)
    for block, worker in placed.items():
        load[worker] += nbytes[block]
    return {worker: load[worker] / capacity[worker] for worker in capacity}


@st.composite
def fleets(draw):
    nbytes = draw(st.lists(st.integers(1, 100), min_size=1, max_size=40))
    names = [f"w{k}" for k in range(draw(st.integers(1, 6)))]
    capacity = {name: draw(st.sampled_from([0.5, 1.0, 2.0])) for name in names}
    holders = {
        block: draw(st.sets(st.sampled_from([*names, "gone"]), max_size=3))
        for block in range(len(nbytes))
        if draw(st.booleans())
    }
    return nbytes, capacity, holders


@given(fleets())
def test_every_block_has_one_worker_and_no_single_move_would_help(fleet):
    nbytes, capacity, holders = fleet
    placed = place(nbytes, capacity, holders)
    assert sorted(placed) == list(range(len(nbytes)))
    assert set(placed.values()) <= set(capacity)
    now = busy(placed, nbytes, capacity)
    fair = sum(nbytes) / sum(capacity.values())
    busiest = max(now, key=now.get)
    if now[busiest] > TOLERANCE * fair * (1 + 1e-9):
        for block in (b for b, w in placed.items() if w == busiest):
            for worker in capacity:
                moved = busy({**placed, block: worker}, nbytes, capacity)
                assert max(moved[busiest], moved[worker]) >= now[busiest] * (1 - 1e-6)


@given(st.integers(1, 200), st.integers(1, 8))
def test_equal_blocks_are_shared_as_evenly_as_can_be(n_blocks, n_workers):
    capacity = {f"w{k}": 1.0 for k in range(n_workers)}
    placed = place([64.0] * n_blocks, capacity, {})
    counts = [list(placed.values()).count(worker) for worker in capacity]
    assert max(counts) <= max(-(-n_blocks // n_workers), TOLERANCE * n_blocks / n_workers)
    # In runs of neighbours, whose sums add up where they are.
    workers = [placed[block] for block in range(n_blocks)]
    assert sum(a != b for a, b in pairwise(workers)) < n_workers


@given(fleets())
def test_the_same_fleet_is_placed_the_same_way(fleet):
    assert place(*fleet) == place(*fleet)


def test_blocks_stay_where_they_are_while_that_is_even():
    holders = {0: ["b"], 1: ["a"], 2: ["b"], 3: ["a"]}
    placed = place([1.0] * 4, {"a": 1.0, "b": 1.0}, holders)
    assert placed == {0: "b", 1: "a", 2: "b", 3: "a"}


def test_few_blocks_move_when_a_worker_joins_or_goes():
    before = place([1.0] * 16, {"a": 1.0, "b": 1.0}, {})
    holders = {block: [worker] for block, worker in before.items()}
    joined = place([1.0] * 16, {"a": 1.0, "b": 1.0, "c": 1.0}, holders)
    moved = [block for block in before if joined[block] != before[block]]
    assert {joined[block] for block in moved} == {"c"}
    assert len(moved) in (4, 5, 6)
    left = place([1.0] * 16, {"a": 1.0}, holders)
    assert set(left.values()) == {"a"}


def test_of_several_holders_the_less_busy_one_is_taken():
    placed = place([1.0] * 4, {"a": 1.0, "b": 1.0}, {k: ["a", "b"] for k in range(4)})
    assert sorted(placed.values()) == ["a", "a", "b", "b"]


def test_a_worker_of_twice_the_speed_gets_twice_the_bytes():
    placed = place([1.0] * 30, {"slow": 1.0, "fast": 2.0}, {})
    assert list(placed.values()).count("fast") == 20


WORTHS = st.floats(0.01, 100.0)


def traffic(before, after, nbytes, holders):
    """Bytes that the busiest of all senders and receivers has to send and receive."""
    sent = Counter()
    for block, worker in after.items():
        if set(holders.get(block, ())) & set(before.values()) and worker not in holders[block]:
            sent[before[block]] += nbytes[block]
            sent[worker] += nbytes[block]
    return max(sent.values(), default=0)


@given(fleets(), WORTHS)
def test_what_is_moved_pays_and_makes_nobody_busier_than_the_busiest_was(fleet, worth):
    nbytes, capacity, holders = fleet
    # So dear that nothing moves.
    before, after = place(*fleet, 1e-12), place(*fleet, worth)
    saved = max(busy(before, nbytes, capacity).values()) - max(
        busy(after, nbytes, capacity).values()
    )
    assert saved >= -1e-9
    assert saved * worth >= traffic(before, after, nbytes, holders) - 1e-6


@given(fleets())
def test_nothing_is_moved_where_that_is_dear(fleet):
    _, capacity, holders = fleet
    for block, worker in place(*fleet, 1e-12).items():
        assert worker in holders.get(block, ()) or not set(holders.get(block, ())) & set(capacity)


@given(fleets(), WORTHS)
def test_placed_once_blocks_stay_if_nothing_changes(fleet, worth):
    nbytes, capacity, _ = fleet
    placed = place(*fleet, worth)
    again = place(nbytes, capacity, {block: {at} for block, at in placed.items()}, worth)
    loads = busy(placed, nbytes, capacity), busy(again, nbytes, capacity)
    assert max(loads[1].values()) <= max(loads[0].values()) + 1e-9


def test_a_newcomer_is_given_blocks_when_enough_rounds_are_to_come():
    """Of 12 bytes in all 4 go to it, by which the busiest has 2 less to do a round."""
    holders = {block: ["ab"[block % 2]] for block in range(12)}
    capacity = {"a": 1.0, "b": 1.0, "c": 1.0}
    for worth, n_moved in ((1.9, 0), (2.1, 4)):
        placed = place([1.0] * 12, capacity, holders, worth)
        assert list(placed.values()).count("c") == n_moved


@pytest.mark.parametrize("capacity", [{}, {"a": 0.0}, {"a": 1.0, "b": -1.0}])
def test_a_fleet_that_cannot_work_is_refused(capacity):
    with pytest.raises(ValueError, match="workers of positive speed"):
        place([1.0], capacity, {})


@given(fleets(), st.integers(1, 6))
def test_shards_hold_each_block_once_in_order_and_on_its_worker(fleet, most):
    nbytes, capacity, holders = fleet
    placed = place(nbytes, capacity, holders)
    cut = shards(placed, nbytes, dict.fromkeys(capacity, most))
    assert sorted(block for _, blocks in cut for block in blocks) == list(range(len(nbytes)))
    for worker, blocks in cut:
        assert blocks
        assert list(blocks) == sorted(blocks)
        assert {placed[block] for block in blocks} == {worker}
    for worker in capacity:
        own = [blocks for w, blocks in cut if w == worker]
        assert len(own) <= most
        assert [b for blocks in own for b in blocks] == sorted(
            b for b in placed if placed[b] == worker
        )


@given(fleets(), st.sets(st.integers(1, 39)), st.integers(1, 6))
def test_blocks_that_are_read_together_stay_together(fleet, joined, most):
    nbytes, capacity, holders = fleet
    placed = place(nbytes, capacity, holders)
    for block in sorted(joined & placed.keys()):
        placed[block] = placed[block - 1]
    cut = shards(placed, nbytes, dict.fromkeys(capacity, most), joined)
    assert sorted(block for _, blocks in cut for block in blocks) == list(range(len(nbytes)))
    shard_of = {block: number for number, (_, blocks) in enumerate(cut) for block in blocks}
    kept = keepable(nbytes, placed, dict.fromkeys(capacity, sum(nbytes) / 3), joined)
    for block in joined & placed.keys():
        assert shard_of[block] == shard_of[block - 1]
        assert (block in kept) == (block - 1 in kept)


def test_shards_of_equal_blocks_are_equal():
    placed = dict.fromkeys(range(8), "a")
    cut = shards(placed, [1.0] * 8, {"a": 4})
    assert cut == [("a", (0, 1)), ("a", (2, 3)), ("a", (4, 5)), ("a", (6, 7))]


@given(
    st.lists(st.tuples(st.integers(1, 100), st.sampled_from("abc")), max_size=40),
    st.dictionaries(st.sampled_from("abc"), st.floats(0.0, 3000.0)),
)
def test_what_stays_has_room_with_its_worker(blocks, room):
    nbytes, placed = [n for n, _ in blocks], dict(enumerate(at for _, at in blocks))
    kept = keepable(nbytes, placed, room)
    for worker in "abc":
        own = [block for block, at in placed.items() if at == worker]
        of_kept = [nbytes[block] for block in own if block in kept]
        assert sum(of_kept) <= room.get(worker, 0.0) + 1e-9
        if sum(nbytes[block] for block in own) <= room.get(worker, 0.0):
            assert len(of_kept) == len(own)


def test_what_stays_is_spread_over_the_blocks_of_a_worker():
    placed = dict.fromkeys(range(10), "a")
    assert keepable([10.0] * 10, placed, {"a": 50.0}) == {1, 3, 5, 7, 9}
    assert keepable([10.0] * 10, placed, {"a": 9.0}) == set()
    assert keepable([10.0] * 10, placed, {"b": 90.0}) == set()
