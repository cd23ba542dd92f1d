"""Moments of one pass stand for all that least squares asks of the rows."""

from __future__ import annotations

from functools import reduce
from itertools import pairwise
from operator import add

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_dml.objective import Request, SquaredLoss, TargetKind, block_statistics, survey_block
from dask_dml.objective.moments import block_moments


def rows(n=900, p=4, seed=0, far=0.0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p)) + far * np.arange(p)
    y = X @ np.arange(1.0, p + 1.0) + rng.normal(size=n)
    return X, y, rng.random(n) * (rng.random(n) < 0.8)


def exact(X, y, weight):
    Z = np.column_stack([X, y]).astype(np.longdouble)
    w = (np.ones(len(Z)) if weight is None else weight).astype(np.longdouble)
    mean = (w @ Z) / w.sum()
    return mean, (w[:, None] * (Z - mean)).T @ (Z - mean)


@pytest.mark.parametrize("far", [0.0, 1e6])
@pytest.mark.parametrize("weighted", [False, True])
def test_moments_of_blocks_add_up_to_those_of_all_rows(far, weighted):
    X, y, weight = rows(far=far)
    w = weight if weighted else None
    edges = [0, 0, 300, 301, 900, 900]
    parts = [
        block_moments(X[a:b], y[a:b], None if w is None else w[a:b]) for a, b in pairwise(edges)
    ]
    found = reduce(add, parts)
    mean, scatter = exact(X, y, w)
    spread = np.sqrt(np.diag(scatter)).astype(float)
    assert found.n_rows == 900
    np.testing.assert_allclose(found.mean, mean.astype(float), rtol=1e-14)
    np.testing.assert_allclose(
        found.scatter / np.outer(spread, spread),
        (scatter / np.outer(spread, spread)).astype(float),
        atol=1e-13 * (1.0 + far / 1e3),
        rtol=0,
    )
    np.testing.assert_array_equal(found.scatter, found.scatter.T)


def test_first_rows_that_are_not_like_the_others_cost_few_digits():
    X, y, _ = rows(20_000)
    X[:256] += 1e8
    found = block_moments(X, y, None)
    _, scatter = exact(X, y, None)
    np.testing.assert_allclose(found.scatter, scatter.astype(float), rtol=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    n=st.integers(1, 300),
    p=st.integers(1, 12),
    order=st.sampled_from([1, 2]),
    weighted=st.booleans(),
    with_intercept=st.booleans(),
    sparse=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_they_give_the_sums_of_the_squared_loss(
    n, p, order, weighted, with_intercept, sparse, seed
):
    X, y, weight = rows(n, p, seed)
    w = weight if weighted and np.any(weight) else None
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=(1, p + with_intercept))
    request = Request(SquaredLoss(), theta, rng.normal(size=p), order)
    block = scipy.sparse.csr_array(X) if sparse else X
    found = block_moments(block, y, w).statistics(request)
    expected = block_statistics(request, X, y, w)
    assert found.n_rows == expected.n_rows
    size = n * (1.0 + np.abs(theta).sum()) ** 2 * (p + 1.0) ** 2
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-12, atol=1e-14 * size)
    np.testing.assert_allclose(found.gradient, expected.gradient, rtol=1e-12, atol=1e-14 * size)
    if order == 2:
        np.testing.assert_allclose(found.gram, expected.gram, rtol=1e-12, atol=1e-14 * size)
    else:
        assert found.gram is None


def test_rows_without_any_weight_have_no_moments():
    X, y, _ = rows()
    nothing = block_moments(X, y, np.zeros(len(y)))
    some = block_moments(X[:100], y[:100], None)
    for total in (nothing + some, some + nothing):
        np.testing.assert_array_equal(total.mean, some.mean)
        np.testing.assert_array_equal(total.scatter, some.scatter)
    assert (nothing + nothing).weight == 0.0
    assert block_moments(X[:0], y[:0], None).weight == 0.0


def test_a_survey_brings_them_when_asked():
    X, y, weight = rows()
    names = tuple("abcd")
    found = survey_block(TargetKind.NUMBERS, names, 0, X, y, weight, with_moments=True)
    expected = block_moments(X, y, weight)
    assert found.moments is not None
    np.testing.assert_array_equal(found.moments.scatter, expected.scatter)
    np.testing.assert_allclose(found.moments.mean[:-1], found.mean, rtol=1e-13)
    assert (found + found).moments.weight == 2.0 * expected.weight
    without = survey_block(TargetKind.NUMBERS, names, 1, X, y, weight)
    assert without.moments is None
    assert (found + without).moments is None
    assert found.nbytes > without.nbytes
