"""Growing samples: few passes, the optimum of all rows, a state that is plain data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression as Reference

from dask_dml.linear_model import LogisticRegression
from dask_dml.objective import LogisticLoss, MultinomialLoss, Request, block_statistics
from dask_dml.objective.blocks import certain_share, drawn_rows
from dask_dml.objective.losses import PoissonLoss
from dask_dml.solvers import Goal, SubsampledNewton
from dask_dml.solvers.core import StoredState, state_arrays, state_reasons
from dask_dml.solvers.lbfgs import LBFGS
from dask_dml.solvers.subsampled import growing_shares


def made(n, p, deviation=2.0, n_classes=2, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p)).astype(np.float32)
    scores = X @ rng.normal(size=(p, n_classes)) * (deviation / np.sqrt(p))
    return X, (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)


@given(n=st.integers(1, 5000), share=st.floats(1e-4, 1.0))
def test_a_draw_has_its_share_of_the_rows_each_once(n, share):
    rows = drawn_rows(n, share)
    assert len(rows) == np.ceil(share * n)
    assert np.all(np.diff(rows) > 0)
    assert rows[0] >= 0
    assert rows[-1] < n


@given(n=st.integers(1, 5000), share=st.floats(1e-4, 1.0))
def test_a_gram_of_a_share_is_of_as_many_rows_of_each_part_of_a_block(n, share):
    # A column for each quarter: its entry of the Gram matrix counts the rows that are in it.
    X = np.zeros((n, 4))
    X[np.arange(n), np.arange(n) * 4 // n] = 1.0
    request = Request(LogisticLoss(), np.zeros((1, 4)), np.zeros(4), 2, gram_share=share)
    gram = block_statistics(request, X, np.zeros(n), None).gram
    assert np.trace(gram) == pytest.approx(0.25 * n, rel=1e-12)
    if n >= 2048:
        counts = np.count_nonzero(X, axis=0)
        np.testing.assert_allclose(4.0 * np.diagonal(gram), counts, atol=256 + 0.05 * n)


@pytest.mark.parametrize("share", [0.03, 0.4, 1.0])
def test_a_gram_of_a_share_has_the_bits_of_its_block_however_that_lies_in_memory(share):
    X, y = made(20_000, 11)
    theta = 0.3 * np.random.default_rng(1).normal(size=(1, 12))
    request = Request(LogisticLoss(), theta, X.mean(axis=0).astype(float), 2, gram_share=share)
    buffer = np.empty(X.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(X.shape)
    buffer[...] = X
    first, *others = (
        block_statistics(request, rows, y, None)
        for rows in (X, np.asfortranarray(X), buffer, np.repeat(X, 2, axis=0)[::2])
    )
    for other in others:
        np.testing.assert_array_equal(other.gram, first.gram)
        np.testing.assert_array_equal(other.gradient, first.gradient)


@pytest.mark.parametrize("loss", [LogisticLoss(), MultinomialLoss(3)])
def test_sums_of_a_sample_stand_for_all_rows(loss):
    X, y = made(40_000, 6, n_classes=max(loss.n_outputs, 2))
    theta = 0.1 * np.ones((loss.n_outputs, 7))
    whole = block_statistics(Request(loss, theta, np.zeros(6), 2), X, y, None)
    part = block_statistics(Request(loss, theta, np.zeros(6), 2, 0.25), X, y, None)
    assert part.n_rows == whole.n_rows
    np.testing.assert_allclose(part.loss, whole.loss, rtol=0.05)
    scale = np.abs(whole.gram).max()
    np.testing.assert_allclose(part.gram, whole.gram, atol=0.05 * scale)


@pytest.mark.parametrize("columns", [5, 300])
@pytest.mark.parametrize("loss", [LogisticLoss(), MultinomialLoss(3), PoissonLoss()])
def test_a_gram_of_a_share_comes_with_the_gradient_of_all_rows(loss, columns):
    n_outputs = loss.n_outputs
    columns = min(columns, 300 // n_outputs**2)
    X, y = made(3_000, columns, n_classes=max(n_outputs, 2))
    weight = np.random.default_rng(1).random(len(X))
    theta = 0.5 * np.random.default_rng(2).normal(size=(n_outputs, columns + 1))
    theta /= columns**0.5
    request = Request(loss, theta, np.zeros(columns), 2)
    whole = block_statistics(request, X, y, weight)
    for share, gram_share in ((1.0, 0.3), (0.6, 0.5)):
        part = block_statistics(replace(request, share=share, gram_share=gram_share), X, y, weight)
        if share == 1.0:
            assert part.loss == pytest.approx(whole.loss, rel=1e-12)
            np.testing.assert_allclose(part.gradient, whole.gradient, rtol=1e-8, atol=1e-8)
        # It stands for all rows; without what it stands for it is below their Gram matrix.
        assert np.trace(part.gram) == pytest.approx(np.trace(whole.gram), rel=0.15)
        below = share * certain_share(gram_share) * part.gram
        left = np.linalg.eigvalsh(whole.gram - below)
        assert left[0] >= -1e-12 * left[-1]


def test_rows_of_much_curvature_are_drawn_more_often():
    X, y = made(4_000, 300, 200.0)
    theta = np.append(X[y == 1].mean(axis=0) - X[y == 0].mean(axis=0), 0.0)[None] * 200.0
    request = Request(LogisticLoss(), theta, np.zeros(300), 2)
    whole = block_statistics(request, X, y, None).gram
    few = block_statistics(replace(request, gram_share=0.25), X, y, None).gram
    uniform = block_statistics(replace(request, share=0.25), X, y, None).gram
    apart = [np.linalg.norm(gram - whole) for gram in (few, uniform)]
    assert apart[0] < 0.5 * apart[1]


@pytest.mark.parametrize("deviation", [2.0, 20.0])
def test_wide_data_takes_few_hessians_to_the_optimum(deviation):
    X, y = made(12_000, 200, deviation)
    model = LogisticRegression().fit(X, y)
    assert model.gap_ <= 1e-8
    assert model.n_passes_ == model.history_["passes"].iloc[-1]
    assert model.history_.attrs["solver"] == "subsampled-newton"
    assert "12,000 rows and 201 coefficients" in model.history_.attrs["why"]
    # At most one is of all rows: that which certifies the end.
    what = list(model.history_["what"])
    assert "gradient" in what
    assert what.count("gradient and Hessian") <= 1
    reference = Reference(solver="newton-cholesky", tol=1e-12, max_iter=200)
    reference.fit(X.astype(np.float64), y)
    np.testing.assert_allclose(model.coef_, reference.coef_, rtol=1e-4, atol=1e-5)


def goal():
    return Goal(1e-8, 100, 1.0, np.ones(4), np.zeros(4))


def test_a_sample_has_rows_enough_for_its_coordinates():
    assert growing_shares(10_000_000, 100) == (1 / 64, 10 / 64, 1.0)
    assert growing_shares(100_000, 1001) == (25 * 1001 / 100_000, 1.0)
    assert growing_shares(1_000, 1001) == (1.0,)


class Quadratic:
    """``(x - x0)^T A (x - x0) / 2 + 1``, whose samples have another optimum."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        root = rng.normal(size=(8, 4))
        self.matrix, self.optimum = root.T @ root + np.eye(4), rng.normal(size=4)
        self.shift = rng.normal(size=4)

    def __call__(self, ask):
        from dask_dml.objective.problem import Evaluation

        away = ask.point - self.optimum - 0.01 * (1.0 - ask.share) * self.shift
        matrix = self.matrix * (1.0 + 0.1 * (1.0 - ask.share))
        gradient = matrix @ away
        hessian = matrix if ask.order == 2 else None
        return Evaluation(1.0 + 0.5 * float(away @ gradient), gradient, hessian)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), stored_at=st.integers(0, 12))
