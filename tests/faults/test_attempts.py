from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dask_dml.faults.attempts import REST_S, SETTLE_S, Cancel, Exhausted, Ledger, Poison, Submit
from dask_dml.faults.policy import FaultPolicy

TICK_S = 0.1


class Cluster:
    """Workers in name only, on a clock of their own; attempts of one round given to them."""

    def __init__(self, cut, n_blocks=None, workers=None, **policy):
        self.policy = FaultPolicy(**policy)
        self.n_blocks = n_blocks or sum(len(blocks) for _, blocks in cut)
        self.threads = dict.fromkeys(workers or sorted({worker for worker, _ in cut}), 1)
        self.ledger = Ledger(self.policy, [1.0] * self.n_blocks)
        self.now_s = 100.0
        self.suspects = set()
        self.where = {}
        self.counted = Counter()
        self.last = []
        self.ledger.open(cut, self.now_s)

    def on(self, worker):
        """Keys of the attempts on a worker."""
        live = self.ledger.live
        return [key for key, a in live.items() if self.where.get(key, a.worker) == worker]

    def pass_time(self, seconds=TICK_S):
        """Actions of the ticks of this time."""
        actions = []
        for _ in range(max(round(seconds / TICK_S), 1)):
            self.now_s += TICK_S
            actions += self.ledger.tick(self.now_s, self.threads, self.suspects, self.where)
        self.last = actions
        return actions

    def finish(self, key):
        blocks = self.ledger.live[key].blocks if key in self.ledger.live else ()
        counts, actions = self.ledger.finished(key, self.now_s)
        if counts:
            self.counted.update(blocks)
        return counts, actions

    def kill(self, worker, keys=None, fails=True):
        """A worker dies; Dask gives up on what it had, or tries it elsewhere by itself."""
        keys = self.on(worker) if keys is None else keys
        del self.threads[worker]
        self.ledger.died(worker, keys)
        return [a for key in keys if fails for a in self.ledger.failed(key, self.now_s)]

    def join(self, worker):
        self.threads[worker] = 1


def submits(actions):
    return [action for action in actions if isinstance(action, Submit)]


def three_workers(**policy):
    """Three workers with two blocks each, a shard a block."""
    cut = [("a", (0,)), ("a", (1,)), ("b", (2,)), ("b", (3,)), ("c", (4,)), ("c", (5,))]
    return Cluster(cut, **policy)


# -- an undisturbed round -----------------------------------------------------------------------


def test_a_round_without_faults_gives_each_shard_to_its_worker_once():
    ledger = Ledger(FaultPolicy(), [1.0] * 4)
    opened = ledger.open([("a", (0, 1)), ("b", (2, 3))], 0.0)
    assert [(s.attempt.worker, s.attempt.blocks, s.attempt.number) for s in opened] == [
        ("a", (0, 1), 0),
        ("b", (2, 3), 0),
    ]
    assert {s.reason for s in opened} == {""}
    assert ledger.tick(0.1, {"a": 1, "b": 1}, (), {}) == []
    assert ledger.finished((0, 0), 0.2) == (True, [])
    assert (ledger.is_complete, ledger.missing) == (False, (2, 3))
    assert ledger.finished((1, 0), 0.2) == (True, [])
    assert (ledger.is_complete, ledger.missing, ledger.live) == (True, (), {})


@pytest.mark.parametrize("n_threads", [1, 2, 4])
def test_waiting_in_the_queue_of_a_worker_does_not_make_a_straggler(n_threads):
    # Eight shards of 2 s for each thread: the last one waits 14 s before it starts.
    workers = [f"w{i}" for i in range(3)]
    cut = [(w, (b,)) for b, w in enumerate(w for w in workers for _ in range(8 * n_threads))]
    cluster = Cluster(cut)
    cluster.threads = dict.fromkeys(workers, n_threads)
    for _ in range(8):
        assert cluster.pass_time(2.0) == []
        for worker in workers:
            for key in sorted(cluster.on(worker))[:n_threads]:
                assert cluster.finish(key) == (True, [])
    assert cluster.ledger.is_complete


