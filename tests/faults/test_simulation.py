from __future__ import annotations

import math
from collections import Counter

import pytest

from dask_dml.faults import FaultPolicy
from dask_dml.faults.attempts import Ledger
from dask_dml.faults.membership import Membership
from dask_dml.faults.schedule import KINDS, PARTITIONS, Fault, Schedule
from dask_dml.faults.simulation import (
    Noise,
    VirtualClock,
    simulate,
    simulate_all,
    watch_fleet,
)

QUIET = Noise(holds_per_h=0.0, freezes_per_h=0.0, loss=0.0)


def schedule(*faults, n_workers=4, seed=1):
    return Schedule(seed, n_workers, 60.0, tuple(faults))


def kinds_of(fit):
    return Counter(event.kind for event in fit.events)


# -- the clock ----------------------------------------------------------------------------------


def test_events_happen_in_the_order_of_their_times_and_then_of_their_making():
    clock = VirtualClock()
    happened = []
    for delay_s, name in ((2.0, "c"), (1.0, "a"), (1.0, "b")):
        clock.after(delay_s, happened.append, name)
    while clock.step():
        pass
    assert happened == ["a", "b", "c"]
    assert clock.now_s == 2.0


def test_what_is_skipped_puts_off_all_that_is_to_come():
    clock = VirtualClock()
    times = []
    for delay_s in (1.0, 3.0):
        clock.after(delay_s, lambda: times.append(clock.now_s))
    clock.step()
    clock.skip(100.0)
    clock.step()
    assert times == [1.0, 103.0]
    assert not clock.step()


# -- fits ---------------------------------------------------------------------------------------


def test_a_fit_without_faults_takes_as_long_as_its_work_and_has_no_events():
    fit = simulate(schedule(), noise=QUIET)
    assert fit.ended
    assert fit.same_bits
    assert kinds_of(fit).keys() == {"worker-joined"}
    assert fit.n_resubmitted == fit.n_duplicated == 0
    assert fit.virtual_s < 1.3 * fit.undisturbed_s + 1.0


def test_a_fit_comes_again_from_its_seed():
    assert simulate(11) == simulate(11)
    assert simulate(11) != simulate(12)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_fit_survives_every_kind_of_fault(kind):
    duration_s = 0.0 if kind in ("kill", "retire", "join") else 12.0
    target = 4 if kind == "join" else 1
    fit = simulate(schedule(Fault(kind, 2.3, duration_s, target)), n_rounds=20, noise=QUIET)
    assert fit.ended
    assert fit.same_bits
    expected = {
        "kill": "worker-lost",
        "memory": "worker-lost",
        "hang": "worker-evicted",
        "slow": "work-duplicated",
        "retire": "worker-left",
        "preempt": "worker-draining",
        "join": "worker-joined",
    }.get(kind, "worker-suspected")
    assert kinds_of(fit)[expected]
    assert fit.n_falsely_evicted == 0


@pytest.mark.parametrize("kind", ["kill", "hang", "slow", "memory", *sorted(PARTITIONS)])
@pytest.mark.parametrize("n_hit", [3, 4])
def test_a_fit_survives_a_fault_of_all_workers_or_all_but_one(kind, n_hit):
    duration_s = 0.0 if kind == "kill" else 8.0
    faults = [Fault(kind, 2.3, duration_s, target) for target in range(n_hit)]
    fit = simulate(schedule(*faults), n_rounds=12, noise=QUIET)
    assert fit.ended
    assert fit.same_bits


def test_a_worker_that_hangs_for_ever_is_replaced_within_five_seconds():
    fit = simulate(schedule(Fault("hang", 2.3, math.inf, 0), n_workers=3), noise=QUIET)
    assert fit.same_bits
    assert [recovery.seconds < 5.0 for recovery in fit.recoveries] == [True]
    (evicted,) = [event for event in fit.events if event.kind == "worker-evicted"]
    assert evicted.time_s - (2.3 + 0.5) < 5.0
    assert "stopped" in evicted.evidence


