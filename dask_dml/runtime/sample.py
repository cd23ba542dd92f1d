"""A first point from a sample: most of the way to the optimum, for a few per cent of a pass.

The optimum on a random sample is within statistical error of that on all rows. The sample comes
with the survey and stays in this process: it is solved first, no closer than that error, and asked
for Hessians again when all rows are solved (`dask_dml.solvers.subsampled`).

References
----------
Erdogdu & Montanari 2015; Bollapragada, Byrd & Nocedal 2019.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np
import scipy.sparse

from dask_dml.data.source import ArraySource
from dask_dml.objective import Problem, Survey
from dask_dml.objective.losses import Array
from dask_dml.objective.survey import TargetEncoder
from dask_dml.runtime.core import KeptSample, RoundResult, RunSpec, minimise
from dask_dml.runtime.local import LocalExecutor
from dask_dml.solvers import Goal, Newton

# A sample is this share of the rows, but not more bytes than this; or this many rows for each
# coordinate of an output where that is more: with few, classes separate, and the sample's optimum
# is far away.
_SHARE = 1 / 32
_SAMPLE_BYTES = 128_000_000
_ROWS_A_TERM = 25
# Not worth it beyond this share, or below this number of values.
_LARGEST_SHARE = 1 / 7
_LEAST_VALUES = 4_000_000
# Multiplications of a Hessian that one process forms in a time that is worth it.
_LARGEST_HESSIAN = 6e10
_N_BLOCKS = 4
_MAX_ITER = 20


def sample_share(n_rows: int, n_columns: int, row_nbytes: float) -> float:
    """Share of the rows to draw for a first point, 0 where it is not worth it.

    Parameters
    ----------
    n_rows, n_columns : int
        Shape of the data.
    row_nbytes : float
        Bytes of a row.
    """
    drawn = math.floor(min(_SHARE * n_rows, _SAMPLE_BYTES / max(row_nbytes, 1.0)))
    drawn = max(drawn, _ROWS_A_TERM * (n_columns + 1))
    worth_it = (
        drawn <= _LARGEST_SHARE * n_rows
        and drawn * row_nbytes <= _SAMPLE_BYTES
        and n_rows * n_columns >= _LEAST_VALUES
    )
    return drawn / n_rows if worth_it else 0.0


def is_worth_solving(problem: Problem, share: float) -> bool:
    """Whether a sample of that share helps, and has rows enough for the problem's coordinates.

    The function of a squared loss is known after one round; and of many coordinates Hessians are
    too dear to be formed in this process.
    """
    n_rows = share * problem.survey.n_rows
    is_curved = problem.loss.self_concordance > 0.0 and problem.penalty.absolute == 0.0
    return (
        is_curved
        and round(n_rows) >= _ROWS_A_TERM * problem.n_terms
        and n_rows * problem.n_terms * problem.n_coordinates <= _LARGEST_HESSIAN
    )


@contextmanager
def kept_sample(encoder: TargetEncoder, survey: Survey) -> Iterator[KeptSample | None]:
    """The sample of a survey, evaluated in this process.

    Parameters
    ----------
    encoder : TargetEncoder
    survey : Survey
        Of all rows, with a sample.

    Yields
    ------
    KeptSample or None
        None where all rows that were drawn have weight zero.
    """
    X, y, weight = _joined(survey)
    n_rows = len(y)
    if not weight.any():
        yield None
        return
    share = n_rows / survey.n_rows
    weight /= share
    edges = np.linspace(0, n_rows, _N_BLOCKS + 1).astype(int)
    names = tuple(repeat("", X.shape[1]))
    source = ArraySource(X, y, weight, names, tuple(int(n) for n in np.diff(edges)))
    executor = LocalExecutor(source)
    try:
        executor.encode(encoder)
        yield KeptSample(share, executor)
    finally:
        executor.close()


def optimum_of_sample(
    problem: Problem, encoder: TargetEncoder, survey: RoundResult[Survey]
) -> tuple[Array, float]:
    """The optimum of the sample of a survey to within its statistical error.

    Parameters
    ----------
    problem : Problem
        Of all rows.
    encoder : TargetEncoder
    survey : RoundResult of Survey
        Of all rows, with a sample.

    Returns
    -------
    point : ndarray of shape (d,)
        In the problem's coordinates; the constant model where the sample has no weight.
    passes : float
        Passes over the full data so far.
    """
    start = problem.start()
    with kept_sample(encoder, survey.total) as sample:
        if sample is None:
            return start, 1.0
        n_rows = survey.total.n_rows
        tol = 0.1 * problem.n_coordinates / (sample.share * n_rows)
        solver = Newton(Goal.of(problem, tol, _MAX_ITER))
        run = RunSpec("sample", solver.name, "", n_rows, 0, _N_BLOCKS, _MAX_ITER, tol)
        outcome = minimise(problem, solver, start, sample.executor, run, survey, (), 0.0)
    return outcome.state.point, 1.0 + outcome.passes * sample.share


def _joined(survey: Survey) -> tuple[Any, Any, Array]:
    blocks: list[Any] = [rows.X for rows in survey.sample]
    stack: Any = np.concatenate
    if scipy.sparse.issparse(blocks[0]):
        stack = partial(scipy.sparse.vstack, format="csr")
    y = np.concatenate([rows.y for rows in survey.sample])
    weights = [np.ones(len(r.y)) if r.weight is None else r.weight for r in survey.sample]
    return stack(blocks), y, np.concatenate(weights)