# -- stragglers and suspects --------------------------------------------------------------------


def test_the_work_of_a_suspect_is_done_by_others_as_well():
    cluster = three_workers()
    cluster.suspects = {"a"}
    first = submits(cluster.pass_time())
    assert sorted(s.attempt.blocks for s in first) == [(0,), (1,)]
    assert {s.kind for s in first} == {"work-duplicated"}
    assert {s.attempt.worker for s in first} == {"b", "c"}
    assert all("a is suspect" in s.reason for s in first)
    # Once is enough, until the others are suspect too.
    assert cluster.pass_time(5.0) == []
    cluster.suspects = {"a", "b"}
    assert {s.attempt.worker for s in submits(cluster.pass_time())} == {"c"}


def test_nothing_is_duplicated_while_all_are_suspect():
    cluster = three_workers()
    cluster.suspects = {"a", "b", "c"}
    assert cluster.pass_time(5.0) == []


def test_what_nobody_does_is_given_to_a_suspect_if_there_are_no_others():
    cluster = three_workers()
    cluster.suspects = {"a", "b", "c"}
    cluster.kill("a")
    again = submits(cluster.pass_time(1.0))
    assert {s.attempt.blocks for s in again} == {(0,), (1,)}
    cluster.suspects = {"b", "c"}
    cluster.join("d")
    assert all(s.attempt.worker == "d" for s in submits(cluster.pass_time()))


def test_the_first_result_counts_and_cancels_the_other():
    cluster = three_workers()
    cluster.suspects = {"a"}
    (duplicate, _) = submits(cluster.pass_time())
    counts, actions = cluster.finish(duplicate.attempt.key)
    assert counts
    assert actions == [Cancel(((duplicate.attempt.shard, 0),))]
    assert cluster.finish((duplicate.attempt.shard, 0)) == (False, [])


def test_an_attempt_that_dask_has_moved_is_where_it_is():
    cluster = three_workers()
    cluster.where = {(0, 0): "b", (1, 0): "b"}
    cluster.suspects = {"a"}
    assert cluster.pass_time() == []
    cluster.suspects = {"b"}
    assert {s.attempt.shard for s in submits(cluster.pass_time())} == {0, 1, 2, 3}


def test_a_straggler_is_duplicated_once_three_quarters_are_in():
    cluster = Cluster([(w, (b,)) for b, w in enumerate("aabbccdd")])
    for number in range(2):
        cluster.pass_time(2.0)
        for worker in "abc":
            cluster.finish(sorted(cluster.on(worker))[0])
        assert cluster.last == []
        assert number == 0 or len(cluster.on("d")) == 2
    # Begun at 0 s, usual are 2 s: late from 3 s on, and it is 4.
    assert {s.attempt.shard for s in submits(cluster.pass_time())} == {6, 7}
    assert cluster.pass_time(10.0) == []


def test_sums_that_are_on_their_way_are_waited_for_unless_their_worker_is_suspect():
    ledger = Ledger(FaultPolicy(), [1.0] * 4)
    ledger.open([("a", (0,)), ("a", (1,)), ("b", (2,)), ("b", (3,))], 0.0)
    for shard in range(3):
        ledger.finished((shard, 0), 1.0 + shard % 2)
    threads = dict.fromkeys("ab", 1)
    assert ledger.tick(60.0, threads, (), {}, [(3, 0)]) == []
    assert [s.attempt.worker for s in submits(ledger.tick(60.0, threads, {"b"}, {}, [(3, 0)]))] == [
        "a"
    ]


def test_below_the_quorum_a_straggler_is_duplicated_only_if_somebody_is_idle():
    busy = Cluster([("a", (0,)), ("b", (1,)), ("b", (2,)), ("c", (3,)), ("c", (4,))])
    busy.pass_time(2.0)
    busy.finish((1, 0))
    busy.finish((3, 0))
    assert busy.pass_time(1.5) == []
    busy.finish((4, 0))
    assert [s.attempt.worker for s in submits(busy.pass_time(0.1))] == ["c"]


