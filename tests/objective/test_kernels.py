"""Compiled sums: right to the last digits, and the same bits whatever computes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_dml.objective import (
    GammaLoss,
    HuberLoss,
    LogisticLoss,
    MultinomialLoss,
    PoissonLoss,
    Request,
    SquaredEpsilonInsensitiveLoss,
    SquaredHingeLoss,
    SquaredLoss,
    TweedieLoss,
    block_statistics,
)
from dask_dml.objective.blocks import product_of_rows, reference_statistics
from dask_dml.objective.held_out import (
    Accuracy,
    Determination,
    HeldOutRequest,
    NegativeBrierScore,
    NegativeLogLoss,
)
from dask_dml.objective.survey import HeldOut

LOSSES = [
    LogisticLoss(),
    SquaredLoss(),
    MultinomialLoss(3),
    MultinomialLoss(6),
    PoissonLoss(),
    GammaLoss(),
    TweedieLoss(1.2),
    TweedieLoss(1.9),
    SquaredHingeLoss(),
    SquaredHingeLoss(5),
    SquaredEpsilonInsensitiveLoss(0.3),
    HuberLoss(-1.35, 1.35, 0.8),
    HuberLoss(-0.1, 0.9, 0.05),
]


def with_width(loss, theta):
    """Coefficients, with a 0 for the width of a loss that has one."""
    return np.pad(theta, ((0, 0), (0, int(isinstance(loss, HuberLoss)))))


def made(n, p, dtype="f4", seed=0, scale=1.0, loss=LOSSES[0]):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p)).astype(dtype)
    y = rng.integers(0, max(loss.n_outputs, 2), n)
    y = y + 0.5 if isinstance(loss, GammaLoss) else y.astype(np.int32)
    weight = rng.uniform(0.0, 2.0, n) * (rng.random(n) < 0.9)
    return X, y, weight, scale * rng.normal(size=(loss.n_outputs, p + 1))


def agree(mine, theirs):
    assert mine.n_rows == theirs.n_rows
    np.testing.assert_allclose(mine.loss, theirs.loss, rtol=1e-12, atol=1e-11)
    for name in ("gradient", "gram"):
        found, expected = getattr(mine, name), getattr(theirs, name)
        if expected is None:
            assert found is None
        else:
            # What cancels in a sum is small beside the largest.
            largest = np.abs(expected).max(initial=0.0)
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12 * (1.0 + largest))


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(0, 700),
    p=st.integers(1, 40),
    order=st.sampled_from([1, 2]),
    loss=st.sampled_from(LOSSES),
    dtype=st.sampled_from(["f4", "f8"]),
    weighted=st.booleans(),
    with_intercept=st.booleans(),
    scale=st.sampled_from([0.0, 0.1, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_compiled_sums_are_those_of_numpy(
    n, p, order, loss, dtype, weighted, with_intercept, scale, seed
):
    X, y, weight, theta = made(n, p, dtype, seed, scale, loss)
    theta = with_width(loss, theta if with_intercept else theta[:, :p])
    request = Request(loss, theta, np.linspace(-1.0, 1.0, p), order)
    w = weight if weighted else None
    agree(block_statistics(request, X, y, w), reference_statistics(request, X, y, w))


@pytest.mark.parametrize("p", [255, 256, 257, 1000])
def test_wide_blocks(p):
    for loss, order in product((LogisticLoss(), MultinomialLoss(3), LOSSES[-1]), (1, 2)):
        X, y, weight, theta = made(300, p, scale=0.1, loss=loss)
        request = Request(loss, with_width(loss, theta), np.linspace(-1.0, 1.0, p), order)
        mine = block_statistics(request, X, y, weight)
        agree(mine, reference_statistics(request, X, y, weight))


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("score", [-1e8, -1e4, -800.0, -40.0, -1.0, 0.0, 1.0, 40.0, 800.0, 1e8])
def test_scores_of_any_size_have_the_loss_of_numpy(loss, score):
    X = np.array([[1.0]])
    theta = score * np.linspace(1.0, -1.0, loss.n_outputs)[:, None]
    request = Request(loss, with_width(loss, theta), np.zeros(1), 2)
    least = 1.0 if isinstance(loss, GammaLoss) else 0.0
    for y in {least, 1.0, float(max(loss.n_outputs - 1, 1))}:
        target = np.array([y])
        mine = block_statistics(request, X, target, None)
        theirs = reference_statistics(request, X, target, None)
        for name in ("loss", "gradient", "gram"):
            np.testing.assert_allclose(
                getattr(mine, name), getattr(theirs, name), rtol=2e-13, atol=1e-300
            )


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_score_that_is_no_number_has_no_loss(loss):
    for where in range(loss.n_outputs):
        theta = np.zeros((loss.n_outputs, 1))
        theta[where] = np.nan
        request = Request(loss, with_width(loss, theta), np.zeros(1), 1)
        assert np.isnan(block_statistics(request, np.ones((9, 1)), np.ones(9), None).loss)


@pytest.mark.parametrize("loss", [PoissonLoss(), GammaLoss(), TweedieLoss(1.5)], ids=repr)
def test_large_and_small_targets(loss):
    rng = np.random.default_rng(0)
    y = 10.0 ** rng.uniform(-300.0, 6.0, 500)
    y[0] = 5e-320 if isinstance(loss, GammaLoss) else 0.0
    X = np.log(np.maximum(y, 1e-3))[:, None] + rng.normal(size=(500, 1))
    request = Request(loss, np.array([[1.0]]), np.zeros(1), 2)
    agree(block_statistics(request, X, y, None), reference_statistics(request, X, y, None))


def test_columns_of_very_different_scales():
    X, y, weight, theta = made(1000, 17, "f8")
    scale = 10.0 ** np.linspace(-8.0, 8.0, 17)
    request = Request(LogisticLoss(), theta / np.append(scale, 1.0), np.zeros(17), 2)
    mine = block_statistics(request, X * scale, y, weight)
    theirs = reference_statistics(request, X * scale, y, weight)
    size = np.append(scale, 1.0)
    np.testing.assert_allclose(mine.gradient / size, theirs.gradient / size, rtol=0, atol=1e-10)
    np.testing.assert_allclose(
        mine.gram / np.outer(size, size), theirs.gram / np.outer(size, size), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize(
    "loss", [SquaredLoss(), PoissonLoss(), MultinomialLoss(3), LOSSES[-1]], ids=repr
)
def test_rows_without_weight_add_nothing_whatever_they_hold(loss):
    X, y, weight, theta = made(200, 5, "f8", loss=loss)
    weight[::3] = 0.0
    request = Request(loss, with_width(loss, theta), np.zeros(5), 2)
    expected = block_statistics(request, X, y, weight)
    X[::3] = 1e250
    if isinstance(loss, HuberLoss):  # so far away that errors in units of the width overflow
        X[::3] = 1e308
    found = block_statistics(request, X, y, weight)
    assert found.loss == expected.loss
    assert np.all(np.isfinite(found.gradient))
    assert np.all(np.isfinite(found.gram))


def bits(statistics):
    gram = b"" if statistics.gram is None else statistics.gram.tobytes()
    return np.float64(statistics.loss).tobytes() + statistics.gradient.tobytes() + gram


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    "loss", [LogisticLoss(), MultinomialLoss(3), PoissonLoss(), LOSSES[-1]], ids=repr
)
def test_bits_do_not_depend_on_how_a_block_lies_in_memory(dtype, order, loss):
    X, y, weight, theta = made(1500, 28, dtype, loss=loss)
    request = Request(loss, with_width(loss, theta), np.zeros(28), order)
    expected = bits(block_statistics(request, X, y, weight))
    unaligned = np.frombuffer(b"\0" + X.tobytes(), np.uint8)[1:].view(X.dtype).reshape(X.shape)
    assert not unaligned.flags.aligned
    strided = np.zeros((3000, 56), dtype)
    strided[::2, ::2] = X
    forms = [
        unaligned,
        np.asfortranarray(X),
        strided[::2, ::2],
        X.astype(X.dtype.newbyteorder()),
    ]
    for form in forms:
        assert bits(block_statistics(request, form, y, weight)) == expected


def test_blocks_are_read_to_their_end_and_no_further():
    """The last rows, whose last columns have nothing behind them."""
    for n, p, with_intercept, loss in product(
        (1, 7, 8, 9, 64), (1, 5, 8, 13, 136, 139), (0, 1), (LogisticLoss(), LOSSES[-1])
    ):
        X, y, weight, theta = made(n + 8, p, "f8")
        order = 2 if p < 100 else 1
        theta = with_width(loss, theta[:, : p + with_intercept])
        request = Request(loss, theta, np.zeros(p), order)
        behind = X.copy()
        behind[n:] = np.nan
        expected = bits(block_statistics(request, X[:n].copy(), y[:n], weight[:n]))
        assert bits(block_statistics(request, behind[:n], y[:n], weight[:n])) == expected


_PLAYED = """
import hashlib, itertools, json, sys
import numpy as np
import scipy.sparse
from dask_dml.objective import *
from dask_dml.objective.held_out import *
from dask_dml.objective.survey import HeldOut

