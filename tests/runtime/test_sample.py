"""A first point from a sample: near the optimum, counted, and only where it pays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression as SklearnLogisticRegression

import dask_dml as dml
from dask_dml.datasets.synthetic import higgs_like, multinomial
from dask_dml.linear_model import LogisticRegression, Ridge
from dask_dml.objective import (
    L2Penalty,
    LogisticLoss,
    MultinomialLoss,
    Problem,
    SquaredLoss,
    Survey,
    TargetKind,
    TreeSum,
    block_statistics,
    survey_block,
)
from dask_dml.objective.survey import TargetEncoder
from dask_dml.runtime.core import RoundResult
from dask_dml.runtime.sample import (
    is_worth_solving,
    kept_sample,
    optimum_of_sample,
    sample_share,
)

N_ROWS, SHARE = 160_000, 1 / 32
NAMES = tuple(f"x{j}" for j in range(28))


@pytest.fixture(scope="module")
def higgs():
    X, y = higgs_like(N_ROWS, chunk_rows=20_000)
    return X.compute(scheduler="threads"), y.compute(scheduler="threads")


def surveyed(X, y, share, weight=None) -> Survey:
    total = TreeSum(4)
    for block, rows in enumerate(np.array_split(np.arange(len(X)), 4)):
        w = None if weight is None else weight[rows]
        names = tuple("" for _ in range(X.shape[1]))
        total.add(
            (0, block),
            survey_block(TargetKind.CLASSES, names, block, X[rows], y[rows], w, share),
        )
    return total.value


def evaluated(problem, point, X, y):
    request = problem.request(point, 1)
    return problem.evaluation(point, block_statistics(request, X, y.astype(np.int32), None)).value


@pytest.mark.parametrize(
    ("n_rows", "n_columns", "drawn"),
    [
        (4_000_000, 28, 125_000),  # one in 32
        (1_000_000_000, 28, 1_142_857),  # no more than this process can well hold
        (1_000_000, 100, 31_250),
        (400_000, 200, 12_500),
        (100_000, 200, 5_025),  # 25 rows a coordinate
        (1_000_000, 1_000, 31_250),
        (10_000, 28, 0),  # too small to be worth it
        (30_000, 200, 0),  # 25 rows a coordinate would be a sixth of them
        (1_000_000, 5_000, 0),  # and of so many columns too many bytes
    ],
)
def test_how_many_rows_are_drawn(n_rows, n_columns, drawn):
    assert sample_share(n_rows, n_columns, 4.0 * n_columns) * n_rows == pytest.approx(drawn)


def test_the_sample_has_its_share_of_every_block_and_is_the_same_again(higgs):
    X, y = higgs
    survey, again = surveyed(X, y, SHARE), surveyed(X, y, SHARE)
    assert [len(rows.y) for rows in survey.sample] == [N_ROWS // 4 // 32] * 4
    for rows, others in zip(survey.sample, again.sample, strict=True):
        np.testing.assert_array_equal(rows.X, others.X)
    assert not np.array_equal(survey.sample[0].X, survey.sample[1].X)


def test_the_start_is_most_of_the_way_to_the_optimum(higgs):
    X, y = higgs
    survey = surveyed(X, y, SHARE)
    problem = Problem(LogisticLoss(), L2Penalty(1.0), 1.0, survey, True)
    encoder = TargetEncoder(survey.classes)
    start, passes = optimum_of_sample(problem, encoder, RoundResult(survey, 0.0, {}, 0))
    model = SklearnLogisticRegression(solver="newton-cholesky", tol=1e-10).fit(
        X.astype(np.float64), y
    )
    optimum = evaluated(problem, problem.point(model.coef_, model.intercept_), X, y)
    there = evaluated(problem, start, X, y) - optimum
    constant = evaluated(problem, problem.start(), X, y) - optimum
    # The excess of a sample's optimum is about half a coordinate's worth a row that it stands for.
    assert 0.0 <= there < 2.0 * 0.5 * problem.n_coordinates / SHARE
    assert there < 0.1 * constant
    assert 1.0 + SHARE <= passes <= 1.0 + SHARE * 10


def test_the_sums_of_the_sample_stand_for_those_of_all_rows(higgs):
    X, y = higgs
    survey = surveyed(X, y, SHARE)
    problem = Problem(LogisticLoss(), L2Penalty(1.0), 1.0, survey, True)
    request = problem.request(problem.start(), 2)
    with kept_sample(TargetEncoder(survey.classes), survey) as sample:
        some = problem.evaluation(problem.start(), sample.executor.evaluate(request).total)
        assert sample.share == SHARE
    sums = block_statistics(request, X, y.astype(np.int32), None)
    whole = problem.evaluation(problem.start(), sums)
    assert some.value == pytest.approx(whole.value, rel=0.02)
    root = np.linalg.cholesky(whole.hessian)
    apart = np.linalg.solve(root, np.linalg.solve(root, some.hessian).T)
    np.testing.assert_allclose(np.linalg.eigvalsh(apart), 1.0, atol=0.3)
    # Without what they stand for they are below.
    left = np.linalg.eigvalsh(whole.hessian - SHARE * some.hessian)
    assert left[0] > 0.0


def test_a_sample_without_weight_is_not_kept(higgs):
    X, y = higgs
    survey = surveyed(X, y, SHARE, np.zeros(N_ROWS))
    with kept_sample(TargetEncoder(survey.classes), survey) as sample:
        assert sample is None


def test_a_fit_on_many_rows_starts_from_its_sample_and_counts_it(higgs):
    X, y = higgs
    model = LogisticRegression(runtime=dml.Runtime(client="local")).fit(X, y)
    reference = SklearnLogisticRegression(solver="newton-cholesky", tol=1e-12).fit(
        X.astype(np.float64), y
    )
    np.testing.assert_allclose(model.coef_, reference.coef_, rtol=1e-6)
    assert model.gap_ <= 1e-8
    # The sample is solved first and gives the metric; a Hessian certifies the end alone.
    what = list(model.history_["what"])
    n_sampled = sum(words.endswith("% of the rows") for words in what)
    n_rounds = len(what) - n_sampled
    assert 2 <= n_rounds <= 4
    assert what[n_sampled:] == ["gradient"] * (n_rounds - 1) + ["gradient and Hessian"]
    assert what[n_sampled - 1].startswith("gradient and Hessian of 3.1")
    assert model.history_.attrs["why"].endswith("% of them are solved first, in this process")
    assert model.n_passes_ == pytest.approx(1.0 + n_rounds + SHARE * n_sampled, abs=1e-3)
    assert model.history_["passes"].iloc[-1] == model.n_passes_


def test_a_warm_start_is_where_the_last_fit_ended(higgs):
    X, y = higgs
    model = LogisticRegression(warm_start=True, runtime=dml.Runtime(client="local")).fit(X, y)
    model.fit(X, y)
    assert model.n_passes_ == 1.0 + len(model.history_)
    assert len(model.history_) == 1


def test_a_quadratic_is_known_from_the_survey(higgs):
    X, y = higgs
    model = Ridge(runtime=dml.Runtime(client="local")).fit(X, y.astype(float))
    assert model.n_passes_ == 1.0
    assert list(model.history_["what"]) == ["gradient and Hessian, from the survey"]
    assert model.gap_ <= 1e-8


def test_a_sample_that_is_small_for_its_coordinates_is_not_solved():
    X, y = multinomial(8_000, n_columns=20, n_classes=5)
    X, y = X.compute(scheduler="threads"), y.compute(scheduler="threads")
    survey = surveyed(X, y, SHARE)
    problem = Problem(MultinomialLoss(5), L2Penalty(1.0), 1.0, survey, True)
    assert not is_worth_solving(problem, SHARE)
    assert is_worth_solving(replace(problem, loss=LogisticLoss()), 25 * 21 / 8_000)
    assert not is_worth_solving(replace(problem, loss=SquaredLoss()), SHARE)


def test_rows_without_weight_are_drawn_but_do_not_count(higgs):
    X, y = higgs
    weight = np.zeros(N_ROWS)
    weight[: N_ROWS // 2] = 3.0
    half = slice(0, N_ROWS // 2)
    model = LogisticRegression(runtime=dml.Runtime(client="local")).fit(X, y, weight)
    reference = SklearnLogisticRegression(solver="newton-cholesky", tol=1e-12).fit(
        X[half].astype(np.float64), y[half], weight[half]
    )
    np.testing.assert_allclose(model.coef_, reference.coef_, rtol=1e-6)
