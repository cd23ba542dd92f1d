"""Which solver fits a problem, and why: what ``solver="auto"`` means."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from dask_dml.objective.problem import Problem
from dask_dml.solvers.bracket import Bracket
from dask_dml.solvers.core import Goal, Solver
from dask_dml.solvers.first_order import GradientDescent
from dask_dml.solvers.lbfgs import LBFGS
from dask_dml.solvers.newton import Newton
from dask_dml.solvers.proximal import ProximalNewton
from dask_dml.solvers.relay import Relay
from dask_dml.solvers.subsampled import SubsampledNewton, growing_shares

# Coordinates up to which Newton's method takes less time than L-BFGS: its Hessian costs more than
# a gradient by a factor that grows with the columns, and for several classes with their number too.
_NEWTON_COORDINATES = 1200
_NEWTON_COORDINATES_CLASSES = 300
# Coordinates from which a Hessian of all rows costs more than several gradients.
WIDE = 150
# Coordinates up to which Hessians of some rows are formed, and rows for each that they need.
_HESSIAN_COORDINATES = 2000
_ROWS_A_COORDINATE = 20
# Values from which on samples are solved first: of fewer, a pass takes less time than a round.
_LARGE = 4_000_000
# How much closer a gradient method goes by its own estimate where no Hessian certifies its result,
# at least and at most.
_CLOSER, _CLOSEST = 1e-3, 1e-7
# What its own estimate is trusted by.
_CAUTION = 0.1


class Choice(NamedTuple):
    """A solver, and why it is that one."""

    solver: Solver[Any]
    why: str


def choose_solver(
    name: str, problem: Problem, tol: float, max_iter: int, kept_share: float
) -> Choice:
    """The solver that an estimator's arguments ask for.

    Parameters
    ----------
    name : {"auto", "newton", "lbfgs", "gd"}
    problem : Problem
    tol, max_iter : float, int
        See `Goal`.
    kept_share : float
        Share of the rows that is kept beside the solver, 0 for none.
    """
    goal = Goal.of(problem, tol, max_iter)
    if problem.penalty.absolute > 0.0:
        solver = ProximalNewton.of(problem, tol, max_iter)
        return Choice(solver, "an L1 penalty needs a proximal step")
    if name == "auto":
        return _automatic(problem, goal, kept_share)
    why = f"asked for by solver={name!r}"
    if name == "newton":
        return Choice(Newton(goal), why)
    descent = partial(_lbfgs, problem) if name == "lbfgs" else GradientDescent
    return Choice(_first_order(descent, problem, goal), why)


def _automatic(problem: Problem, goal: Goal, kept_share: float) -> Choice:
    n_rows, d = problem.survey.n_rows, problem.n_coordinates
    what = f"{n_rows:,} rows and {d:,} coefficients"
    if problem.loss.self_concordance == 0.0 and d <= _NEWTON_COORDINATES:
        return Choice(Newton(goal), f"a squared loss of {d:,} coefficients needs one Hessian")
    shares = growing_shares(n_rows, problem.n_terms)
    has_rows = WIDE <= d <= min(_HESSIAN_COORDINATES, n_rows / _ROWS_A_COORDINATE)
    if kept_share:
        shares = (kept_share, 1.0)
        why = f"{what}: {100.0 * kept_share:.3g} % of them are solved first, in this process"
    else:
        stages = ", ".join(f"{100.0 * share:.3g} %" for share in shares)
        why = f"{what}: solved on {stages} of the rows one after the other"
    if kept_share or has_rows:
        first = SubsampledNewton(goal, n_rows, problem.n_terms, shares)
        return Choice(Relay(first, Newton(goal), goal.tol), why)
    several = problem.loss.n_outputs > 1
    if d <= (_NEWTON_COORDINATES_CLASSES if several else _NEWTON_COORDINATES):
        return Choice(Newton(goal), f"{what}: Hessians of all rows cost little more than gradients")
    descent = partial(_lbfgs, problem)
    return Choice(_first_order(descent, problem, goal), f"{what}: too many for Hessians")


def _lbfgs(problem: Problem, goal: Goal) -> LBFGS:
    """L-BFGS, on growing samples of large data."""
    n_rows = problem.survey.n_rows
    is_large = n_rows * problem.n_terms >= _LARGE
    shares = growing_shares(n_rows, problem.n_terms) if is_large else (1.0,)
    return LBFGS(goal, shares, n_rows)


def _first_order(
    descent: Callable[[Goal], Solver[Any]], problem: Problem, goal: Goal
) -> Solver[Any]:
    """A gradient method, certified by one Newton step, or by gradients where that is too large."""
    if problem.n_coordinates <= _HESSIAN_COORDINATES:
        return Relay(descent(goal), Newton(goal), goal.tol)
    # The penalty alone, which bounds the gap, is so much flatter than the objective: of fewer rows
    # than terms all curvature is in as many directions as there are rows.
    flatness = goal.convexity[goal.convexity > 0.0].min(initial=1.0)
    flatness *= min(problem.survey.n_rows / problem.n_terms, 1.0)
    closer_by = float(np.clip(_CAUTION * flatness, _CLOSEST, _CLOSER))
    closer = descent(Goal.of(problem, goal.tol * closer_by, goal.max_iter))
    n_free = int(np.count_nonzero(goal.convexity == 0.0))
    return Relay(closer, Bracket(goal), goal.tol) if n_free == 1 else closer
