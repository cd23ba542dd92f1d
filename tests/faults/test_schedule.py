"""Schedules of faults: the same from the same seed, sensible, and the same after a trip as JSON."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_dml.faults.schedule import KINDS, PARTITIONS, Fault, Schedule, draw_schedule

draws = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10_000),
        "n_workers": st.integers(1, 6),
        "length_s": st.floats(0.5, 60.0),
        "kinds": st.sets(st.sampled_from(sorted(KINDS)), min_size=1),
    }
)


@given(draws)
def test_a_schedule_is_that_of_its_seed(arguments):
    assert draw_schedule(**arguments) == draw_schedule(**arguments)


@given(draws)
def test_kinds_are_those_asked_for_and_joiners_that_are_needed(arguments):
    schedule = draw_schedule(**arguments)
    drawn = {fault.kind for fault in schedule.faults}
    allowed = set(arguments["kinds"])
    if allowed & {"preempt", "retire"}:
        allowed.add("join")
    assert drawn <= allowed


@given(draws)
def test_faults_begin_in_time_and_what_ends_is_over_in_time(arguments):
    schedule = draw_schedule(**arguments)
    for fault in schedule.faults:
        assert 0.0 < fault.at_s <= schedule.length_s + 1e-3
        assert math.isinf(fault.duration_s) or fault.end_s <= schedule.length_s + 2e-3
    assert list(schedule.faults) == sorted(schedule.faults, key=lambda fault: fault.at_s)


@given(draws)
def test_somebody_is_left_in_the_end(arguments):
    schedule = draw_schedule(**arguments)
    gone = {fault.target for fault in schedule.faults if fault.kind in ("preempt", "retire")}
    joined = [fault.target for fault in schedule.faults if fault.kind == "join"]
    n_workers = arguments["n_workers"]
    assert joined == list(range(n_workers, n_workers + len(joined)))
    assert len(gone) < n_workers + len(joined)


@given(draws)
def test_json_gives_the_same_schedule(arguments):
    schedule = draw_schedule(**arguments)
    text = schedule.to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert Schedule.from_json(text) == schedule


def test_seeds_bring_every_pattern():
    """One fault, several at once, all but one, and all; every kind comes up."""
    schedules = [draw_schedule(seed, 4, 10.0) for seed in range(300)]
    assert {fault.kind for schedule in schedules for fault in schedule.faults} == set(KINDS)
    at_once = {
        sum(1 for fault in schedule.faults if fault.at_s == schedule.faults[0].at_s)
        for schedule in schedules
    }
    assert at_once >= {1, 2, 3, 4}
    assert any(math.isinf(fault.duration_s) for s in schedules for fault in s.faults)


def test_the_number_of_faults_can_be_given():
    assert len(draw_schedule(3, 3, 5.0, kinds=["kill"], n_faults=7).faults) == 7
    assert draw_schedule(3, 3, 5.0, n_faults=0).faults == ()


def test_steps_begin_and_end_each_fault_in_order():
    kill = Fault("kill", 1.0, 0.0, 0)
    cut = Fault("partition-in", 1.5, 2.0, 1)
    hang = Fault("hang", 2.0, math.inf, 2)
    steps = Schedule(0, 3, 5.0, (kill, cut, hang)).steps()
    assert [(step.at_s, step.action, step.fault) for step in steps] == [
        (1.0, "begin", kill),
        (1.5, "begin", cut),
        (2.0, "begin", hang),
        (3.5, "end", cut),
    ]


def test_a_schedule_is_shown_in_words():
    faults = (Fault("kill", 1.0, 0.0, 0), Fault("slow", 1.5, 2.0, 1))
    assert str(Schedule(0, 3, 5.0, faults)) == "kill 0 at 1.0 s; slow 1 at 1.5 s for 2.0 s"


@pytest.mark.parametrize(
    "arguments",
    [
        ("murder", 0.0, 0.0, 0),
        ("kill", -1.0, 0.0, 0),
        ("kill", math.nan, 0.0, 0),
        ("slow", 0.0, math.inf, 0),
        ("slow", 0.0, math.nan, 0),
        ("slow", 0.0, -1.0, 0),
        ("kill", 0.0, 0.0, -1),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(arguments):
    with pytest.raises(ValueError, match=r"Fault\("):
        Fault(*arguments)


@pytest.mark.parametrize(
    ("n_workers", "length_s", "faults"),
    [
        (0, 1.0, ()),
        (1, 0.0, ()),
        (1, math.inf, ()),
        (1, 1.0, (Fault("kill", 0.0, 0.0, 1),)),
        (2, 1.0, (Fault("join", 0.0, 0.0, 3),)),
        (2, 1.0, (Fault("kill", 0.5, 0.0, 0), Fault("kill", 0.4, 0.0, 0))),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(n_workers, length_s, faults):
    with pytest.raises(ValueError, match=r"Schedule\("):
        Schedule(0, n_workers, length_s, faults)


@pytest.mark.parametrize(
    "changed",
    [
        {"n_workers": 0},
        {"length_s": math.inf},
        {"kinds": ()},
        {"kinds": ("kill", "murder")},
        {"n_faults": -1},
    ],
)
def test_nothing_is_drawn_from_nonsense(changed):
    arguments = {"seed": 0, "n_workers": 2, "length_s": 5.0} | changed
    with pytest.raises(ValueError, match="draw_schedule"):
        draw_schedule(**arguments)


@pytest.mark.parametrize("text", ["[]", "{}", '{"seed": 0}', "nonsense", '{"faults": [1]}'])
def test_other_json_is_refused(text):
    with pytest.raises(ValueError, match=r"schedule|Expecting"):
        Schedule.from_json(text)


def test_partitions_are_kinds():
    assert set(KINDS) > PARTITIONS
