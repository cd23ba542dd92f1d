"""Compiled sums: right to the last digits, and the same bits whatever computes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_dml.objective import LogisticLoss, Request, SquaredLoss, block_statistics, kernels
from dask_dml.objective.blocks import reference_statistics

LOSSES = [LogisticLoss(), SquaredLoss()]


def made(n, p, dtype="f4", seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p)).astype(dtype)
    y = rng.integers(0, 2, n).astype(np.int32)
    weight = rng.uniform(0.0, 2.0, n)
    return X, y, weight, scale * rng.normal(size=(1, p + 1))


def agree(mine, theirs, size):
    assert mine.n_rows == theirs.n_rows
    np.testing.assert_allclose(mine.loss, theirs.loss, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(mine.gradient, theirs.gradient, rtol=1e-11, atol=1e-12 * size)
    if theirs.gram is None:
        assert mine.gram is None
    else:
        np.testing.assert_allclose(mine.gram, theirs.gram, rtol=1e-11, atol=1e-12 * size)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 700),
    p=st.integers(1, 40),
    order=st.sampled_from([1, 2]),
    loss=st.sampled_from(LOSSES),
    dtype=st.sampled_from(["f4", "f8"]),
    weighted=st.booleans(),
    with_intercept=st.booleans(),
    scale=st.sampled_from([0.0, 0.1, 1.0, 30.0]),
    seed=st.integers(0, 2**16),
)
def test_compiled_sums_are_those_of_numpy(
    n, p, order, loss, dtype, weighted, with_intercept, scale, seed
):
    X, y, weight, theta = made(n, p, dtype, seed, scale)
    theta = theta if with_intercept else theta[:, :p]
    request = Request(loss, theta, np.linspace(-1.0, 1.0, p), order)
    w = weight if weighted else None
    agree(
        block_statistics(request, X, y, w),
        reference_statistics(request, X, y, w),
        (1.0 + scale) * 10.0 * n,
    )


@pytest.mark.parametrize("p", [255, 256, 257, 1000])
def test_wide_blocks(p):
    X, y, weight, theta = made(300, p)
    for order in (1, 2):
        request = Request(LogisticLoss(), theta, np.zeros(p), order)
        mine = block_statistics(request, X, y, weight)
        agree(mine, reference_statistics(request, X, y, weight), 1e4)


def test_scores_of_any_size_have_a_finite_loss():
    X = np.array([[-1e4], [-800.0], [-40.0], [-1.0], [0.0], [1.0], [40.0], [800.0], [1e4]])
    for y in (0, 1):
        request = Request(LogisticLoss(), np.array([[1.0]]), np.zeros(1), 2)
        for x in X:
            block, target = x[None], np.array([y], dtype=np.int32)
            mine = block_statistics(request, block, target, None)
            theirs = reference_statistics(request, block, target, None)
            np.testing.assert_allclose(mine.loss, theirs.loss, rtol=1e-14, atol=1e-300)
            np.testing.assert_allclose(mine.gradient, theirs.gradient, rtol=1e-14, atol=1e-300)


def bits(statistics):
    gram = b"" if statistics.gram is None else statistics.gram.tobytes()
    return np.float64(statistics.loss).tobytes() + statistics.gradient.tobytes() + gram


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("order", [1, 2])
def test_bits_do_not_depend_on_how_a_block_lies_in_memory(dtype, order):
    X, y, weight, theta = made(1500, 28, dtype)
    request = Request(LogisticLoss(), theta, np.zeros(28), order)
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


_PLAYED = """
import hashlib, json, sys
import numpy as np
from dask_dml.objective import LogisticLoss, Request, SquaredLoss, block_statistics

state = np.arange(40_000, dtype=np.uint64) * np.uint64(2654435761) % np.uint64(1000003)
X = (state.astype(np.float64) / 1000003.0 - 0.5).astype(np.float32).reshape(-1, 20)
y = (np.arange(len(X)) * 7 % 3 == 0).astype(np.int32)
theta = np.linspace(-3.0, 3.0, 21)[None]
found = {}
for loss in (LogisticLoss(), SquaredLoss()):
    sums = block_statistics(Request(loss, theta, np.zeros(20), 2), X, y, None)
    whole = np.float64(sums.loss).tobytes() + sums.gradient.tobytes() + sums.gram.tobytes()
    found[type(loss).__name__] = hashlib.sha256(whole).hexdigest()
sys.stdout.write(json.dumps(found))
"""


@pytest.mark.parametrize("cpu", ["generic", "haswell"])
def test_bits_are_those_of_other_cpus(cpu, tmp_path):
    """Numba, BLAS and NumPy are told before they are loaded that they run on another CPU."""

    def played(**extra):
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)} | extra
        code = [sys.executable, "-c", _PLAYED]
        run = subprocess.run(code, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout)

    here = played()
    other = played(NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES="", OPENBLAS_CORETYPE="Nehalem")
    assert other == here


def test_numba_is_loaded_by_who_evaluates_blocks_alone():
    code = "import sys, dask_dml.linear_model; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert Path(kernels.__file__).name == "kernels.py"
