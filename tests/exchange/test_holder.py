"""The parameter holder: the same bits and nothing lost, whatever arrives when, and whoever dies."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_dml.errors import StaleRunError
from dask_dml.exchange.holder import (
    Acknowledge,
    Holder,
    Outcome,
    Publish,
    Push,
    Replicate,
    choose_hosts,
)
from dask_dml.exchange.ranges import KeyRange, NamedArrays, as_arrays, joined, key_ranges
from dask_dml.objective import Statistics, TreeSum

ALL = KeyRange()


def sums_of_block(block, n_keys=4):
    rng = np.random.default_rng(block)
    gram = rng.normal(size=(n_keys, n_keys)) * 10.0 ** rng.integers(-8, 8)
    return as_arrays(Statistics(block + 1, float(rng.normal()), rng.normal(size=(1, n_keys)), gram))


def shard(n_blocks, blocks):
    total = TreeSum(n_blocks)
    total.update(((0, block), sums_of_block(block)) for block in blocks)
    return total.nodes


def expected_total(n_blocks):
    total = TreeSum(n_blocks)
    total.update(((0, block), sums_of_block(block)) for block in range(n_blocks))
    return total.value.arrays


def total_of(holder, version, n_blocks):
    total = TreeSum(n_blocks)
    total.update(holder.sums("run", version))
    return total.value.arrays


def publish(version, n_blocks, **values):
    values = values or {"theta": np.full(3, float(version))}
    return Publish("run", version, n_blocks, NamedArrays(values))


def push(n_blocks, blocks, version=0, attempt=0):
    return Push("run", version, tuple(blocks), attempt, shard(n_blocks, blocks))


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], strict=True)


def alone(n_blocks=4):
    holder = Holder("run", "A", ALL)
    holder.configure(0, ("A",))
    holder.publish("published", publish(0, n_blocks))
    return holder


def outcome(actions):
    (answer,) = actions
    return answer.outcome


@st.composite
def cuts(draw, n_blocks):
    """Shards that cover all blocks, and some more that overlap with them in any way."""
    labels = draw(st.lists(st.integers(0, 3), min_size=n_blocks, max_size=n_blocks))
    cover = [[b for b in range(n_blocks) if labels[b] == label] for label in sorted(set(labels))]
    extra = draw(
        st.lists(st.sets(st.integers(0, n_blocks - 1), min_size=1).map(sorted), max_size=4)
    )
    return draw(st.permutations([*cover, *extra, *cover[:1]]))


@given(st.data(), st.integers(1, 13))
def test_any_order_overlap_and_repetition_gives_the_bits_of_the_tree(data, n_blocks):
    holder = alone(n_blocks)
    for number, blocks in enumerate(data.draw(cuts(n_blocks))):
        found = outcome(holder.push(number, push(n_blocks, blocks, attempt=number)))
        assert found in (Outcome.ACCEPTED, Outcome.DUPLICATE)
    assert_same_bits(total_of(holder, 0, n_blocks), expected_total(n_blocks))
    assert total_of(holder, 0, n_blocks)["n_rows"] == n_blocks * (n_blocks + 1) // 2


def test_a_repeated_push_is_dropped():
    holder = alone()
    assert outcome(holder.push(1, push(4, (0, 1)))) is Outcome.ACCEPTED
    assert outcome(holder.push(2, push(4, (0, 1), attempt=1))) is Outcome.DUPLICATE
    assert outcome(holder.push(3, push(4, (1,)))) is Outcome.DUPLICATE
    assert [node for node, _ in holder.sums("run", 0)] == [(1, 0)]


def test_a_push_of_a_version_that_is_over_or_not_there_does_not_count():
    holder = alone()
    holder.publish("second", publish(1, 4))
    assert outcome(holder.push(1, push(4, (0,), version=0))) is Outcome.LATE
    assert outcome(holder.push(2, push(4, (0,), version=2))) is Outcome.UNKNOWN
    assert outcome(holder.publish(3, publish(0, 4))) is Outcome.LATE
    assert holder.sums("run", 1) == []
    assert holder.sums("run", 0) is None


def test_publishing_again_keeps_the_sums_that_have_come():
    holder = alone()
    holder.push(1, push(4, (2,)))
    assert outcome(holder.publish(2, publish(0, 4))) is Outcome.DUPLICATE
    assert [node for node, _ in holder.sums("run", 0)] == [(0, 2)]


def test_a_message_of_another_run_is_refused_by_the_names_of_both():
    holder = alone()
    stale = replace(push(4, (0,)), run="old-run")
    for message in (
        lambda: holder.push(1, stale),
        lambda: holder.publish(1, replace(publish(1, 4), run="old-run")),
        lambda: holder.values("old-run", 0),
        lambda: holder.sums("old-run", 0),
    ):
        with pytest.raises(StaleRunError, match=r"old-run came to the holder of run run at A"):
            message()


def test_nodes_that_the_message_does_not_name_are_refused():
    holder = alone()
    wrong = replace(push(4, (0, 1)), blocks=(0,))
    with pytest.raises(
        ValueError, match=r"node \(1, 0\) of round 0 of run run has blocks \[0, 1\]"
    ):
        holder.push(1, wrong)
    beyond = replace(push(8, (6,)), blocks=(6,))
    with pytest.raises(ValueError, match="of 4"):
        holder.push(2, beyond)
    assert holder.sums("run", 0) == []


def test_values_that_did_not_change_are_not_sent_again():
    holder = Holder("run", "A", ALL)
    holder.configure(0, ("A",))
    center = np.arange(3.0)
    holder.publish(1, publish(0, 4, theta=np.zeros(3), center=center))
    holder.publish(2, publish(1, 4, theta=np.ones(3)))
    assert set(holder.values("run", 1).arrays) == {"theta", "center"}
    assert set(holder.values("run", 1, have=0).arrays) == {"theta"}
    assert holder.values("run", 0) is None


def test_a_push_is_acknowledged_when_all_replicas_have_it():
    a, b, c = (Holder("run", host, ALL) for host in "ABC")
    sent = {action.to: action.copy for action in a.configure(0, ("A", "B", "C"))}
    assert sent.keys() == {"B", "C"}
    for host, holder in (("B", b), ("C", c)):
        assert outcome(holder.copy("copy", sent[host])) is Outcome.ACCEPTED
        a.confirm(host, sent[host], Outcome.ACCEPTED)
    copies = a.publish("ticket", publish(0, 4))
    assert all(isinstance(action, Replicate) for action in copies)
    first, second = copies
    assert a.confirm("B", first.copy, Outcome.ACCEPTED) == []
    assert a.confirm("C", second.copy, Outcome.ACCEPTED) == [
        Acknowledge("ticket", Outcome.ACCEPTED)
    ]


def test_a_replica_that_was_promoted_refuses_the_old_primary_which_steps_down():
    a, b = Holder("run", "A", ALL), Holder("run", "B", ALL)
    (first,) = a.configure(0, ("A", "B"))
    b.copy("copy", first.copy)
    a.confirm("B", first.copy, Outcome.ACCEPTED)
    (second,) = a.publish("ticket", publish(0, 4))
    b.configure(1, ("B",))
    assert outcome(b.copy("copy", second.copy)) is Outcome.MOVED
    assert a.confirm("B", second.copy, Outcome.MOVED) == [Acknowledge("ticket", Outcome.MOVED)]
    assert not a.is_primary
    assert outcome(a.push("late", push(4, (0,)))) is Outcome.MOVED


def test_a_delayed_copy_does_not_take_a_replica_back():
    a, b = Holder("run", "A", ALL), Holder("run", "B", ALL)
    (whole,) = a.configure(0, ("A", "B"))
    b.copy("copy", whole.copy)
    a.confirm("B", whole.copy, Outcome.ACCEPTED)
    (second,) = a.publish("ticket", publish(0, 4))
    b.copy("copy", second.copy)
    assert outcome(b.copy("again", whole.copy)) is Outcome.DUPLICATE
    assert b.version == 0


def test_the_state_is_plain_arrays():
    holder = alone(5)
    holder.push(1, push(5, (0, 1, 3)))
    state = holder.snapshot()
    assert all(type(value) is np.ndarray and value.dtype != object for value in state.values())
    again = Holder.restored("run", "B", ALL, state)
    again.configure(7, ("B",))
    again.push(2, push(5, (2, 4)))
    assert_same_bits(total_of(again, 0, 5), expected_total(5))
    np.testing.assert_array_equal(again.values("run", 0).arrays["theta"], np.zeros(3))


@given(st.integers(1, 5), st.integers(1, 9))
def test_ranges_add_up_apart_to_the_bits_they_have_together(count, n_keys):
    whole = TreeSum(5)
    parts = [TreeSum(5) for _ in range(count)]
    for block in (3, 0, 4, 1, 2):
        sums = sums_of_block(block, n_keys)
        whole.add((0, block), sums)
        for part, keys in zip(parts, key_ranges(count), strict=True):
            part.add((0, block), sums.of(keys))
    assert_same_bits(joined([part.value for part in parts]).arrays, whole.value.arrays)


def test_ranges_are_even():
    lengths = [stop - start for start, stop in (keys.bounds(11) for keys in key_ranges(4))]
    assert sum(lengths) == 11
    assert max(lengths) - min(lengths) <= 1
    with pytest.raises(ValueError, match="index must be from 0"):
        KeyRange(2, 2)


# -- a cluster in miniature ---------------------------------------------------------------------


class Cluster:
    """Hosts, messages under way in any order, and a directory that sees deaths at once.

    Each host's answers reach whoever asked, unless one of them has died. Copies may be lost: they
    are then sent again, as the edge does.
    """

    def __init__(self, n_replicas):
        self.workers = {name: Holder("run", name, ALL) for name in "ABCDE"}
        self.n_hosts = 1 + n_replicas
        self.hosts = ()
        self.epoch = -1
        self.copies = []  # (from, Replicate)
        self.acknowledged = {}
        self.place(self.choose(()))

    def choose(self, keep):
        return choose_hosts({name: name for name in self.workers}, {}, keep, self.n_hosts)

    @property
    def primary(self):
        return self.workers[self.hosts[0]]

    def place(self, hosts):
        self.epoch += 1
        self.hosts = hosts
        self.act(hosts[0], self.primary.configure(self.epoch, hosts))

    def act(self, host, actions):
        for action in actions:
            if isinstance(action, Replicate):
                self.copies.append((host, action))
            else:
                self.acknowledged[action.ticket] = action.outcome

    def deliver(self, index, is_answered):
        """Deliver a copy; if its answer is lost, it goes again."""
        host, message = self.copies.pop(index % len(self.copies))
        if host not in self.workers or message.to not in self.workers:
            return
        replica = self.workers[message.to]
        actions = replica.copy("copy", message.copy)
        answer = next(a.outcome for a in actions if a.ticket == "copy")
        self.act(message.to, [a for a in actions if a.ticket != "copy"])
        if is_answered:
            self.act(host, self.workers[host].confirm(message.to, message.copy, answer))
        elif self.workers[host].epoch == message.copy.epoch:
            self.copies.append((host, message))

    def settle(self):
        for _ in range(1_000):
            if not self.copies:
                return
            self.deliver(0, is_answered=True)
        raise AssertionError("the copies never end")

    def lose(self, name):
        """Whether a host with all that was acknowledged is left after a death."""
        del self.workers[name]
        if name not in self.hosts:
            return True
        left = [host for host in self.hosts if host != name]
        while left and not self.workers[left[0]].is_installed:
            left.pop(0)
        if not left:
            return False
        self.place(self.choose(left))
        return True

    def promote(self):
        """Replace a primary that only hangs: it lives on and knows nothing of it."""
        if len(self.hosts) > 1 and self.workers[self.hosts[1]].is_installed:
            self.place(self.hosts[1:])


STEPS = st.sampled_from(
    ["push", "push", "push", "deliver", "deliver", "lose-answer", "die", "hang"]
)


@settings(max_examples=200)
@given(
    n_blocks=st.integers(1, 9),
    n_replicas=st.integers(1, 2),
    data=st.data(),
    steps=st.lists(st.tuples(STEPS, st.integers(0, 99)), max_size=40),
)
def test_nothing_acknowledged_is_lost_while_a_host_lives(n_blocks, n_replicas, data, steps):
    cluster = Cluster(n_replicas)
    cluster.settle()
    cluster.act(cluster.hosts[0], cluster.primary.publish("published", publish(0, n_blocks)))
    cluster.settle()
    tickets = itertools.count()
    given_blocks = {}
    shards = data.draw(cuts(n_blocks))
    for step, number in steps:
        if step == "push":
            blocks = shards[number % len(shards)]
            ticket = next(tickets)
            # Sometimes to one that was the primary once: it must not say that it has it.
            host = [*cluster.hosts[:1] * 4, *cluster.workers][number % (4 + len(cluster.workers))]
            given_blocks[ticket] = blocks
            cluster.act(host, cluster.workers[host].push(ticket, push(n_blocks, blocks)))
        elif step == "deliver" and cluster.copies:
            cluster.deliver(number, is_answered=True)
        elif step == "lose-answer" and cluster.copies:
            cluster.deliver(number, is_answered=False)
        elif step == "hang":
            cluster.promote()
        elif step == "die" and len(cluster.workers) > 1:
            victim = sorted(cluster.workers)[number % len(cluster.workers)]
            if not cluster.lose(victim):
                return
    cluster.settle()
    holder = cluster.primary
    present = TreeSum(n_blocks)
    present.update(holder.sums("run", 0) or [])
    kept = set(range(n_blocks)) - set(present.missing)
    for ticket, said in cluster.acknowledged.items():
        if ticket in given_blocks and said in (Outcome.ACCEPTED, Outcome.DUPLICATE):
            assert kept.issuperset(given_blocks[ticket])
    # What was not acknowledged is pushed again, until all is there, on every host.
    for number, blocks in enumerate(shards):
        cluster.act(holder.host, holder.push(f"again-{number}", push(n_blocks, blocks)))
    cluster.settle()
    for host in cluster.hosts:
        assert_same_bits(total_of(cluster.workers[host], 0, n_blocks), expected_total(n_blocks))
    assert all(f"again-{number}" in cluster.acknowledged for number in range(len(shards)))


def test_hosts_are_on_machines_of_their_own():
    machines = {"a1": "a", "a2": "a", "b1": "b", "b2": "b", "c1": "c"}
    assert choose_hosts(machines, {}, (), 3) == ("a1", "b1", "c1")
    assert choose_hosts(machines, {"a1": 2, "b1": 1}, (), 2) == ("a2", "b2")
    assert choose_hosts(machines, {}, ("b1",), 2) == ("b1", "a1")
    assert choose_hosts({"a1": "a", "a2": "a"}, {}, ("a2",), 2) == ("a2", "a1")
    assert choose_hosts({"a1": "a"}, {}, (), 3) == ("a1",)
    assert choose_hosts({}, {}, (), 2) == ()