def test_short_rounds_have_no_stragglers():
    cluster = three_workers()
    cluster.now_s += 0.01
    for worker in "bc":
        for key in cluster.on(worker):
            cluster.finish(key)
    assert cluster.pass_time(0.4) == []


def test_speeds_are_compared_by_the_weight_of_the_blocks():
    ledger = Ledger(FaultPolicy(), [1.0, 1.0, 1.0, 100.0])
    ledger.open([("a", (0,)), ("b", (1,)), ("b", (2,)), ("c", (3,))], 0.0)
    for shard in range(3):
        ledger.finished((shard, 0), 1.0 + (shard == 2))
    threads = dict.fromkeys("abc", 1)
    assert ledger.tick(120.0, threads, (), {}) == []
    assert len(submits(ledger.tick(151.0, threads, (), {}))) == 1


def test_a_straggler_is_given_the_time_that_its_blocks_take_to_come_to_another():
    ledger = Ledger(FaultPolicy(), [4e8] * 4, bandwidth=1e8)
    ledger.open([("a", (0,)), ("a", (1,)), ("b", (2,)), ("b", (3,))], 0.0)
    for shard in range(3):
        ledger.finished((shard, 0), 1.0 + shard % 2)
    threads = dict.fromkeys("ab", 1)
    # Begun at 1 s, late at 2.5 s, and then twice 4 s.
    assert ledger.tick(10.4, threads, (), {}) == []
    assert len(submits(ledger.tick(10.6, threads, (), {}))) == 1


# -- deaths -------------------------------------------------------------------------------------


def test_what_dask_gave_up_on_is_submitted_anew_elsewhere():
    cluster = three_workers()
    assert cluster.kill("a") == []
    again = submits(cluster.pass_time(2 * SETTLE_S))
    assert {(s.kind, s.attempt.blocks) for s in again} == {
        ("work-resubmitted", (0,)),
        ("work-resubmitted", (1,)),
    }
    assert {s.attempt.worker for s in again} == {"b", "c"}
    assert {s.attempt.number for s in again} == {1}


def test_what_dask_tries_again_by_itself_is_left_to_it():
    cluster = three_workers()
    cluster.kill("a", fails=False)
    cluster.where = {(0, 0): "b", (1, 0): "c"}
    assert cluster.pass_time(1.0) == []


def test_a_failure_with_a_duplicate_under_way_is_no_reason_for_another():
    cluster = three_workers()
    cluster.suspects = {"a"}
    cluster.pass_time()
    cluster.suspects = set()
    assert cluster.kill("a") == []
    assert cluster.pass_time(2.0) == []
    assert cluster.ledger.missing == tuple(range(6))


def finish_all_but(block, cluster):
    for other in list(cluster.ledger.live):
        if block not in cluster.ledger.live[other].blocks:
            cluster.finish(other)


def dies_of(block, cluster, order, after_s=0.5):
    """Whoever holds the block dies, one of `order` after the other; what the ledger says of it."""
    found = []
    for worker in order:
        for _ in range(400):
            keys = [k for k, a in cluster.ledger.live.items() if block in a.blocks]
            if keys:
                break
            found += cluster.pass_time()
            finish_all_but(block, cluster)
            if any(isinstance(action, Poison | Exhausted) for action in found):
                return found
        (key,) = keys
        at = cluster.ledger.live[key].worker
        found += cluster.pass_time(after_s)
        found += cluster.kill(at)
        cluster.join(worker)
    return found + cluster.pass_time(2 * REST_S)


def test_a_block_under_which_three_workers_die_the_last_alone_is_poison():
    cluster = Cluster([("a", (0, 1, 2)), ("b", (3, 4, 5))])
    found = dies_of(1, cluster, ["c", "d", "e", "f"])
    poison = [action for action in found if isinstance(action, Poison)]
    assert [p.block for p in poison] == [1]
    assert len(set(poison[0].workers)) == 3
    cluster.pass_time(REST_S)
    finish_all_but(1, cluster)
    assert not cluster.ledger.is_complete
    assert cluster.ledger.missing == (1,)
    # Said once, and not tried again.
    assert cluster.pass_time(10.0) == []


