"""Metrics that are added up block by block are those of scikit-learn on all rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from dask_dml.errors import DataError
from dask_dml.report.metrics import ClassificationMetrics, RegressionMetrics

CUTS = st.lists(st.integers(0, 60), max_size=5).map(sorted)


def parts(cuts, *arrays):
    """Arrays cut alike; None stays None."""
    columns = [[None] * (len(cuts) + 1) if a is None else np.split(a, cuts) for a in arrays]
    return zip(*columns, strict=True)


def weights(rng, weighted):
    return rng.uniform(0.1, 3.0, 60) if weighted else None


@given(st.integers(0, 10_000), CUTS, st.booleans())
def test_two_classes(seed, cuts, weighted):
    rng = np.random.default_rng(seed)
    classes = np.array(["late", "on time"], dtype=object)
    y = classes[np.r_[0, 1, rng.integers(0, 2, 58)]]
    scores = np.round(rng.normal(0, 3, 60), 1)
    weight = weights(rng, weighted)
    found = ClassificationMetrics(classes)
    for block in parts(cuts, y, scores, weight):
        found.add(*block)
    p = 1 / (1 + np.exp(-scores))
    positive = y == "on time"
    assert found.result() == pytest.approx(
        {
            "n_rows": 60,
            "log_loss": metrics.log_loss(positive, p, sample_weight=weight),
            "accuracy": metrics.accuracy_score(positive, scores > 0, sample_weight=weight),
            "roc_auc": metrics.roc_auc_score(positive, scores, sample_weight=weight),
        }
    )


@given(st.integers(0, 10_000), CUTS, st.booleans())
def test_several_classes(seed, cuts, weighted):
    rng = np.random.default_rng(seed)
    classes = np.array([2, 5, 7, 11])
    y, scores, weight = rng.choice(classes, 60), rng.normal(0, 3, (60, 4)), weights(rng, weighted)
    found = ClassificationMetrics(classes)
    for block in parts(cuts, y, scores, weight):
        found.add(*block)
    p = np.exp(scores)
    p /= p.sum(axis=1, keepdims=True)
    hits = classes[scores.argmax(axis=1)]
    assert found.result() == pytest.approx(
        {
            "n_rows": 60,
            "log_loss": metrics.log_loss(y, p, sample_weight=weight, labels=classes),
            "accuracy": metrics.accuracy_score(y, hits, sample_weight=weight),
        }
    )


@given(st.integers(0, 10_000), CUTS, st.booleans())
def test_numbers_far_from_zero(seed, cuts, weighted):
    rng = np.random.default_rng(seed)
    y = 1e6 + rng.normal(size=60)
    predicted, weight = y + rng.normal(size=60), weights(rng, weighted)
    found = RegressionMetrics()
    for block in parts(cuts, y, predicted, weight):
        found.add(*block)
    squared = metrics.mean_squared_error(y, predicted, sample_weight=weight)
    assert found.result() == pytest.approx(
        {
            "n_rows": 60,
            "r2": metrics.r2_score(y, predicted, sample_weight=weight),
            "rmse": np.sqrt(squared),
            "mae": metrics.mean_absolute_error(y, predicted, sample_weight=weight),
        }
    )


def test_a_sure_and_wrong_score_has_a_finite_loss():
    found = ClassificationMetrics(np.array([0, 1]))
    found.add(np.array([0, 1]), np.array([800.0, 800.0]))
    assert found.result()["log_loss"] == 400.0


def test_the_auc_of_one_class_is_nan():
    found = ClassificationMetrics(np.array([0, 1]))
    found.add(np.array([1, 1]), np.array([0.5, -0.5]))
    assert np.isnan(found.result()["roc_auc"])


def test_the_r2_of_a_constant_is_nan():
    found = RegressionMetrics()
    found.add(np.array([2.0, 2.0]), np.array([2.0, 1.0]))
    assert np.isnan(found.result()["r2"])
    assert found.result()["mae"] == 0.5


@pytest.mark.parametrize(("classes", "y"), [([0, 1], [0, 2]), ([1, 2], [0, 1])])
def test_a_label_that_the_model_does_not_know_is_named(classes, y):
    found = ClassificationMetrics(np.array(classes))
    with pytest.raises(DataError, match=r"y holds \[(2|0)\], which the model does not know"):
        found.add(np.array(y), np.zeros(2))
