"""Fits on real processes under seeded schedules of faults: all end, with the same bits."""

from __future__ import annotations

import pytest

from dask_dml.faults.schedule import KINDS, draw_schedule

pytestmark = pytest.mark.usefixtures("no_collector")

SECONDS = 4.0
DATA = ("stored", "lazy", "persisted", "streamed")


def assert_good(trial):
    told = "\n".join(f"{i.at_s:.2f} s: {i.outcome}" for i in trial.injections)
    assert trial.error == "", f"{trial.schedule}\n{told}"
    assert trial.same_bits, f"{trial.schedule}\n{told}"
    assert trial.leftovers == (), f"{trial.schedule}\n{told}"


@pytest.mark.parametrize("seed", range(20, 40))
def test_a_schedule_of_faults(arena, seed):
    """Of all kinds, in all patterns; what is fitted takes turns, too."""
    schedule = draw_schedule(seed, arena.cluster.n_workers, SECONDS)
    assert_good(arena.trial(schedule, DATA[seed % len(DATA)]))


def test_the_schedules_above_have_every_kind():
    schedules = [draw_schedule(seed, 3, SECONDS) for seed in range(20, 40)]
    assert {fault.kind for schedule in schedules for fault in schedule.faults} == set(KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1_000, 1_200))
def test_many_schedules_of_faults(arena, seed):
    schedule = draw_schedule(seed, arena.cluster.n_workers, 2 * SECONDS)
    assert_good(arena.trial(schedule, DATA[seed % len(DATA)]))
