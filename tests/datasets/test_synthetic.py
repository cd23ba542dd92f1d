from __future__ import annotations

import pickle

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import roc_auc_score

from dask_dml.datasets import synthetic

RECIPES = {
    "wide": synthetic.wide,
    "linear": synthetic.linear,
    "multinomial": synthetic.multinomial,
    "poisson": synthetic.poisson,
}
MAKERS = {
    "higgs_like": synthetic.higgs_like,
    "wide": lambda n_rows, **rest: synthetic.wide(n_rows, n_columns=12, **rest),
    "multinomial": lambda n_rows, **rest: synthetic.multinomial(n_rows, n_columns=6, **rest),
    "poisson": lambda n_rows, **rest: synthetic.poisson(n_rows, n_columns=6, **rest),
    "linear": lambda n_rows, **rest: synthetic.linear(n_rows, n_columns=6, **rest),
    "correlated": lambda n_rows, **rest: synthetic.wide(
        n_rows, n_columns=7, condition=100.0, **rest
    ),
}


def values(pair, scheduler="sync"):
    return dask.compute(*pair, scheduler=scheduler)


@pytest.mark.parametrize("name", MAKERS)
def test_a_row_does_not_depend_on_chunks_threads_or_rows_behind_it(name):
    make = MAKERS[name]
    X, y = values(make(25_000, seed=5, chunk_rows=25_000))
    for pair in (
        make(25_000, seed=5, chunk_rows=7_001),
        make(31_000, seed=5, chunk_rows=10_000),
    ):
        other_X, other_y = values(pair, scheduler="threads")
        assert other_X[:25_000].tobytes() == X.tobytes()
        assert other_y[:25_000].tobytes() == y.tobytes()


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_declared_is_what_is_made(name):
    X, y = MAKERS[name](12_000, chunk_rows=5_000)
    made_X, made_y = values((X, y))
    assert X.chunks[0] == y.chunks[0] == (5_000, 5_000, 2_000)
    assert (made_X.shape, made_X.dtype) == (X.shape, X.dtype)
    assert (made_y.shape, made_y.dtype) == (y.shape, y.dtype)
    assert made_X.dtype == np.float32
    assert np.isfinite(made_X).all()
    assert np.unique(made_X[:, 0]).size > 11_000  # segments differ


@pytest.mark.parametrize("name", MAKERS)
def test_seeds_name_problems(name):
    make = MAKERS[name]
    X, _ = values(make(1_000, seed=0))
    again, _ = values(make(1_000, seed=0))
    other, _ = values(make(1_000, seed=1))
    assert again.tobytes() == X.tobytes()
    assert other.tobytes() != X.tobytes()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40_000), st.integers(1, 40_000))
def test_chunks_cover_the_rows(n_rows, chunk_rows):
    chunk_rows = max(chunk_rows, n_rows // 50)
    X, y = synthetic.wide(n_rows, n_columns=1, chunk_rows=chunk_rows)
    assert X.shape == (n_rows, 1)
    assert sum(X.chunks[0]) == sum(y.chunks[0]) == n_rows
    assert max(X.chunks[0]) <= chunk_rows


def test_a_cluster_makes_the_same_bytes():
    X, y = synthetic.higgs_like(30_000, seed=2, chunk_rows=4_000)
    expected = values((X, y), scheduler="threads")
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        Client(cluster),
    ):
        made = dask.compute(X, y)
    assert made[0].tobytes() == expected[0].tobytes()
    assert made[1].tobytes() == expected[1].tobytes()


def test_the_client_holds_no_data():
    X, _ = synthetic.higgs_like(4_000_000)
    assert len(X.chunks[0]) == 16
    assert len(pickle.dumps(X)) < 100_000


def test_higgs_like_is_as_hard_as_higgs_for_a_linear_classifier():
    X, y = values(synthetic.higgs_like(40_000))
    assert X.shape[1] == len(synthetic.HIGGS_COLUMNS) == 28
    assert y.mean() == pytest.approx(0.53, abs=0.01)
    model = LogisticRegression(solver="newton-cholesky").fit(X[:30_000], y[:30_000])
    auc = roc_auc_score(y[30_000:], model.decision_function(X[30_000:]))
    assert 0.66 < auc < 0.70
    for name, column in zip(synthetic.HIGGS_COLUMNS, X.T, strict=True):
        if "b_tag" in name:
            assert np.unique(column).size == 3
        elif name.endswith(("pt", "pT")) or name.startswith("m"):
            assert column.min() > 0 or name == "missing_energy_phi"


@pytest.mark.parametrize("score_std", [0.0, 2.0])
def test_wide_has_the_scores_that_were_asked_for(score_std):
    X, y = values(synthetic.wide(20_000, n_columns=10, score_std=score_std))
    model = LogisticRegression(C=1e6).fit(X, y)
    assert np.std(model.decision_function(X)) == pytest.approx(score_std, abs=0.1)


