"""A first point from a sample: most of the way to the optimum, for a few per cent of a pass.

The optimum on a random sample is within statistical error of that on all rows. The sample comes
with the survey, is solved in this process no closer than that error, and the fit starts there.

References
----------
Erdogdu & Montanari 2015; Bollapragada, Byrd & Nocedal 2019.
"""

from __future__ import annotations

from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from dask_dml.data.source import ArraySource
from dask_dml.objective import Problem, Survey
from dask_dml.objective.losses import Array
from dask_dml.objective.survey import TargetEncoder
from dask_dml.runtime.core import Event, RoundEnded, RoundResult, RunSpec, minimise
from dask_dml.runtime.local import LocalExecutor
from dask_dml.solvers import Goal, Newton
from dask_dml.solvers.choice import WIDE

# A sample is this share of the rows, but not more bytes than this; or this many rows for each
# coordinate where that is more: with few, classes separate, and the sample's optimum is far away.
_SHARE = 1 / 32
_SAMPLE_BYTES = 32_000_000
_ROWS_A_COORDINATE = 40
# Not worth it beyond this share, below this number of values, or with more bytes in this process.
_LARGEST_SHARE = 1 / 8
_LEAST_VALUES = 4_000_000
_LARGEST_BYTES = 64_000_000
_MAX_ITER = 20
_N_BLOCKS = 8


def sample_share(n_rows: int, n_columns: int, row_nbytes: float) -> float:
    """Share of the rows to draw for a first point, 0 where it is not worth it.

    Parameters
    ----------
    n_rows, n_columns : int
        Shape of the data.
    row_nbytes : float
        Bytes of a row.
    """
    drawn = min(_SHARE * n_rows, _SAMPLE_BYTES / max(row_nbytes, 1.0))
    drawn = max(drawn, _ROWS_A_COORDINATE * (n_columns + 1))
    worth_it = (
        drawn <= _LARGEST_SHARE * n_rows
        and drawn * row_nbytes <= _LARGEST_BYTES
        and n_rows * n_columns >= _LEAST_VALUES
    )
    return drawn / n_rows if worth_it else 0.0


class SampleOptimum(NamedTuple):
    """What the solution of a sample is for all rows.

    Attributes
    ----------
    point : ndarray of shape (d,)
        In the problem's coordinates.
    metric : ndarray of shape (d, d)
        The sample's Hessian there, about, scaled up to stand for all rows.
    passes : float
        Passes over the full data that this cost.
    """

    point: Array
    metric: Array
    passes: float


def is_worth_solving(problem: Problem, share: float) -> bool:
    """Whether a sample of that share helps, and has rows enough for the problem's coordinates.

    The function of a squared loss is known after one round; and of many coordinates Hessians are
    too dear to be formed in this process.
    """
    d = problem.n_coordinates
    is_curved = problem.loss.self_concordance > 0.0 and problem.penalty.absolute == 0.0
    return is_curved and d < WIDE and share * problem.survey.n_rows >= _ROWS_A_COORDINATE * d


def optimum_of_sample(
    problem: Problem, encoder: TargetEncoder, survey: RoundResult[Survey]
) -> SampleOptimum | None:
    """Solve the sample of a survey to within its statistical error.

    Parameters
    ----------
    problem : Problem
        Of all rows.
    encoder : TargetEncoder
    survey : RoundResult of Survey
        Of all rows, with a sample.

    Returns
    -------
    SampleOptimum or None
        None where all rows that were drawn have weight zero.
    """
    X, y, weight = _joined(survey.total)
    n_rows = len(y)
    drawn = float(weight.sum())
    if drawn <= 0.0:
        return None
    # Weighted as if it were all rows, the sample has their objective, about.
    weight *= survey.total.weight / drawn
    edges = np.linspace(0, n_rows, _N_BLOCKS + 1).astype(int)
    names = tuple(repeat("", X.shape[1]))
    source = ArraySource(X, y, weight, names, tuple(int(n) for n in np.diff(edges)))
    tol = 0.1 * problem.n_coordinates / n_rows
    solver = Newton(Goal.of(problem, tol, _MAX_ITER))
    run = RunSpec("sample", solver.name, "", n_rows, X.shape[1], _N_BLOCKS, _MAX_ITER, tol)
    executor = LocalExecutor(source)
    rounds: list[RoundEnded] = []

    def keep_last(event: Event) -> None:
        if isinstance(event, RoundEnded):
            rounds[:] = [event]

    try:
        executor.encode(encoder)
        start = problem.start()
        outcome = minimise(problem, solver, start, executor, run, survey, (keep_last,), 0.0)
    finally:
        executor.close()
    point = outcome.state.point
    metric = problem.evaluation(point, rounds[0].result.total).hessian
    if metric is None:
        raise TypeError(f"the solver of a sample asks for Hessians, and {solver.name} did not")
    return SampleOptimum(point, metric, outcome.passes * n_rows / survey.total.n_rows)


def _joined(survey: Survey) -> tuple[Any, Any, Array]:
    blocks: list[Any] = [rows.X for rows in survey.sample]
    stack: Any = np.concatenate
    if scipy.sparse.issparse(blocks[0]):
        stack = partial(scipy.sparse.vstack, format="csr")
    y = np.concatenate([rows.y for rows in survey.sample])
    weights = [np.ones(len(r.y)) if r.weight is None else r.weight for r in survey.sample]
    return stack(blocks), y, np.concatenate(weights)