state = np.arange(60_000, dtype=np.uint64) * np.uint64(2654435761) % np.uint64(1000003)
X = (state.astype(np.float64) / 1000003.0 - 0.5).astype(np.float32)
found = {}
losses = [LogisticLoss(), SquaredLoss(), MultinomialLoss(3), PoissonLoss(), GammaLoss(),
    TweedieLoss(1.5), SquaredHingeLoss(3), SquaredEpsilonInsensitiveLoss(0.1),
    HuberLoss(-0.3, 0.7, 0.9)]
wide = [(250, MultinomialLoss(3)), (250, losses[-1])]
for p, loss in [*((20, loss) for loss in losses), *wide]:
    rows = X.reshape(-1, p)
    y = (np.arange(len(rows)) * 7 % 3) + (1 if isinstance(loss, GammaLoss) else 0)
    y = np.minimum(y, 1) if loss.n_outputs == 1 and not isinstance(loss, GammaLoss) else y
    theta = np.linspace(-3.0, 3.0, loss.n_outputs * (p + 1)).reshape(loss.n_outputs, p + 1)
    theta = np.pad(theta, ((0, 0), (0, int(isinstance(loss, HuberLoss)))))
    sums = block_statistics(Request(loss, theta, np.zeros(p), 2), rows, y, None)
    whole = np.float64(sums.loss).tobytes() + sums.gradient.tobytes() + sums.gram.tobytes()
    found[f"{p} {loss}"] = hashlib.sha256(whole).hexdigest()
