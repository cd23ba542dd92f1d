"""Sums of sparse blocks: those of the dense ones, without ever being dense."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_dml.errors import DataError
from dask_dml.objective import (
    LogisticLoss,
    MultinomialLoss,
    PoissonLoss,
    Request,
    SquaredHingeLoss,
    SquaredLoss,
    TargetKind,
    block_statistics,
    survey_block,
)
from dask_dml.objective.blocks import reference_statistics
from dask_dml.objective.held_out import Accuracy, HeldOutRequest
from dask_dml.objective.implicit import subblock_rows
from dask_dml.objective.survey import HeldOut

LOSSES = [LogisticLoss(), SquaredLoss(), PoissonLoss(), MultinomialLoss(3), SquaredHingeLoss(3)]


def made(n, p, density=0.2, dtype="f8", seed=0, index="i4"):
    """Rows with a column that is nowhere zero and some rows that are zero elsewhere."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p)) * (rng.random((n, p)) < density)
    X[:, p // 2] = rng.uniform(1.0, 2.0, n)
    X = scipy.sparse.csr_array(X.astype(dtype))
    X.indices, X.indptr = X.indices.astype(index), X.indptr.astype(index)
    return X, rng.integers(0, 3, n).astype(np.int32), rng.uniform(0.0, 2.0, n)


def request(loss, p, order=2, with_intercept=True, center=None, seed=0):
    theta = np.random.default_rng(seed).normal(size=(loss.n_outputs, p + with_intercept))
    return Request(loss, 0.3 * theta, np.zeros(p) if center is None else center, order)


def target_of(loss, y):
    return y if loss.n_outputs > 1 else np.minimum(y, 1)


def agree(mine, theirs, size):
    assert mine.n_rows == theirs.n_rows
    np.testing.assert_allclose(mine.loss, theirs.loss, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(mine.gradient, theirs.gradient, rtol=1e-11, atol=1e-12 * size)
    if theirs.gram is None:
        assert mine.gram is None
    else:
        np.testing.assert_allclose(mine.gram, theirs.gram, rtol=1e-11, atol=1e-12 * size)


def bits(statistics):
    gram = b"" if statistics.gram is None else statistics.gram.tobytes()
    return np.float64(statistics.loss).tobytes() + statistics.gradient.tobytes() + gram


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 300),
    p=st.integers(1, 40),
    density=st.sampled_from([0.0, 0.1, 1.0]),
    order=st.sampled_from([1, 2]),
    loss=st.sampled_from(LOSSES),
    dtype=st.sampled_from(["f4", "f8"]),
    index=st.sampled_from(["i4", "i8"]),
    weighted=st.booleans(),
    with_intercept=st.booleans(),
    centred=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_sums_are_those_of_the_dense_block(
    n, p, density, order, loss, dtype, index, weighted, with_intercept, centred, seed
):
    X, y, weight = made(n, p, density, dtype, seed, index)
    center = np.linspace(-1.0, 1.0, p) * centred
    asked = request(loss, p, order, with_intercept, center, seed)
    target, w = target_of(loss, y), weight if weighted else None
    dense = reference_statistics(asked, X.toarray(), target, w)
    agree(block_statistics(asked, X, target, w), dense, 100.0 * max(n, 1))


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_sums_over_several_sub_blocks_are_those_of_the_dense_block(loss):
    n = 2 * subblock_rows(loss.n_outputs) + 7
    X, y, weight = made(n, 6)
    asked = request(loss, 6, center=np.full(6, 0.5))
    dense = reference_statistics(asked, X.toarray(), target_of(loss, y), weight)
    agree(block_statistics(asked, X, target_of(loss, y), weight), dense, 100.0 * n)


def unaligned(values):
    shifted = np.frombuffer(b"\0" + values.tobytes(), np.uint8)[1:].view(values.dtype)
    assert not shifted.flags.aligned
    return shifted


def with_parts(X, change):
    return type(X)((change(X.data), change(X.indices), change(X.indptr)), shape=X.shape)


def unsorted(X):
    return X[:, ::-1].tocoo().tocsr()[:, ::-1]


def doubled(X):
    """Each value as the sum of two equal parts."""
    parts = [np.repeat(0.5 * X.data, 2), np.repeat(X.indices, 2), 2 * X.indptr]
    return type(X)(tuple(parts), shape=X.shape)


FORMS = {
    "matrix": scipy.sparse.csr_matrix,
    "CSC": scipy.sparse.csc_array,
    "COO": scipy.sparse.coo_array,
    "not aligned": lambda X: with_parts(X, unaligned),
    "read-only": lambda X: with_parts(X, lambda v: np.frombuffer(v.tobytes(), v.dtype)),
    "64-bit indices": lambda X: made(700, 12, dtype=X.dtype, index="i8")[0],
    "unsorted": unsorted,
    "doubled": doubled,
}


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("form", FORMS)
def test_the_bits_do_not_depend_on_how_a_block_lies_in_memory(form, dtype):
    X, y, weight = made(700, 12, dtype=dtype)
    asked = request(LogisticLoss(), 12, center=np.full(12, 0.3))
    plain = block_statistics(asked, X, target_of(LogisticLoss(), y), weight)
    changed = FORMS[form](X)
    before = changed.copy()
    other = block_statistics(asked, changed, target_of(LogisticLoss(), y), weight)
    assert bits(other) == bits(plain)
    for name in ("data", "indices") if changed.format == "csr" else ("data",):
        np.testing.assert_array_equal(getattr(changed, name), getattr(before, name))


@pytest.mark.parametrize("loss", [LogisticLoss(), MultinomialLoss(3)], ids=repr)
def test_rows_held_out_are_scored_as_dense_ones(loss, monkeypatch):
    X, y, weight = made(700, 12)
    dense, target = X.toarray(), target_of(loss, y)
    theta = 0.3 * np.random.default_rng(0).normal(size=(2, 4, loss.n_outputs, 13))
    asked = HeldOutRequest(Accuracy(), theta, np.full(12, 0.3))
    held_out = HeldOut(np.arange(700) % 2, weight)
    expected = asked.of_block(dense, target, None, held_out)
    monkeypatch.setattr(scipy.sparse.csr_array, "toarray", None)
    found = asked.of_block(X, target, None, held_out)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-12)


