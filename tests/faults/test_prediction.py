from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dask_dml.faults.policy import FaultPolicy
from dask_dml.faults.prediction import INPUTS, Predictor, expand
from dask_dml.faults.telemetry import PREDICTOR_FEATURES, Telemetry

N = len(INPUTS)
finite = st.floats(-1e6, 1e6)


def vectors(elements=finite):
    return st.lists(elements, min_size=N, max_size=N).map(tuple)


@st.composite
def predictors(draw):
    lows = draw(vectors())
    return Predictor(
        lows=lows,
        highs=tuple(low + draw(st.floats(0.0, 1e3)) for low in lows),
        means=draw(vectors()),
        scales=draw(vectors(st.floats(1e-6, 1e6))),
        coefficients=draw(vectors()),
        intercept=draw(finite),
    )


def some(**changes):
    parts = {
        "lows": (-1e3,) * N,
        "highs": (1e3,) * N,
        "means": (0.0,) * N,
        "scales": (1.0,) * N,
        "coefficients": (0.0,) * N,
        "intercept": 0.0,
    }
    return Predictor(**(parts | changes))


def rows(*telemetry, jitter=0.02):
    return np.array([[*one, jitter] for one in telemetry])


BUSY = Telemetry(rss_share=0.55, cpu_share=1.0, executing=1.0, task_s=3.0)


@given(predictors())
def test_json_keeps_every_bit(predictor):
    assert Predictor.from_json(predictor.to_json()) == predictor


@given(predictors(), arrays(np.float64, (4, len(PREDICTOR_FEATURES)), elements=st.floats(width=64)))
def test_probabilities_are_probabilities_whatever_comes(predictor, X):
    probabilities = predictor.probabilities(X)
    assert probabilities.shape == (4,)
    assert ((probabilities >= 0.0) & (probabilities <= 1.0)).all()
    assert (probabilities[~np.isfinite(X).all(axis=1)] == 0.0).all()


def test_it_is_the_logistic_function_of_the_standardised_inputs():
    coefficients = tuple(np.linspace(-1.0, 1.0, N))
    predictor = some(means=(0.1,) * N, scales=(2.0,) * N, coefficients=coefficients, intercept=0.3)
    X = rows(BUSY, Telemetry(rss_share=0.9, rss_slope=0.05))
    scores = (expand(X) - 0.1) / 2.0 @ np.array(coefficients) + 0.3
    np.testing.assert_allclose(predictor.probabilities(X), 1.0 / (1.0 + np.exp(-scores)))


def test_nobody_asks_for_no_workers_in_vain():
    assert some().probabilities(np.empty((0, len(PREDICTOR_FEATURES)))).shape == (0,)


@pytest.mark.parametrize(
    ("share", "slope", "left_s"),
    [
        (0.45, 0.05, 10.0),
        (0.45, 0.001, 120.0),
        (0.45, 0.0, 120.0),
        (0.45, -0.05, 120.0),
        (0.96, 0.05, 0.0),
        (0.0, 0.0, 120.0),  # no limit
    ],
)
def test_the_time_left_is_that_to_the_limit(share, slope, left_s):
    X = rows(Telemetry(rss_share=share, rss_slope=slope))
    column = expand(X)[:, INPUTS.index("time_left")]
    assert np.expm1(column) == pytest.approx(left_s)


@given(st.floats(0.0, 1e9))
def test_what_is_beyond_the_fitted_range_counts_as_its_end(task_s):
    at = INPUTS.index("task_s")
    coefficients = tuple(float(i == at) for i in range(N))
    predictor = some(highs=tuple(60.0 for _ in range(N)), coefficients=coefficients)
    (beyond,) = predictor.probabilities(rows(BUSY._replace(task_s=60.0 + task_s)))
    assert beyond == predictor.probabilities(rows(BUSY._replace(task_s=60.0)))[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"means": (0.0,)}, "means"),
        ({"coefficients": (math.nan,) * N}, "coefficients"),
        ({"scales": (0.0,) * N}, "scales"),
        ({"lows": (2e3,) * N}, "lows"),
        ({"intercept": math.inf}, "intercept"),
        ({"horizon_s": 0.0}, "horizon_s"),
        ({"version": 2}, "version"),
        ({"features": ("rss_share",)}, "features"),
    ],
)
def test_a_predictor_that_makes_no_sense_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        some(**changes)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 2, 3)])
def test_telemetry_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="shape"):
        some().probabilities(np.zeros(shape))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": "dask-dml-model"}',
        json.dumps({**json.loads(some().to_json()), "surprise": 1}),
        json.dumps({**json.loads(some().to_json()), "means": 0.0}),
        json.dumps({**json.loads(some().to_json()), "version": 7}),
    ],
)
def test_other_text_is_no_predictor(text):
    with pytest.raises(ValueError, match="Predictor"):
        Predictor.from_json(text)


class TestPackaged:
    threshold = FaultPolicy().loss_probability

    def test_it_says_how_good_it_is(self):
        (figures,) = [
            one
            for one in Predictor.packaged().card["held_out"]
            if one["threshold"] == self.threshold
        ]
        assert figures["precision"] > 0.9
        assert figures["n_losses"] >= 20
        assert figures["lead_s"][1] > 1.0

    def test_it_sees_memory_run_out(self):
        X = rows(*(BUSY._replace(rss_share=0.9, rss_slope=slope) for slope in (0.02, 0.05, 0.2)))
        assert (Predictor.packaged().probabilities(X) >= self.threshold).all()

    @given(
        share=st.floats(0.0, 0.7),
        slope=st.floats(-0.5, 0.0),
        loop_lag_s=st.floats(0.0, 20.0),
        cpu_share=st.floats(0.0, 64.0),
        executing=st.integers(0, 64),
        task_s=st.floats(0.0, 1e6),
        spilled_share=st.floats(0.0, 5.0),
        steal_share=st.floats(0.0, 1.0),
        swap_share=st.floats(0.0, 1.0),
        reconnects=st.integers(0, 100),
        jitter=st.floats(0.0, 20.0),
    )
    def test_it_gives_up_nobody_whose_memory_does_not_grow(self, share, slope, jitter, **others):
        X = rows(Telemetry(rss_share=share, rss_slope=slope, **others), jitter=jitter)
        assert Predictor.packaged().probabilities(X)[0] < self.threshold