@pytest.mark.parametrize("poison_deaths", [1, 2, 3, 5])
def test_poison_takes_as_many_workers_as_the_policy_says(poison_deaths):
    cluster = Cluster([("a", (0,)), ("b", (1,))], poison_deaths=poison_deaths)
    found = dies_of(0, cluster, [f"new{i}" for i in range(9)])
    (poison,) = [action for action in found if isinstance(action, Poison)]
    # Alone at the last, so that one death is not enough.
    assert len(poison.workers) == max(poison_deaths, 2)


def test_workers_that_die_at_the_same_moment_are_one_death_under_a_block():
    """Two are killed at once, and a third one as the block is alone: three, and yet by chance."""
    cluster = Cluster([("a", (0,)), ("b", (1,)), ("c", (2,))])
    cluster.kill("a", fails=False)
    cluster.where = {(0, 0): "b"}
    cluster.kill("b")
    cluster.join("d")
    cluster.finish((2, 0))
    found = []
    for _ in range(60):
        found += cluster.pass_time()
        finish_all_but(0, cluster)
    (key,) = [k for k, a in cluster.ledger.live.items() if a.blocks == (0,)]
    found += cluster.kill(cluster.ledger.live[key].worker)
    cluster.join("e")
    found += cluster.pass_time(3 * REST_S)
    assert not [a for a in found if isinstance(a, Poison)]
    assert any(a.blocks == (0,) for a in cluster.ledger.live.values())


def test_the_neighbours_of_poison_are_innocent():
    cluster = Cluster([("a", tuple(range(8))), ("b", (8,))])
    dies_of(5, cluster, ["c", "d", "e", "f"])
    for _ in range(8):
        cluster.pass_time(REST_S)
        finish_all_but(5, cluster)
    assert cluster.ledger.missing == (5,)
    assert cluster.counted == Counter({b: 1 for b in range(9) if b != 5})


def test_workers_that_die_at_once_make_no_poison():
    cluster = Cluster([(w, (b,)) for b, w in enumerate("abcdef")])
    # All but one die within a second, twice over, as Dask moves the work from one to the next.
    for victim in "abcde":
        cluster.kill(victim)
        cluster.pass_time(0.2)
    for worker in "ghijk":
        cluster.join(worker)
    cluster.pass_time(2 * REST_S)
    for victim in "ghijk":
        assert not [a for a in cluster.kill(victim) if isinstance(a, Poison)]
        assert not [a for a in cluster.pass_time(0.2) if isinstance(a, Poison)]
    cluster.join("l")
    for _ in range(200):
        assert not [a for a in cluster.pass_time() if isinstance(a, Poison)]
        for key in list(cluster.ledger.live):
            cluster.finish(key)
    assert cluster.ledger.is_complete


def test_two_poison_blocks_are_told_from_each_other():
    """They kill two workers at once when tried at once, and then they are tried one by one."""
    cluster = Cluster([("a", (0,)), ("b", (1,)), ("c", (2,)), ("d", (3,))])
    found = []
    for number in range(40):
        dying = {a.worker for a in cluster.ledger.live.values() if set(a.blocks) & {0, 1}}
        for key in [k for k, a in cluster.ledger.live.items() if a.blocks[0] > 1]:
            cluster.finish(key)
        for worker in sorted(dying):
            found += cluster.kill(worker)
            cluster.join(f"new-{number}-{worker[:5]}")
        found += cluster.pass_time(1.0)
    assert {action.block for action in found if isinstance(action, Poison)} == {0, 1}
    assert not [action for action in found if isinstance(action, Exhausted)]


def test_an_innocent_block_beside_the_poison_is_not_blamed_in_its_place():
    """A death counts as proof only if the worker had nothing else."""
    cluster = Cluster([("a", (0,)), ("b", (1,))], workers=["a", "b", "c"])
    for worker in ("a", "c"):
        keys = [k for k, a in cluster.ledger.live.items() if a.blocks == (0,)]
        cluster.where = dict.fromkeys(keys, worker)
        cluster.kill(worker, keys)
        cluster.join(f"after-{worker}")
        cluster.pass_time(4.0)
    (alone,) = [k for k, a in cluster.ledger.live.items() if a.blocks == (0,)]
    at = cluster.ledger.live[alone].worker
    cluster.where = {(1, 0): at}
    cluster.kill(at, [alone, (1, 0)])
    assert not [a for a in cluster.pass_time(2 * REST_S) if isinstance(a, Poison)]


