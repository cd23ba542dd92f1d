"""Looks for a direction in which an objective without a penalty falls for ever."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dask_dml.objective import Problem
from dask_dml.objective.blas import single_threaded_blas
from dask_dml.objective.losses import Array
from dask_dml.objective.problem import Evaluation
from dask_dml.runtime.core import Executor, Outcome
from dask_dml.solvers.core import CONVERGED
from dask_dml.solvers.escape import NO_OPTIMUM, escape_direction, escapes, is_seen

# Of the sum of the weights, what of a sum of losses is rounding.
_NOISE = 1e-13


def judged(problem: Problem, executor: Executor, outcome: Outcome, tol: float) -> Outcome:
    """How a fit ended, with `NO_OPTIMUM` as its reason where that is why it has no certificate.

    Parameters
    ----------
    problem : Problem
    executor : Executor
        Surveyed and encoded; used for at most three passes, and none where there is a certificate
        or a penalty.
    outcome : Outcome
    tol : float
        Relative gap that was to be reached.
    """
    state, passes = outcome.state, outcome.passes
    concordance, penalty = problem.loss.self_concordance, problem.penalty
    is_free = penalty.strength == 0.0 and penalty.absolute == 0.0
    if state.gap <= tol or not (is_free and 0.0 < concordance < np.inf):
        return outcome

    def evaluated(point: Array, order: int) -> Evaluation:
        result = executor.evaluate(problem.request(point, order))
        with single_threaded_blas():
            return problem.evaluation(point, result.total)

    here = evaluated(state.point, 2)
    passes += 1.0
    if here.hessian is None:
        raise TypeError("the objective gave no Hessian where it was asked for one")
    with single_threaded_blas():
        direction = escape_direction(state.point, here.hessian, state.reason == CONVERGED)
    if direction is None:
        return replace(outcome, passes=passes)
    far = evaluated(state.point + direction, 1)
    passes += 1.0
    noise = _NOISE * problem.multiplier * problem.survey.weight
    if not escapes(here.value, far.value, noise):
        return replace(outcome, passes=passes)
    first = evaluated(problem.start(), 2)
    passes += 1.0
    if first.hessian is None or not is_seen(direction, first.hessian):
        return replace(outcome, passes=passes)
    return replace(outcome, state=replace(state, gap=np.nan, reason=NO_OPTIMUM), passes=passes)
