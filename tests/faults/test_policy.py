from __future__ import annotations

import math
import pickle
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_dml.faults import FaultPolicy

POSITIVE = (
    "heartbeat_s", "phi", "pause_s", "probe_s", "confirm_s", "unreachable_s", "wait_for_workers_s",
)  # fmt: skip
SHARES = ("loss_probability", "speculation_quorum")
COUNTS = {"indirect_probes": 0, "retries": 0, "poison_deaths": 1, "replicas": 1}
PATIENT = sorted(
    {*POSITIVE, *SHARES, *COUNTS, "speculation_factor"} - {"heartbeat_s"}
)  # fmt: skip


class Constant:
    """A predictor that says the same of all."""

    def probabilities(self, X):
        return X[:, 0]


@st.composite
def policies(draw):
    heartbeat_s = draw(st.floats(0.01, 2.0))
    confirm_s = heartbeat_s + draw(st.floats(0.1, 10.0))
    return FaultPolicy(
        monitor=draw(st.booleans()),
        heartbeat_s=heartbeat_s,
        phi=draw(st.floats(0.5, 20.0)),
        pause_s=draw(st.floats(0.1, 20.0)),
        probe_s=draw(st.floats(0.1, 5.0)),
        indirect_probes=draw(st.integers(0, 5)),
        confirm_s=confirm_s,
        unreachable_s=confirm_s + draw(st.floats(0.0, 30.0)),
        loss_probability=draw(st.floats(0.01, 1.0)),
        restart=draw(st.booleans()),
        speculation_quorum=draw(st.floats(0.01, 1.0)),
        speculation_factor=draw(st.floats(1.01, 10.0)),
        retries=draw(st.integers(0, 20)),
        poison_deaths=draw(st.integers(1, 5)),
        replicas=draw(st.integers(1, 3)),
        wait_for_workers_s=draw(st.floats(1.0, 1000.0)),
    )


@pytest.mark.parametrize("name", POSITIVE)
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, -math.inf])
def test_a_time_or_threshold_that_is_not_positive_and_finite_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"FaultPolicy\({name}=.*finite, above 0.*got"):
        FaultPolicy(**{name: value})


@pytest.mark.parametrize("name", SHARES)
@pytest.mark.parametrize("value", [0.0, -0.1, 1.5, math.nan])
def test_a_share_that_is_none_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"{name}=.*at most 1"):
        FaultPolicy(**{name: value})


@pytest.mark.parametrize("value", [1.0, 0.5, 0.0, math.inf])
def test_a_straggler_takes_longer_than_is_usual(value):
    with pytest.raises(ValueError, match="speculation_factor"):
        FaultPolicy(speculation_factor=value)


@pytest.mark.parametrize(("name", "least"), COUNTS.items())
def test_a_count_below_its_least_is_refused(name, least):
    FaultPolicy(**{name: least})
    with pytest.raises(ValueError, match=rf"{name}=.*at least {least}, got {least - 1}"):
        FaultPolicy(**{name: least - 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, "1") for name in (*POSITIVE, *SHARES, *COUNTS)),
        *((name, True) for name in (*POSITIVE, *SHARES, *COUNTS)),
        *((name, 1.5) for name in COUNTS),
        ("heartbeat_s", None),
        ("monitor", 1),
        ("restart", None),
        ("predictor", object()),
        ("predictor", "model.npz"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_name(name, value):
    with pytest.raises(TypeError, match=rf"FaultPolicy\({name}="):
        FaultPolicy(**{name: value})


def test_whoever_is_seen_stopped_is_surer_to_be_dead_than_who_is_only_unreachable():
    with pytest.raises(ValueError, match="make confirm_s the smaller one"):
        FaultPolicy(confirm_s=20.0, unreachable_s=10.0)
    FaultPolicy(confirm_s=10.0, unreachable_s=10.0)


def test_silence_must_be_longer_than_the_interval_of_heartbeats():
    with pytest.raises(ValueError, match="heartbeat_s must be smaller"):
        FaultPolicy(heartbeat_s=3.0, confirm_s=3.0)


def test_integers_will_do_for_numbers():
    assert FaultPolicy(phi=12, confirm_s=4) == FaultPolicy(phi=12.0, confirm_s=4.0)


def test_every_argument_is_checked_or_named_here():
    checked = {*POSITIVE, *SHARES, *COUNTS, "speculation_factor", "monitor", "restart", "predictor"}
    assert {field.name for field in fields(FaultPolicy)} == checked


def test_a_policy_travels():
    policy = FaultPolicy(phi=9.5, predictor=Constant())
    copy = pickle.loads(pickle.dumps(policy))  # noqa: S301
    assert copy.phi == policy.phi
    assert isinstance(copy.predictor, Constant)


@given(policies(), policies())
def test_no_threshold_of_the_most_patient_policy_is_less_patient_than_either(one, other):
    both = one.most_patient(other)
    for name in PATIENT:
        assert getattr(both, name) == max(getattr(one, name), getattr(other, name))
    assert both.heartbeat_s == min(one.heartbeat_s, other.heartbeat_s)
    assert both.monitor == (one.monitor or other.monitor)
    assert both.restart == (one.restart and other.restart)


@given(policies(), policies(), policies())
def test_in_which_order_policies_are_combined_does_not_matter(a, b, c):
    assert a.most_patient(a) == a
    assert a.most_patient(b) == b.most_patient(a)
    assert a.most_patient(b).most_patient(c) == a.most_patient(b.most_patient(c))


def test_the_predictor_is_that_of_the_first_policy_that_has_one():
    first, second = Constant(), Constant()
    assert FaultPolicy(predictor=first).most_patient(FaultPolicy()).predictor is first
    assert FaultPolicy().most_patient(FaultPolicy(predictor=second)).predictor is second
    both = FaultPolicy(predictor=first).most_patient(FaultPolicy(predictor=second))
    assert both.predictor is first