def test_a_death_that_is_heard_of_after_the_failure_counts():
    cluster = Cluster([("a", (0,)), ("b", (1,))], workers=["a", "b"])
    found = []
    for number in range(3):
        for _ in range(60):
            keys = [k for k, a in cluster.ledger.live.items() if a.blocks == (0,)]
            if keys:
                break
            cluster.pass_time()
        (key,) = keys
        cluster.pass_time(0.5)
        worker = cluster.ledger.live[key].worker
        del cluster.threads[worker]
        found += cluster.ledger.failed(key, cluster.now_s)
        cluster.now_s += SETTLE_S / 2
        found += cluster.ledger.tick(cluster.now_s, cluster.threads, (), {})
        cluster.ledger.died(worker, [key])
        cluster.join(f"new{number}")
        for other in [k for k, a in cluster.ledger.live.items() if a.blocks == (1,)]:
            cluster.finish(other)
    found += cluster.pass_time(2 * REST_S)
    assert [len(a.workers) for a in found if isinstance(a, Poison)] == [3]


@pytest.mark.parametrize("retries", [0, 1, 4])
def test_the_budget_ends_what_fails_without_a_death_to_explain_it(retries):
    cluster = Cluster([("a", (0, 1)), ("b", (2, 3))], retries=retries)
    found = []
    for _ in range(retries + 1):
        (key,) = [k for k, a in cluster.ledger.live.items() if 0 in a.blocks]
        found += cluster.ledger.failed(key, cluster.now_s)
        found += cluster.pass_time(3 * SETTLE_S)
    assert [a for a in found if isinstance(a, Exhausted)] == [Exhausted((0, 1), retries + 1)]
    assert not cluster.ledger.is_complete
    assert cluster.pass_time(5.0) == []


def test_taking_a_shard_apart_does_not_renew_its_budget():
    cluster = Cluster([("a", (0, 1)), ("b", (2,))], retries=3, poison_deaths=50)
    found, n_failed = [], Counter()
    for number in range(300):
        for key, attempt in list(cluster.ledger.live.items()):
            if 0 in attempt.blocks and key in cluster.ledger.live:
                n_failed[0] += 1
                found += cluster.kill(attempt.worker)
                cluster.join(f"new{number}")
        found += cluster.pass_time()
        if any(isinstance(action, Exhausted) for action in found):
            break
    assert n_failed[0] == 4


def test_while_there_is_no_worker_nothing_is_done_and_afterwards_all():
    cluster = Cluster([("a", (0,)), ("a", (1,))])
    cluster.kill("a")
    assert cluster.pass_time(30.0) == []
    cluster.join("b")
    assert {s.attempt.blocks for s in submits(cluster.pass_time())} == {(0,), (1,)}


def test_a_death_under_other_work_is_not_held_against_this():
    cluster = three_workers()
    cluster.ledger.died("x", [(99, 0)])
    assert cluster.pass_time(1.0) == []


# -- any order of all of it ---------------------------------------------------------------------