def test_it_ends_at_the_optimum_of_all_and_may_be_stored_at_any_round(seed, stored_at):
    objective = Quadratic(seed)
    solver = SubsampledNewton(goal(), 100_000, 4, (0.1, 1.0))
    state = solver.start(np.zeros(4))
    rounds = 0
    while not state.reason and rounds < 100:
        if rounds == stored_at:
            arrays = {name: np.array(a) for name, a in state_arrays(state).items()}
            state = solver.restore(StoredState(arrays, state_reasons(state)))
        state = solver.tell(state, objective(solver.ask(state)))
        rounds += 1
    assert state.reason == "converged"
    np.testing.assert_allclose(state.point, objective.optimum, atol=1e-5)


def test_lbfgs_too_solves_a_sample_first_and_ends_at_the_optimum_of_all():
    objective = Quadratic(3)
    solver = LBFGS(goal(), (0.1, 1.0), 100_000)
    state = solver.start(np.zeros(4))
    shares = []
    while not state.reason and len(shares) < 200:
        arrays = {name: np.array(a) for name, a in state_arrays(state).items()}
        state = solver.restore(StoredState(arrays, state_reasons(state)))
        ask = solver.ask(state)
        shares.append(ask.share)
        state = solver.tell(state, objective(ask))
    assert state.reason == "converged"
    np.testing.assert_allclose(state.point, objective.optimum, atol=1e-3)
    # Most of the way is gone on the sample.
    assert shares == sorted(shares)
    assert shares.count(0.1) >= 3
    alone, n_rounds = LBFGS(goal()).start(np.zeros(4)), 0
    while not alone.reason:
        alone = LBFGS(goal()).tell(alone, objective(LBFGS(goal()).ask(alone)))
        n_rounds += 1
    assert shares.count(1.0) < n_rounds