def test_the_work_of_a_killed_worker_goes_elsewhere_at_once():
    fit = simulate(schedule(Fault("kill", 2.3, 0.0, 0), n_workers=3), noise=QUIET)
    assert fit.same_bits
    assert [recovery.seconds < 0.5 for recovery in fit.recoveries] == [True]
    assert fit.n_resubmitted == 0


def test_workers_that_hold_their_gil_often_are_not_evicted():
    noise = Noise(holds_per_h=900.0, hold_s=1.0, freezes_per_h=0.0)
    fits = [simulate(schedule(seed=seed), n_rounds=12, noise=noise) for seed in range(10)]
    assert all(fit.same_bits for fit in fits)
    assert sum(kinds_of(fit)["worker-suspected"] for fit in fits) > 10
    assert sum(fit.n_evicted for fit in fits) == 0


def test_poison_is_named_and_nothing_else_is():
    for seed in range(20):
        fit = simulate(schedule(seed=seed), poison={5}, noise=QUIET)
        assert fit.reason == "poison"
        assert fit.poison == (5,)
        # Three and what their neighbours in the queue took with them, at the most.
        assert kinds_of(fit)["worker-lost"] <= 6
        assert not fit.same_bits


def test_without_a_worker_the_fit_waits_as_long_as_the_policy_says():
    # The machines are switched off without anyone to take over.
    faults = [Fault("preempt", 1.0, 5.0, target) for target in range(2)]
    policy = FaultPolicy(wait_for_workers_s=20.0)
    fit = simulate(schedule(*faults, n_workers=2), policy, noise=QUIET)
    assert fit.reason in ("no workers", "stalled")
    assert not fit.ended
    assert not fit.same_bits
    joined = simulate(schedule(*faults, Fault("join", 12.0, 0.0, 2), n_workers=2), policy)
    assert joined.ended
    assert joined.same_bits


@pytest.mark.timeout(900)
def test_of_a_thousand_schedules_every_fit_ends_with_the_undisturbed_bits():
    summary = simulate_all(range(1_000), n_rounds=5)
    assert [str(fit) for fit in summary.failures] == []
    assert summary.n_same_bits == summary.n_fits == 1_000
    assert summary.n_falsely_evicted == 0
    # The schedules do hit: otherwise this would show nothing.
    assert summary.n_disturbed > 300
    assert max(summary.recoveries["hang"]) < 10.0


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("first", range(0, 10_000, 2_500))
def test_of_ten_thousand_schedules_every_fit_ends_with_the_undisturbed_bits(first):
    summary = simulate_all(range(first, first + 2_500))
    assert [str(fit) for fit in summary.failures] == []


def test_a_summary_names_the_seeds_that_failed():
    summary = simulate_all(range(3), poison={2})
    assert summary.n_done == 0
    assert [fit.schedule.seed for fit in summary.failures] == [0, 1, 2]
    assert "seed 2: poison, OTHER BITS" in str(summary)


@pytest.mark.parametrize(("n_workers", "n_blocks"), [(1, 3), (2, 1), (3, 16), (7, 40)])
def test_clusters_and_data_of_other_sizes(n_workers, n_blocks):
    for seed in range(25):
        fit = simulate(seed, n_workers=n_workers, n_blocks=n_blocks, n_rounds=4)
        assert fit.ended, str(fit)
        assert fit.same_bits, str(fit)


# -- with the parameter holder ------------------------------------------------------------------


@pytest.mark.parametrize("holder_hosts", [1, 2, 3])
def test_with_a_holder_too_every_fit_ends_with_the_undisturbed_bits(holder_hosts):
    summary = simulate_all(range(40), n_rounds=5, holder_hosts=holder_hosts)
    assert [str(fit) for fit in summary.failures] == []
    assert summary.n_same_bits == 40


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_of_two_thousand_schedules_every_fit_with_a_holder_ends_with_the_undisturbed_bits():
    summary = simulate_all(range(2_000), holder_hosts=2)
    # Three kills in a row that all hit whoever has the same block, the last while it is tried
    # alone, are what poison looks like: it is held to be poison, as it should be.
    poisoned = [fit for fit in summary.failures if fit.reason == "poison"]
    assert all(len(deaths_of(fit)) >= 3 for fit in poisoned)
    assert len(poisoned) <= 1
    assert [str(fit) for fit in summary.failures if fit not in poisoned] == []