class AnyRound(RuleBasedStateMachine):
    """Workers finish, die, fall silent, join; Dask moves and gives up; one block may be poison."""

    @initialize(
        n_workers=st.integers(1, 4),
        sizes=st.lists(st.integers(1, 3), min_size=1, max_size=6),
        poison=st.none() | st.integers(0, 5),
    )
    def open(self, n_workers, sizes, poison):
        blocks = iter(range(sum(sizes)))
        cut = [
            (f"w{number % n_workers}", tuple(next(blocks) for _ in range(size)))
            for number, size in enumerate(sizes)
        ]
        self.cluster = Cluster(cut, workers=[f"w{i}" for i in range(n_workers)], retries=10_000)
        self.poison = poison if poison is not None and poison < sum(sizes) else None
        self.n_joined = 0
        self.ended = []

    def note(self, actions):
        self.ended += [a for a in actions if isinstance(a, Poison | Exhausted)]
        for submit in submits(actions):
            assert submit.kind
            assert submit.reason

    @rule(number=st.integers(0, 50))
    def finish(self, number):
        live = [key for key, a in self.cluster.ledger.live.items() if self.poison not in a.blocks]
        if live:
            counts, _ = self.cluster.finish(live[number % len(live)])
            assert counts

    @rule(shard=st.integers(0, 8), number=st.integers(0, 3))
    def finish_anything(self, shard, number):
        """Results that nobody waits for any more, which come all the same."""
        if (shard, number) not in self.cluster.ledger.live and shard in {
            s for s, _ in self.cluster.ledger.live
        }:
            assert self.cluster.finish((shard, number)) == (False, [])

    @rule(number=st.integers(0, 50), fails=st.booleans(), late=st.booleans())
    def kill(self, number, fails, late):
        workers = sorted(self.cluster.threads)
        if not workers:
            return
        worker = workers[number % len(workers)]
        keys = self.cluster.on(worker)
        if not late:
            self.note(self.cluster.kill(worker, keys, fails))
            return
        del self.cluster.threads[worker]
        for key in keys if fails else ():
            self.note(self.cluster.ledger.failed(key, self.cluster.now_s))
        self.cluster.ledger.died(worker, keys)

    @rule(number=st.integers(0, 50))
    def move(self, number):
        """Dask gives what was on somebody who is gone to somebody else."""
        workers = sorted(self.cluster.threads)
        for key, attempt in self.cluster.ledger.live.items():
            at = self.cluster.where.get(key, attempt.worker)
            if workers and at not in self.cluster.threads:
                self.cluster.where[key] = workers[number % len(workers)]

    @rule(number=st.integers(0, 50))
    def suspect(self, number):
        workers = sorted(self.cluster.threads)
        if workers:
            self.cluster.suspects ^= {workers[number % len(workers)]}

    @rule()
    @precondition(lambda self: self.n_joined < 6)
    def join(self):
        self.cluster.join(f"new{self.n_joined}")
        self.n_joined += 1

    @rule(ticks=st.integers(1, 30))
    def pass_time(self, ticks):
        self.note(self.cluster.pass_time(ticks * TICK_S))

    @invariant()
    def a_block_counts_once(self):
        if hasattr(self, "cluster"):
            assert all(count == 1 for count in self.cluster.counted.values())
            missing = set(range(self.cluster.n_blocks)) - set(self.cluster.counted)
            assert set(self.cluster.ledger.missing) == missing
            assert self.cluster.ledger.is_complete == (not missing)

    @invariant()
    def no_two_attempts_of_a_shard_are_on_one_worker_by_plan(self):
        if hasattr(self, "cluster"):
            for (shard, _), attempt in self.cluster.ledger.live.items():
                assert attempt.shard == shard
                assert not set(attempt.blocks) & set(self.cluster.counted)

    def teardown(self):
        """From here on nothing dies but of the poison: the round ends, or the poison is named."""
        if not hasattr(self, "cluster"):
            return
        cluster = self.cluster
        cluster.suspects.clear()
        cluster.join("last")
        for number in range(2_000):
            if cluster.ledger.is_complete or self.ended:
                break
            self.move(0)
            for key in sorted(cluster.ledger.live):
                attempt = cluster.ledger.live.get(key)
                if attempt is None:
                    continue
                at = cluster.where.get(key, attempt.worker)
                if self.poison not in attempt.blocks:
                    cluster.finish(key)
                elif at in cluster.threads:
                    self.note(cluster.kill(at))
                    cluster.join(f"again{number}")
            self.note(cluster.pass_time())
        if not self.ended:
            assert cluster.ledger.is_complete
        for action in self.ended:
            assert isinstance(action, Poison)
            assert len(set(action.workers)) >= cluster.policy.poison_deaths


AnyRound.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestAnyRound = AnyRound.TestCase