def test_linear_has_the_scores_and_the_noise_that_were_asked_for():
    X, y = values(synthetic.linear(20_000, score_std=2.0, noise_std=0.5))
    model = LinearRegression().fit(X, y)
    assert np.std(model.predict(X)) == pytest.approx(2.0, rel=0.03)
    assert np.std(y - model.predict(X)) == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize("make", [synthetic.wide, synthetic.linear])
def test_only_informative_columns_have_a_say(make):
    X, y = values(make(20_000, n_columns=10, score_std=2.0, n_informative=3))
    covariances = (X - X.mean(axis=0)).T @ (y - y.mean()) / len(y)
    assert np.abs(covariances[:3]).max() > 0.1
    np.testing.assert_allclose(covariances[3:], 0.0, atol=0.1)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("n_columns", [1, 2, 9, 16])
def test_columns_have_the_condition_that_was_asked_for(name, n_columns):
    X, _ = values(RECIPES[name](40_000, n_columns=n_columns, condition=300.0))
    variances = np.linalg.eigvalsh(np.atleast_2d(np.cov(X.T, dtype=np.float64)))
    assert variances.mean() == pytest.approx(1.0, rel=0.03)
    expected = 300.0 if n_columns > 1 else 1.0
    assert variances[-1] / variances[0] == pytest.approx(expected, rel=0.05)


def test_conditioned_columns_are_correlated_and_of_unlike_spread():
    X, _ = values(synthetic.wide(20_000, n_columns=30, condition=1e3))
    correlations = np.abs(np.corrcoef(X.T)[np.triu_indices(30, 1)])
    assert correlations.max() > 0.5
    assert np.median(correlations) > 0.05
    assert X.std(axis=0).max() > 1.5 * X.std(axis=0).min()


@pytest.mark.parametrize("name", RECIPES)
def test_the_condition_changes_columns_and_not_scores(name):
    make = RECIPES[name]
    X, y = values(make(10_000, n_columns=8))
    mixed_X, mixed_y = values(make(10_000, n_columns=8, condition=50.0))
    assert mixed_y.tobytes() == y.tobytes()
    # The mixing is linear and loses nothing.
    back = np.linalg.lstsq(mixed_X.astype(np.float64), X.astype(np.float64), rcond=None)[0]
    np.testing.assert_allclose(mixed_X @ back, X, atol=1e-4)


def test_another_seed_mixes_otherwise():
    covariances = [
        np.cov(values(synthetic.linear(10_000, n_columns=5, condition=20.0, seed=seed))[0].T)
        for seed in (0, 1)
    ]
    assert np.abs(covariances[0] - covariances[1]).max() > 0.2


def test_poisson_has_the_mean_that_was_asked_for():
    _, y = values(synthetic.poisson(50_000, mean=3.0))
    assert y.mean() == pytest.approx(3.0, rel=0.03)
    assert (y == np.floor(y)).all()
    assert y.var() > y.mean()


def test_multinomial_has_every_class():
    _, y = values(synthetic.multinomial(20_000, n_classes=4))
    shares = np.bincount(y) / len(y)
    np.testing.assert_allclose(shares, 0.25, atol=0.05)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: synthetic.higgs_like(0), "n_rows"),
        (lambda: synthetic.higgs_like(10, seed=-1), "seed"),
        (lambda: synthetic.higgs_like(10, chunk_rows=0), "chunk_rows"),
        (lambda: synthetic.wide(10, n_columns=0), "n_columns"),
        (lambda: synthetic.wide(10, score_std=-1.0), "score_std"),
        (lambda: synthetic.wide(10, n_columns=5, n_informative=6), "n_informative"),
        (lambda: synthetic.linear(10, noise_std=-1.0), "noise_std"),
        (lambda: synthetic.linear(10, n_informative=0), "n_informative"),
        (lambda: synthetic.multinomial(10, n_classes=1), "n_classes"),
        (lambda: synthetic.multinomial(10, score_std=float("nan")), "score_std"),
        (lambda: synthetic.poisson(10, mean=0.0), "mean"),
        (lambda: synthetic.poisson(10, score_std=9.0), "score_std"),
        (lambda: synthetic.wide(10, condition=0.5), "condition"),
        (lambda: synthetic.linear(10, condition=float("inf")), "condition"),
        (lambda: synthetic.multinomial(10, condition=float("nan")), "condition"),
        (lambda: synthetic.poisson(10, condition=0.0), "condition"),
        (lambda: synthetic.wide(10, n_informative=3, condition=2.0), "n_informative"),
    ],
)
def test_a_bad_argument_is_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()
