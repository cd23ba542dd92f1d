import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from dask_dml.faults.detectors import LocalPause, PhiAccrual, deviations_of


def beaten(intervals, **settings):
    """A detector that has heard heartbeats at these intervals."""
    detector = PhiAccrual(**{"pause_s": 1.5, **settings})
    now_s = 100.0
    detector.heard(now_s)
    for interval_s in intervals:
        now_s += interval_s
        detector.heard(now_s)
    return detector


def test_nothing_is_suspected_before_the_first_heartbeat():
    assert PhiAccrual(1.5).phi(1e9) == 0.0


def test_phi_is_the_logarithm_of_the_tail():
    detector = beaten([0.5] * 2000)
    for silence_s in (1.9, 2.0, 2.2, 2.5):
        tail = norm.sf(silence_s, loc=0.5 + 1.5, scale=0.1)
        assert detector.phi(detector.last_s + silence_s) == pytest.approx(-math.log10(tail))


def test_phi_is_right_far_out_where_the_tail_underflows():
    detector = beaten([0.5] * 2000)
    # log Q(z) is -z**2/2 - log(z sqrt(2 pi)) to a relative error of 1 / z**2.
    z = (3600.0 - 2.0) / 0.1
    expected = (z**2 / 2 + math.log(z * math.sqrt(2 * math.pi))) / math.log(10)
    assert detector.phi(detector.last_s + 3600.0) == pytest.approx(expected, rel=1e-9)
    assert math.isfinite(detector.phi(detector.last_s + 1e9))


@given(st.lists(st.floats(0.0, 20.0), max_size=60), st.floats(0.0, 100.0), st.floats(0.0, 100.0))
def test_phi_never_falls_as_silence_grows(intervals, one_s, other_s):
    detector = beaten(intervals)
    sooner_s, later_s = sorted((one_s, other_s))
    assert 0.0 <= detector.phi_of(sooner_s) <= detector.phi_of(later_s)


@given(st.floats(0.5, 300.0), st.lists(st.floats(0.2, 2.0), max_size=50))
def test_the_silence_of_a_threshold_is_where_phi_reaches_it(phi, intervals):
    detector = beaten(intervals)
    silence_s = detector.silence_s(deviations_of(phi))
    assert detector.phi_of(silence_s) == pytest.approx(phi, rel=1e-6)


def test_the_usual_threshold_is_five_point_six_deviations():
    assert deviations_of(8.0) == pytest.approx(norm.isf(1e-8), rel=1e-9)


def test_mean_and_deviation_are_those_of_the_intervals():
    rng = random.Random(1)
    intervals = [rng.uniform(0.5, 1.5) for _ in range(800)]
    detector = beaten(intervals)
    assert detector.mean_s == pytest.approx(statistics.fmean(intervals), rel=0.01)
    assert detector.sigma_s == pytest.approx(statistics.pstdev(intervals), rel=0.01)


def test_old_intervals_are_forgotten():
    detector = beaten([0.5] * 500 + [1.0] * 500, window=50)
    assert detector.mean_s == pytest.approx(1.0, rel=1e-3)
    assert detector.sigma_s == pytest.approx(0.1)


def test_a_burst_is_no_rhythm():
    steady = beaten([0.5] * 100)
    burst = beaten([0.5] * 100 + [0.001] * 40)
    assert burst.silence_s(5.6) == steady.silence_s(5.6)
    assert burst.last_s > steady.last_s


@given(st.floats(3.0, 1e6))
def test_a_long_gap_counts_no_more_than_what_is_acceptable(gap_s):
    assert beaten([0.5] * 50 + [gap_s]).silence_s(5.6) <= beaten([0.5] * 50 + [2.5]).silence_s(5.6)


def test_a_worker_that_is_always_slow_is_suspect_no_more_after_a_while():
    detector = beaten([3.0] * 20)
    assert detector.phi_of(3.2) < 1.0


def test_time_that_goes_backwards_is_harmless():
    detector = beaten([0.5] * 10)
    detector.heard(detector.last_s - 5.0)
    assert detector.phi(detector.last_s + 0.5) < 0.1


def test_jitter_is_the_mean_difference_of_neighbouring_intervals():
    assert beaten([0.5] * 300).jitter_s == pytest.approx(0.0, abs=1e-6)
    assert beaten([0.4, 0.6] * 300).jitter_s == pytest.approx(0.2, rel=1e-3)


def test_usual_ticks_lose_no_time():
    clock = LocalPause(0.25, slack_s=0.5)
    times = [clock.tick(now_s) for now_s in (10.0, 10.25, 10.9, 11.2)]
    assert times == [10.0, 10.25, 10.9, 11.2]
    assert clock.lost_s == 0.0
    assert clock.resumed_s == -math.inf


def test_what_the_watcher_slept_through_is_taken_out():
    clock = LocalPause(0.25, slack_s=0.5)
    clock.tick(10.0)
    assert clock.tick(3610.0) == pytest.approx(10.75)
    assert clock.resumed_s == pytest.approx(10.75)
    assert clock.tick(3610.25) == pytest.approx(11.0)


def test_a_pause_is_taken_out_of_what_is_handed_over_before_the_late_tick():
    clock = LocalPause(0.25, slack_s=0.5)
    clock.tick(10.0)
    assert clock.time_s(20.0) == pytest.approx(10.75)
    assert clock.tick(20.0) == pytest.approx(10.75)
    assert clock.lost_s == pytest.approx(9.25)


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 30.0)), max_size=40))
def test_the_clock_never_goes_back_nor_faster_than_time(events):
    clock = LocalPause(0.25)
    now_s, time_s = 0.0, clock.tick(0.0)
    for is_tick, step_s in events:
        now_s += step_s
        next_s = clock.tick(now_s) if is_tick else clock.time_s(now_s)
        assert time_s - 1e-9 <= next_s <= time_s + step_s + 1e-9
        time_s = next_s