def test_zeros_that_are_stored_add_nothing():
    X, y, _ = made(300, 8)
    stored = X.copy()
    stored.data[::3] = 0.0
    without = stored.copy()
    without.eliminate_zeros()
    asked = request(MultinomialLoss(3), 8)
    assert bits(block_statistics(asked, stored, y, None)) == bits(
        block_statistics(asked, without, y, None)
    )


@pytest.mark.parametrize("loss", [LogisticLoss(), SquaredLoss()], ids=repr)
def test_a_full_column_far_from_zero_keeps_its_digits_where_it_is_centred(loss):
    X, y, _ = made(500, 5)
    X = X.toarray()
    X[:, 2] += 1e9
    center = np.where(np.arange(5) == 2, 1e9, 0.2)
    asked = request(loss, 5, center=center)
    near = X.copy()
    near[:, 2] -= 1e9
    exact = reference_statistics(
        request(loss, 5, center=center % 1e9), near, target_of(loss, y), None
    )
    mine = block_statistics(asked, scipy.sparse.csr_array(X), target_of(loss, y), None)
    agree(mine, exact, 1e3)


def test_a_column_with_one_zero_keeps_its_digits_where_it_is_centred():
    n = 400
    x = np.full(n, 1e3)
    x[7] = 0.0
    x += np.where(x, np.random.default_rng(0).normal(size=n), 0.0)
    X, center = np.stack([x, np.ones(n)], axis=1), np.array([x.mean(), 0.0])
    asked = request(SquaredLoss(), 2, center=center)
    y = np.random.default_rng(1).normal(size=n)
    dense = reference_statistics(asked, X, y, None)
    agree(block_statistics(asked, scipy.sparse.csr_array(X), y, None), dense, 1e7)


@given(st.integers(0, 600), st.sampled_from(LOSSES))
def test_blocks_add_up_to_the_whole(cut, loss):
    X, y, weight = made(600, 7)
    asked, target = request(loss, 7, center=np.full(7, 0.1)), target_of(loss, y)
    whole = block_statistics(asked, X, target, weight)
    parts = [
        block_statistics(asked, X[rows], target[rows], weight[rows])
        for rows in (slice(0, cut), slice(cut, None))
    ]
    agree(parts[0] + parts[1], whole, 1e5)


@pytest.mark.parametrize("loss", [LogisticLoss(), MultinomialLoss(3)], ids=repr)
def test_a_wide_block_never_becomes_dense(loss, monkeypatch):
    places = np.random.default_rng(0).integers(0, 200_000, 8000)
    X = scipy.sparse.csr_array((np.ones(8000), places, 20 * np.arange(401)), shape=(400, 200_000))
    y = (
        np.arange(400, dtype=np.int32) % loss.n_outputs
        if loss.n_outputs > 1
        else np.arange(400) % 2
    )

    def refused(*_arguments, **_options):
        raise AssertionError("a sparse block was made dense")

    for kind in (scipy.sparse.csr_matrix, scipy.sparse.csr_array):
        monkeypatch.setattr(kind, "toarray", refused)
        monkeypatch.setattr(kind, "todense", refused)
    names = tuple(map(str, range(X.shape[1])))
    survey = survey_block(TargetKind.CLASSES, names, 0, X, y, None, 0.1)
    asked = request(loss, X.shape[1], order=1, center=survey.mean)
    found = block_statistics(asked, X, y, None)
    assert found.gradient.shape == (loss.n_outputs, X.shape[1] + 1)
    assert survey.sample[0].X.nnz < X.nnz
    assert survey.nbytes < 60 * X.shape[1]


@pytest.mark.parametrize(
    ("name", "place", "value", "said"),
    [
        ("indices", 3, 9, "column numbers from 0 to 9, where 0 to 3 are"),
        ("indices", 3, -1, "column numbers from -1"),
        ("indptr", 2, 900, "row pointers that decrease"),
        ("indptr", -1, 10**6, "row pointers from 0 to 1000000"),
    ],
)
def test_a_damaged_matrix_is_refused_by_the_survey(name, place, value, said):
    X, y, _ = made(50, 4)
    getattr(X, name)[place] = value
    with pytest.raises(DataError, match=f"X of block 3 is not a valid CSR matrix: .*{said}"):
        survey_block(TargetKind.CLASSES, tuple("abcd"), 3, X, y, None)
