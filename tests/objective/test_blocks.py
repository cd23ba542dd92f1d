from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, softmax
from threadpoolctl import threadpool_limits

from dask_dml.objective import (
    LogisticLoss,
    MultinomialLoss,
    Request,
    SquaredLoss,
    block_statistics,
)
from dask_dml.objective.blocks import design_blocks, reference_statistics, scratch_rows

N, P = 3001, 5  # a few sub-blocks, the last one short, once they are as small as below


@pytest.fixture(autouse=True)
def small_sub_blocks(monkeypatch):
    monkeypatch.setattr("dask_dml.objective.blocks._SCRATCH_BYTES", 40_000)
    assert 3 * scratch_rows(P + 1) < N
    assert N % scratch_rows(P + 1) != 0


def rows(dtype=np.float64, n=N, seed=0, n_classes=2):
    rng = np.random.default_rng(seed)
    X = (rng.normal(size=(n, P)) * [1, 10, 0.1, 1, 1] + [0, 50, 0, 1, 0]).astype(dtype)
    X[rng.random((n, P)) < 0.3] = 0.0
    return X, rng.integers(0, n_classes, n).astype(np.int32), rng.random(n)


def request(loss, order=2, intercept=True, center=True):
    rng = np.random.default_rng(5)
    q = P + intercept
    theta = 0.3 * rng.normal(size=(loss.n_outputs, q))
    return Request(loss, theta, np.array([0.0, 35.0, 0.0, 0.7, 0.0]) * center, order)


def assert_same_bits(a, b):
    assert a.n_rows == b.n_rows
    assert np.float64(a.loss).tobytes() == np.float64(b.loss).tobytes()
    assert a.gradient.tobytes() == b.gradient.tobytes()
    assert (a.gram is None) == (b.gram is None)
    if a.gram is not None:
        assert a.gram.tobytes() == b.gram.tobytes()


def at_offset(values, offset):
    """A copy whose first byte lies `offset` after an aligned address."""
    buffer = bytearray(values.nbytes + 64)
    start = -np.frombuffer(buffer, np.uint8).ctypes.data % 64 + offset
    buffer[start : start + values.nbytes] = values.tobytes()
    return np.frombuffer(buffer, values.dtype, values.size, start).reshape(values.shape)


def strided(values):
    wide = np.zeros((2 * values.shape[0], 3 * values.shape[1]), values.dtype)
    wide[::2, ::3] = values
    return wide[::2, ::3]


def read_only(values):
    values = values.copy()
    values.flags.writeable = False
    return values


FORMS = {
    **{f"offset {k}": (lambda v, k=k: at_offset(v, k)) for k in (1, 3, 5, 21, 43, 8)},
    "F order": np.asfortranarray,
    "strided": strided,
    "reversed": lambda v: v[::-1].copy()[::-1],
    "byte-swapped": lambda v: v.astype(v.dtype.newbyteorder()),
    "read-only": read_only,
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("form", FORMS)
def test_the_bits_do_not_depend_on_how_a_block_lies_in_memory(form, dtype):
    X, y, weight = rows(dtype)
    asked = request(LogisticLoss())
    plain = block_statistics(asked, X, y, weight)
    changed = FORMS[form](X)
    assert_same_bits(block_statistics(asked, changed, y, weight), plain)


@pytest.mark.parametrize("offset", [1, 3, 5])
@pytest.mark.parametrize("loss", [LogisticLoss(), MultinomialLoss(3), SquaredLoss()], ids=repr)
def test_the_bits_do_not_depend_on_how_targets_and_weights_lie_in_memory(loss, offset):
    X, y, weight = rows(n_classes=max(loss.n_outputs, 2))
    target = y if loss.self_concordance else y + 0.25
    asked = request(loss)
    plain = block_statistics(asked, X, target, weight)
    other = block_statistics(asked, X, at_offset(target, offset), at_offset(weight, offset))
    assert_same_bits(other, plain)
    assert_same_bits(block_statistics(asked, X, target, read_only(weight)), plain)


@pytest.mark.parametrize("dtype", ["int8", "bool", "float16", "uint32"])
def test_other_numbers_count_as_their_values(dtype):
    X, y, _ = rows()
    X = np.abs(np.round(X)).astype(dtype)
    asked = request(LogisticLoss())
    plain = block_statistics(asked, X.astype(np.float64), y, None)
    assert_same_bits(block_statistics(asked, X, y, None), plain)


def test_the_bits_do_not_depend_on_the_threads_of_blas():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(4000, 80))
    y = rng.integers(0, 2, 4000).astype(np.int32)
    asked = Request(LogisticLoss(), 0.1 * rng.normal(size=(1, 81)), np.zeros(80), 2)
    results = []
    for threads in (1, 2):
        with threadpool_limits(threads, user_api="blas"):
            results.append(block_statistics(asked, X, y, None))
    assert_same_bits(*results)