numbers = np.arange(3000) * 0.1 + X[:3000]
survey = survey_block(
    TargetKind.NUMBERS, ("",) * 20, 0, X.reshape(-1, 20), numbers, X[:3000] + 0.6, with_moments=True
)
arrays = [survey.moment1, survey.moment2, survey.moments.mean, survey.moments.scatter]
arrays.append(np.array([survey.target_moment1, survey.target_moment2, survey.weight]))
found["survey"] = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
sparse = scipy.sparse.csr_array(np.where(X > 0.3, X, 0).reshape(-1, 20))
for loss in (LogisticLoss(), MultinomialLoss(3), losses[-1]):
    theta = np.linspace(-3.0, 3.0, loss.n_outputs * 21).reshape(loss.n_outputs, 21)
    theta = np.pad(theta, ((0, 0), (0, int(isinstance(loss, HuberLoss)))))
    y = np.arange(sparse.shape[0]) * 7 % max(loss.n_outputs, 2)
    sums = block_statistics(Request(loss, theta, np.full(20, 0.1), 2), sparse, y, None)
    whole = np.float64(sums.loss).tobytes() + sums.gradient.tobytes() + sums.gram.tobytes()
    found[f"sparse {loss}"] = hashlib.sha256(whole).hexdigest()
held_out = HeldOut(np.arange(3000) % 3, X[:3000] + 0.6)
metrics = [Accuracy(), NegativeLogLoss(), NegativeBrierScore(), NegativeMeanSquaredError(),
    Determination(0.1)]