def deaths_of(fit):
    return [event.worker for event in fit.events if event.kind == "worker-lost"]


def test_a_promotion_whose_answer_was_lost_in_a_partition_does_not_stall_a_fit():
    fit = simulate(752, holder_hosts=2)
    assert fit.same_bits, str(fit)


@pytest.mark.parametrize("kind", ["kill", "hang", "retire"])
def test_a_replica_takes_over_from_a_primary_that_is_lost_and_no_sum_is(kind):
    duration_s = math.inf if kind == "hang" else 0.0
    n_promoted = 0
    for target in range(4):
        fault = Fault(kind, 2.3, duration_s, target)
        fit = simulate(schedule(fault), noise=QUIET, holder_hosts=2)
        assert fit.same_bits
        assert fit.n_redone == 0
        assert kinds_of(fit)["holder-lost"] == 0
        n_promoted += kinds_of(fit)["holder-promoted"]
    assert n_promoted == 1


def test_when_all_hosts_are_lost_what_they_had_is_done_again():
    faults = [Fault("kill", 2.7, 0.0, target) for target in range(4)]
    fit = simulate(schedule(*faults), noise=QUIET, holder_hosts=2)
    assert fit.same_bits
    assert kinds_of(fit)["holder-lost"] >= 1


def test_without_events_of_the_holder_no_block_is_done_again():
    for seed in range(25):
        fit = simulate(seed, n_rounds=4, holder_hosts=2)
        kinds = kinds_of(fit)
        assert fit.n_redone == 0 or kinds["holder-lost"] or kinds["holder-promoted"]


# -- that the simulation sees what is broken ----------------------------------------------------


def test_it_sees_results_that_are_counted_twice(monkeypatch):
    finished = Ledger.finished

    def counts_all(self, key, now_s):
        finished(self, key, now_s)
        return True, []

    monkeypatch.setattr(Ledger, "finished", counts_all)
    with pytest.raises(ValueError, match="added before"):
        [simulate(seed) for seed in range(100)]


def test_it_sees_a_watcher_that_never_evicts(monkeypatch):
    monkeypatch.setattr(Membership, "_evicted", lambda self, known, evidence: [])
    fits = [
        simulate(schedule(*(Fault("hang", 2.0, math.inf, n) for n in range(4))), noise=QUIET)
        for _ in range(1)
    ]
    # Dask's own limit, five minutes, is all that is left.
    assert all(fit.virtual_s > 250.0 or not fit.ended for fit in fits)


def test_it_sees_a_watcher_that_evicts_whoever_is_silent(monkeypatch):
    monkeypatch.setattr(Membership, "seen", lambda self, worker, view, now_s: [])
    figures = watch_fleet(50.0, FaultPolicy(unreachable_s=4.0))
    assert figures.evicted_per_10000_h > 100.0


# -- fleets -------------------------------------------------------------------------------------


def test_a_fleet_without_faults_is_left_alone():
    figures = watch_fleet(200.0)
    assert figures.worker_h >= 200.0
    assert figures.n_suspected > 20
    assert figures.n_evicted == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_at_most_one_worker_in_ten_thousand_hours_is_evicted_wrongly():
    figures = watch_fleet(30_000.0)
    assert figures.evicted_per_10000_h <= 1.0, str(figures)


def test_skipping_what_is_quiet_changes_no_figure_by_much():
    """Frequent long pauses leave little to skip; few of them leave much."""
    often = watch_fleet(8.0, noise=Noise(holds_per_h=600.0, hold_s=2.0))
    rarely = watch_fleet(40.0, noise=Noise(holds_per_h=2.0, hold_s=2.0))
    assert often.simulated_worker_h > 0.5 * often.worker_h
    assert rarely.simulated_worker_h < 0.2 * rarely.worker_h