def test_two_blocks_at_a_time_give_the_bits_of_one_after_the_other():
    blocks = [rows(seed=seed) for seed in range(8)]
    asked = request(LogisticLoss())
    alone = [block_statistics(asked, *block) for block in blocks]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda block: block_statistics(asked, *block), blocks))
    for a, b in zip(alone, together, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_binary_sums_are_those_of_the_formulas(weighted, intercept):
    X, y, weight = rows()
    asked = request(LogisticLoss(), intercept=intercept)
    found = block_statistics(asked, X, y, weight if weighted else None)
    w = weight if weighted else np.ones(N)
    D = X - asked.center
    if intercept:
        D = np.column_stack([D, np.ones(N)])
    z = D @ asked.theta[0]
    p = expit(z)
    assert found.n_rows == N
    np.testing.assert_allclose(found.loss, w @ (np.logaddexp(0.0, z) - y * z), rtol=1e-12)
    np.testing.assert_allclose(found.gradient[0], D.T @ (w * (p - y)), rtol=1e-10, atol=1e-9)
    np.testing.assert_allclose(
        found.gram, (D * (w * p * (1 - p))[:, None]).T @ D, rtol=1e-10, atol=1e-9
    )


def test_least_squares_sums_are_those_of_the_formulas():
    X, _, weight = rows()
    y = np.random.default_rng(3).normal(size=N)
    asked = request(SquaredLoss())
    found = block_statistics(asked, X, y, weight)
    D = np.column_stack([X - asked.center, np.ones(N)])
    r = D @ asked.theta[0] - y
    np.testing.assert_allclose(found.loss, 0.5 * weight @ r**2, rtol=1e-12)
    np.testing.assert_allclose(found.gradient[0], D.T @ (weight * r), rtol=1e-10)
    np.testing.assert_allclose(found.gram, (D * weight[:, None]).T @ D, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
def test_multinomial_sums_are_those_of_the_formulas_and_their_differences(weighted):
    K = 3
    X, y, weight = rows(n=700, n_classes=K)
    weight = weight if weighted else None
    asked = request(MultinomialLoss(K))
    found = block_statistics(asked, X, y, weight)
    D = np.column_stack([X - asked.center, np.ones(len(X))])
    w = np.ones(len(X)) if weight is None else weight
    probabilities = softmax(D @ asked.theta.T, axis=1)
    rest = probabilities - np.eye(K)[y]
    np.testing.assert_allclose(found.loss, -w @ np.log(probabilities[np.arange(700), y]))
    np.testing.assert_allclose(found.gradient, (rest * w[:, None]).T @ D, rtol=1e-9, atol=1e-9)
    numeric = np.empty((K, P + 1, K, P + 1))
    h = 1e-6
    for k in range(K):
        for j in range(P + 1):
            step = np.zeros_like(asked.theta)
            step[k, j] = h
            up, down = (
                block_statistics(
                    Request(asked.loss, asked.theta + s, asked.center, 1), X, y, weight
                ).gradient
                for s in (step, -step)
            )
            numeric[:, :, k, j] = (up - down) / (2 * h)
    size = np.abs(found.gram).max()
    np.testing.assert_allclose(found.gram, numeric.reshape(found.gram.shape), atol=1e-8 * size)


def test_the_multinomial_hessian_keeps_its_digits_where_rows_are_sure():
    K = 3
    X, y, _ = rows(n=200, n_classes=K)
    theta = 8.0 * np.random.default_rng(6).normal(size=(K, P + 1))
    found = block_statistics(Request(MultinomialLoss(K), theta, np.zeros(P), 2), X, y, None).gram
    D = np.column_stack([X, np.ones(200)]).astype(np.longdouble)
    z = D @ theta.T
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    for k in range(K):
        for j in range(k):
            expected = -(D * (p[:, k] * p[:, j])[:, None]).T @ D
            own = found.reshape(K, P + 1, K, P + 1)[k, :, j]
            scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
            np.testing.assert_array_less(np.abs(own - expected), 1e-9 * scale)
    flat = found.reshape(K, P + 1, K, P + 1).sum(axis=2)
    assert np.abs(flat).max() <= 1e-15 * np.abs(found).max()


def test_float32_data_is_summed_in_float64():
    X, y, weight = rows(np.float32)
    asked = request(LogisticLoss())
    found = block_statistics(asked, X, y, weight)
    assert_same_bits(found, block_statistics(asked, X.astype(np.float64), y, weight))
    assert found.gradient.dtype == found.gram.dtype == np.float64


def test_columns_far_from_zero_keep_their_digits():
    rng = np.random.default_rng(4)
    small = rng.normal(size=(N, P))
    y = rng.integers(0, 2, N).astype(np.int32)
    far = 2.0**30
    X = small + far  # exact to 2**-22
    exact = X - far
    theta = 0.3 * rng.normal(size=(1, P + 1))
    shifted = block_statistics(Request(LogisticLoss(), theta, np.full(P, far), 2), X, y, None)
    plain = block_statistics(Request(LogisticLoss(), theta, np.zeros(P), 2), exact, y, None)
    assert_same_bits(shifted, plain)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("loss", [LogisticLoss(), MultinomialLoss(3), SquaredLoss()], ids=repr)
def test_an_empty_block_contributes_nothing(loss, sparse):
    X = np.empty((0, P), np.float32)
    found = block_statistics(
        request(loss), scipy.sparse.csr_array(X) if sparse else X, np.empty(0, np.int32), None
    )
    assert (found.n_rows, found.loss) == (0, 0.0)
    assert not found.gradient.any()
    assert not found.gram.any()


@given(st.integers(0, 600), st.sampled_from([LogisticLoss(), MultinomialLoss(4), SquaredLoss()]))
def test_blocks_add_up_to_the_whole(cut, loss):
    X, y, weight = rows(n=600, n_classes=max(loss.n_outputs, 2))
    asked = request(loss)
    whole = block_statistics(asked, X, y, weight)
    parts = [block_statistics(asked, X[s], y[s], weight[s]) for s in (slice(cut), slice(cut, None))]
    total = parts[0] + parts[1]
    assert total.n_rows == 600
    np.testing.assert_allclose(total.loss, whole.loss, rtol=1e-12)
    np.testing.assert_allclose(total.gradient, whole.gradient, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(total.gram, whole.gram, rtol=1e-9, atol=1e-9)


def test_a_weight_is_so_many_rows_and_none_is_one():
    X, y, _ = rows(n=400)
    times = np.random.default_rng(0).integers(0, 4, 400)
    asked = request(LogisticLoss())
    weighted = block_statistics(asked, X, y, times.astype(np.float64))
    repeated = block_statistics(asked, np.repeat(X, times, 0), np.repeat(y, times), None)
    np.testing.assert_allclose(weighted.loss, repeated.loss, rtol=1e-12)
    np.testing.assert_allclose(weighted.gradient, repeated.gradient, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(weighted.gram, repeated.gram, rtol=1e-9, atol=1e-9)
    ones = block_statistics(asked, X, y, np.ones(400))
    none = block_statistics(asked, X, y, None)
    np.testing.assert_allclose(ones.gradient, none.gradient, rtol=1e-12)


def test_order_1_leaves_out_the_gram_and_nothing_else():
    X, y, weight = rows()
    first = block_statistics(request(MultinomialLoss(3), order=1), X, y, weight)
    second = block_statistics(request(MultinomialLoss(3), order=2), X, y, weight)
    assert first.gram is None
    assert first.loss == second.loss
    assert first.gradient.tobytes() == second.gradient.tobytes()
    assert (first + second).gram is None


@pytest.mark.parametrize("loss", [LogisticLoss(), MultinomialLoss(3)], ids=repr)
def test_a_gram_matrix_in_float32_is_the_same_to_its_digits(loss):
    X, target, weight = rows(n_classes=3 if loss.n_outputs > 1 else 2)
    asked = request(loss)
    expected = reference_statistics(asked, X, target, weight)
    rough = reference_statistics(replace(asked, gram_dtype=np.float32), X, target, weight)
    assert rough.gram.dtype == np.float64
    scale = np.sqrt(np.diagonal(expected.gram))
    difference = (rough.gram - expected.gram) / np.outer(scale, scale)
    assert 0.0 < abs(difference).max() < 1e-5
    assert_same_bits(replace(rough, gram=None), replace(expected, gram=None))


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("n_terms", [P, P + 1])
@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, N])
def test_the_design_is_the_rows_centred_with_a_column_of_ones(n, n_terms, centered):
    X, _, _ = rows()
    center = np.arange(P) * 1.5 if centered else None
    before = X.copy()
    blocks = [block.copy() for block in design_blocks(X[:n], n_terms, center)]
    whole = np.concatenate([np.empty((0, n_terms)), *blocks])
    expected = X[:n] - (0.0 if center is None else center)
    np.testing.assert_array_equal(whole[:, :P], expected)
    np.testing.assert_array_equal(whole[:, P:], np.ones((n, n_terms - P)))
    np.testing.assert_array_equal(X, before)
