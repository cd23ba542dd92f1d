"""Backtracking along a line, every trial an ordinary round."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from dask_dml.objective.losses import Array
from dask_dml.solvers.core import (
    STALLED,
    SolverState,
    is_descent,
    is_negligible,
    shorter_step,
)


@dataclass(frozen=True)
class LineState(SolverState):
    """State of a solver that goes along lines: the accepted point, and the line from there.

    Attributes
    ----------
    direction : ndarray of shape (d,)
    slope : float
        Of the objective along the line, at the accepted point.
    step : float
        How far along the line the trial is.
    """

    direction: Array
    slope: float
    step: float

    @property
    def trial(self) -> Array:
        """The point to evaluate."""
        return self.point + self.step * self.direction


L = TypeVar("L", bound=LineState)


def shortened(state: L, trial_value: float) -> L | None:
    """The state with a shorter step, or stalled, if a trial is no descent; None if it is one.

    The first point of all, which no line leads to, is taken as it is.

    Parameters
    ----------
    state : LineState
    trial_value : float
        Objective at the trial.
    """
    if not np.isfinite(state.value) or is_descent(
        state.value, state.slope, state.step, trial_value
    ):
        return None
    step = shorter_step(state.value, state.slope, state.step, trial_value)
    stalled = is_negligible(state.value, -step * state.slope)
    return replace(state, step=step, reason=STALLED if stalled else "")
