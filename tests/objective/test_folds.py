from __future__ import annotations

import itertools
from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import KFold, StratifiedKFold

from dask_dml.errors import DataError
from dask_dml.objective import LogisticLoss, Request, TargetKind, block_statistics, survey_block
from dask_dml.objective.folds import (
    FoldEncoder,
    FoldRequest,
    consecutive_folds,
    listed_folds,
    stratified_folds,
)
from dask_dml.objective.survey import HeldOut, TargetEncoder

pytestmark = pytest.mark.filterwarnings("ignore:The least populated class")


def surveyed(y, chunks):
    edges = np.cumsum([0, *chunks])
    return reduce(
        add,
        (
            survey_block(TargetKind.CLASSES, ("x",), i, np.zeros((b - a, 1)), y[a:b], None)
            for i, (a, b) in enumerate(itertools.pairwise(edges))
        ),
    )


def folds_of_rows(encoder, y, chunks):
    edges = np.cumsum([0, *chunks])
    return np.concatenate(
        [
            encoder.of_block(i).encode(y[a:b], None).held_out.fold
            for i, (a, b) in enumerate(itertools.pairwise(edges))
        ]
    )


def held_out_by(splitter, y):
    folds = np.empty(len(y), dtype=int)
    for k, (_, rows) in enumerate(splitter.split(np.zeros((len(y), 1)), y)):
        folds[rows] = k
    return folds


chunked_labels = st.lists(
    st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=5
)


@given(chunked_labels, st.integers(2, 6))
def test_stratified_folds_are_scikit_learns(labels, n_folds):
    y, chunks = np.concatenate(labels), [len(block) for block in labels]
    survey = surveyed(y, chunks)
    if np.all(survey.class_rows < n_folds):
        with pytest.raises(DataError, match="members in each class"):
            stratified_folds(survey, len(chunks), n_folds)
        return
    encoder = FoldEncoder(
        TargetEncoder(survey.classes),
        stratified_folds(survey, len(chunks), n_folds),
    )
    expected = held_out_by(StratifiedKFold(n_folds), y)
    np.testing.assert_array_equal(folds_of_rows(encoder, y, chunks), expected)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(2, 6))
def test_consecutive_folds_are_scikit_learns(chunks, n_folds):
    y = np.arange(float(sum(chunks)))
    if len(y) < n_folds:
        with pytest.raises(DataError, match="number of samples"):
            consecutive_folds(chunks, n_folds)
        return
    encoder = FoldEncoder(TargetEncoder(), consecutive_folds(chunks, n_folds))
    np.testing.assert_array_equal(folds_of_rows(encoder, y, chunks), held_out_by(KFold(n_folds), y))


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(90, 4)).astype(np.float32)
    y = (rng.random(90) < 0.5).astype(np.int32)
    return X, y, rng.exponential(size=90)


@settings(max_examples=20)
@given(folds=st.lists(st.integers(0, 3), min_size=90, max_size=90))
def test_sums_of_the_other_folds_are_those_of_the_training_rows(rows, folds):
    X, y, weight = rows
    folds = np.array(folds)
    request = Request(LogisticLoss(), np.array([[0.3, -0.2, 0.1, 0.5, 0.2]]), np.ones(4), 2)
    asked = FoldRequest((request,), 4)
    whole = asked.of_block(X, y, weight, HeldOut(folds, None))
    halves = add(
        *(
            asked.of_block(X[part], y[part], weight[part], HeldOut(folds[part], None))
            for part in (slice(50), slice(50, None))
        )
    )
    for sums in (whole, halves):
        (answer,) = sums.answers
        for k in range(4):
            training = folds != k
            if not training.any():
                with pytest.raises(DataError, match="none is left"):
                    answer.training(k)
                continue
            direct = block_statistics(request, X[training], y[training], weight[training])
            found = answer.training(k)
            assert found.n_rows == direct.n_rows
            assert found.loss == pytest.approx(direct.loss, rel=1e-13)
            np.testing.assert_allclose(found.gram, direct.gram, rtol=1e-12, atol=1e-12)
            assert answer.training_weight(k) == pytest.approx(weight[training].sum())
        np.testing.assert_allclose(
            answer.total.gradient, block_statistics(request, X, y, weight).gradient, rtol=1e-12
        )


def test_score_weights_are_those_given_without_those_of_classes():
    target = TargetEncoder(np.array([0, 1]), np.array([2.0, 3.0]))
    y, weight, folds = np.array([0, 1]), np.array([1.0, 10.0]), listed_folds(np.array([1, 0]), [2])
    encoded = FoldEncoder(target, folds).of_block(0).encode(y, weight)
    np.testing.assert_array_equal(encoded.weight, [2.0, 30.0])
    np.testing.assert_array_equal(encoded.held_out.weight, weight)
    assert FoldEncoder(target, folds).of_block(0).encode(y, None).held_out.weight is None