for metric, n_outputs in itertools.product(metrics, (1, 3)):
    theta = np.sin(np.arange(3 * 4 * n_outputs * 21.0) % 97).round(3).reshape(3, 4, n_outputs, 21)
    asked = HeldOutRequest(metric, theta, np.full(20, 0.1))
    target = np.arange(3000) * 7 % max(n_outputs, 2)
    sums = asked.of_block(X.reshape(-1, 20), target, None, held_out)
    found[f"{metric} {n_outputs}"] = hashlib.sha256(sums.values.tobytes()).hexdigest()
basis = (X[:400] * 2.0).reshape(20, 20).astype(float)
asked = LeaveOneOutRequest(
    Determination(0.1), np.zeros(20), basis, basis[:4] ** 2, basis[:4], np.arange(4.0), 1e-3
)
sums = asked.of_block(X.reshape(-1, 20), numbers, None, held_out)
found["leave one out"] = hashlib.sha256(sums.values.tobytes()).hexdigest()
sys.stdout.write(json.dumps(found))
"""


@pytest.mark.parametrize("cpu", ["generic", "haswell"])
def test_bits_are_those_of_other_cpus(cpu, tmp_path):
    """Numba, BLAS and NumPy are told before they are loaded that they run on another CPU."""

    def played(**extra):
        environment = os.environ | extra
        code = [sys.executable, "-c", _PLAYED]
        run = subprocess.run(code, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout)

    here = played()
    other = played(
        NUMBA_CACHE_DIR=str(tmp_path),
        NUMBA_CPU_NAME=cpu,
        NUMBA_CPU_FEATURES="",
        OPENBLAS_CORETYPE="Nehalem",
    )
    assert other == here


@settings(max_examples=50, deadline=None)
@given(n=st.integers(0, 40), q=st.integers(0, 30), m=st.integers(1, 20), seed=st.integers(0, 2**16))
def test_products_are_summed_in_order(n, q, m, seed):
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(n, q)), rng.normal(size=(q, m))
    expected = np.zeros((n, m))
    for k in range(q):
        expected += np.outer(left[:, k], right[k])
    np.testing.assert_array_equal(product_of_rows(left, right), expected)


METRICS = [Accuracy(), NegativeLogLoss(), NegativeBrierScore(), Determination(0.3)]


@pytest.mark.parametrize("metric", METRICS, ids=repr)
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_rows_held_out_have_the_bits_of_any_form_and_the_scores_of_numpy(metric, n_outputs):
    loss = MultinomialLoss(3) if n_outputs == 3 else LogisticLoss()
    X, y, weight, _ = made(900, 12, loss=loss)
    theta = np.random.default_rng(1).normal(size=(2, 5, n_outputs, 13))
    request = HeldOutRequest(metric, theta, np.full(12, 0.2))
    held_out = HeldOut(np.arange(900) % 2, weight)
    found = request.of_block(X, y, None, held_out).values
    strided = np.zeros((1800, 24), np.float32)
    strided[::2, ::2] = X
    for form in (np.asfortranarray(X), strided[::2, ::2]):
        np.testing.assert_array_equal(request.of_block(form, y, None, held_out).values, found)
    rows = held_out.fold == 1
    design = np.column_stack([X[rows].astype(float) - 0.2, np.ones(450)])
    scores = design @ theta[1].reshape(-1, 13).T
    expected = metric.sums(scores.reshape(450, 5, n_outputs), y[rows], weight[rows])
    np.testing.assert_allclose(found[1], expected, rtol=1e-12)
    if isinstance(metric, Accuracy):
        best = scores.reshape(450, 5, n_outputs).argmax(axis=2) if n_outputs == 3 else scores > 0.0
        np.testing.assert_allclose(found[1, :, 0], weight[rows] @ (best == y[rows][:, None]))


def test_numba_is_loaded_by_who_evaluates_blocks_alone():
    code = "import sys, dask_dml.linear_model; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_a_folder_to_write_to_kernels_are_compiled_all_the_same(monkeypatch):
    from numba import types

    from dask_dml.objective.kernels.compiling import compiled

    def no_place(*_, **__):
        raise OSError("read-only file system")

    monkeypatch.setattr("numba.core.caching.os.makedirs", no_place)
    monkeypatch.setattr("numba.core.caching.tempfile.TemporaryFile", no_place)
    twice = compiled(lambda x: 2.0 * x, types.float64(types.float64))
    assert twice(3.0) == 6.0
