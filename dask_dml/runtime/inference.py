"""The sums that inference needs, over all rows at a fitted model without a penalty."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.special import xlogy

from dask_dml.objective import (
    GammaLoss,
    LogisticLoss,
    MultinomialLoss,
    PoissonLoss,
    Problem,
    Statistics,
    Survey,
)
from dask_dml.objective.blas import single_threaded_blas
from dask_dml.objective.likelihood import ExpectedCurvature, Likelihood, LikelihoodConstant
from dask_dml.objective.losses import Array, SquaredLoss, TweedieLoss
from dask_dml.runtime.core import Executor, Outcome
from dask_dml.solvers.core import CONVERGED

# Coefficients up to which the information is formed.
_MOST_COORDINATES = 2000
_LOSSES = (LogisticLoss, MultinomialLoss, SquaredLoss, PoissonLoss, GammaLoss, TweedieLoss)


def with_likelihood(problem: Problem, executor: Executor, outcome: Outcome) -> Outcome:
    """How a fit ended, with the sums for inference where there is no penalty.

    Parameters
    ----------
    problem : Problem
    executor : Executor
        Surveyed and encoded. Least squares take what their last round has left; log losses take
        a pass, and deviances two.
    outcome : Outcome
    """
    state, penalty, loss = outcome.state, problem.penalty, problem.loss
    is_free = penalty.strength == 0.0 and penalty.absolute == 0.0
    if (
        not is_free
        or state.reason != CONVERGED
        or not isinstance(loss, _LOSSES)
        or problem.n_coordinates > _MOST_COORDINATES
    ):
        return outcome
    if isinstance(loss, SquaredLoss):
        return _least_squares(problem, executor, outcome)
    here = _evaluated(problem, executor, state.point, ExpectedCurvature(loss), 2)
    survey = problem.survey
    if isinstance(loss, LogisticLoss | MultinomialLoss):
        null = _null_log_loss(survey, problem.fit_intercept)
        likelihood = _likelihood(problem, state.point, here, null, np.nan, 0.0)
        return replace(outcome, passes=outcome.passes + 1.0, likelihood=likelihood)
    first = _evaluated(problem, executor, problem.start(), LikelihoodConstant(loss), 1)
    has_form = isinstance(loss, PoissonLoss | GammaLoss)
    constant = float(first.gradient[0, -1]) if has_form else np.nan
    pearson = float(here.gradient[0, -1])
    likelihood = _likelihood(problem, state.point, here, first.loss, pearson, constant)
    return replace(outcome, passes=outcome.passes + 2.0, likelihood=likelihood)


def _evaluated(
    problem: Problem,
    executor: Executor,
    point: Array,
    loss: ExpectedCurvature | LikelihoodConstant,
    order: int,
) -> Statistics:
    """Sums with a last term of ones in any case, which sums the derivatives themselves."""
    request = problem.request(point, order)
    theta = request.theta
    if not problem.fit_intercept:
        theta = np.column_stack([theta, np.zeros(len(theta))])
    return executor.evaluate(replace(request, theta=theta, loss=loss)).total


def _likelihood(
    problem: Problem,
    point: Array,
    sums: Statistics,
    null_loss_sum: float,
    pearson: float,
    constant: float,
) -> Likelihood:
    if sums.gram is None:
        raise TypeError("the sums at the optimum lack the Gram matrix that was asked for")
    n_outputs, n_terms = problem.loss.n_outputs, problem.n_terms
    width = sums.gram.shape[0] // n_outputs
    tiles = sums.gram.reshape(n_outputs, width, n_outputs, width)[:, :n_terms, :, :n_terms]
    return Likelihood(
        problem.loss,
        problem.survey.weight,
        problem.request(point, 1).theta,
        problem.center,
        tiles.reshape(n_outputs * n_terms, n_outputs * n_terms),
        sums.loss,
        null_loss_sum,
        pearson,
        constant,
    )


def _least_squares(problem: Problem, executor: Executor, outcome: Outcome) -> Outcome:
    """From the last round: the objective is known everywhere from where it was evaluated."""
    point, survey, passes = outcome.state.point, problem.survey, outcome.passes
    evaluated, evaluation = outcome.evaluated, outcome.evaluation
    if evaluated is None or evaluation is None or evaluation.hessian is None:
        passes += 1.0
        result = executor.evaluate(problem.request(point, 2))
        with single_threaded_blas():
            evaluated, evaluation = point, problem.evaluation(point, result.total)
    if evaluation.hessian is None:
        raise TypeError("the sums at the optimum lack the Hessian that was asked for")
    step = point - evaluated
    with single_threaded_blas():
        change = evaluation.gradient @ step + 0.5 * step @ evaluation.hessian @ step
    factor = problem.multiplier
    loss_sum = max(evaluation.value + float(change), 0.0) / factor
    null = survey.target_moment2
    if problem.fit_intercept:
        null -= survey.target_moment1**2 / survey.weight
    likelihood = Likelihood(
        problem.loss,
        survey.weight,
        problem.request(point, 1).theta,
        problem.center,
        evaluation.hessian * problem.scale[:, None] * problem.scale / factor,
        loss_sum,
        0.5 * null,
        2.0 * loss_sum,
        0.0,
    )
    return replace(outcome, passes=passes, likelihood=likelihood)


def _null_log_loss(survey: Survey, has_intercept: bool) -> float:
    """Sum of the log losses of the model without features."""
    share = survey.class_weight / survey.weight
    if not has_intercept:
        return survey.weight * float(np.log(len(share)))
    return -survey.weight * float(xlogy(share, share).sum())
