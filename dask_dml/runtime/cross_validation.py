"""The rounds of a cross-validation: many problems solved together, then scored on rows held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_dml.errors import FitError
from dask_dml.objective import Problem, Survey
from dask_dml.objective.blas import single_threaded_blas
from dask_dml.objective.held_out import HeldOutRequest, LeaveOneOutRequest
from dask_dml.objective.losses import Array
from dask_dml.runtime.core import (
    Event,
    Executor,
    FitEnded,
    FitStarted,
    Listener,
    Outcome,
    RoundEnded,
    RoundResult,
    RunSpec,
    minimise,
)
from dask_dml.solvers import Solver
from dask_dml.solvers.joint import JointNewton, JointState

_WHAT = {1: "scores of the rows held out", 2: "gradients and Hessians of all folds"}


@dataclass
class CrossValidation:
    """Runs rounds, counts passes, and tells listeners.

    The objective that they are told is that of one member, the focus; where many models are solved
    together there is no bound of the gap to tell.

    Parameters
    ----------
    executor : Executor
        Surveyed, and encoded with a `FoldEncoder`.
    run : RunSpec
    survey : RoundResult of Survey
    listeners : sequence of callable
        Each is called with every event, in this thread. An exception of theirs ends the fit.
    passes : float
        Passes over the full data so far, that of the survey included.
    n_rounds : int
    """

    executor: Executor
    run: RunSpec
    survey: RoundResult[Survey]
    listeners: Sequence[Listener]
    passes: float
    n_rounds: int = 0

    def begin(self) -> None:
        """Tell that rounds begin."""
        self._emit(FitStarted(self.run, self.survey))

    def solve(
        self,
        joint: JointNewton,
        state: JointState,
        wanted: NDArray[np.intp],
        tol: float,
        focus: int,
    ) -> JointState:
        """Run rounds until each of these members is solved, or cannot be.

        Parameters
        ----------
        joint : JointNewton
        state : JointState
        wanted : ndarray of int
            Numbers of members.
        tol : float
            Relative gap to reach.
        focus : int
            Number of the member of whose objective listeners are told.

        Raises
        ------
        FitError
            If an objective is not finite at the first point.
        """
        while len(joint.unsolved(state, wanted, tol)):
            with single_threaded_blas():
                request = joint.ask(state, wanted, tol)
            result = self.executor.evaluate_folds(request)
            with single_threaded_blas():
                state = joint.tell(state, request, result.total, tol)
            if not np.all(np.isfinite(state.value[wanted])):
                raise FitError(
                    "the objective is not finite at the first point: rescale X, y or "
                    "sample_weight, whose sums overflow",
                    self.run.run_id,
                    self.n_rounds,
                )
            self._ended(2, state, focus, result)
        return state

    def score(
        self, request: HeldOutRequest | LeaveOneOutRequest, state: JointState, focus: int
    ) -> Array:
        """Score models on rows that they have not seen, in one round.

        Returns
        -------
        ndarray of shape (n_folds, n_models)
        """
        result = self.executor.evaluate_folds(request)
        self._ended(1, state, focus, result)
        return request.metric.value(result.total.values)

    def minimise(self, problem: Problem, solver: Solver[Any], start: Array) -> Outcome:
        """Fit one model to all rows, which is certified.

        Parameters
        ----------
        problem : Problem
        solver : Solver
        start : ndarray of shape (d,)
            First point, in the problem's coordinates.
        """
        before = self.n_rounds

        def pass_on(event: Event) -> None:
            if isinstance(event, RoundEnded):
                self.n_rounds += 1
                self._emit(replace(event, round=before + event.round))

        outcome = minimise(
            problem, solver, start, self.executor, self.run, self.survey, (pass_on,), self.passes
        )
        self.passes = outcome.passes
        return outcome

    def end(self, reason: str, gap: float) -> None:
        """Tell that the fit has stopped."""
        self._emit(FitEnded(self.run, reason, gap))

    def _ended(
        self,
        order: int,
        state: JointState,
        focus: int,
        result: RoundResult[Any],
    ) -> None:
        self.passes += 1.0
        self.n_rounds += 1
        self._emit(
            RoundEnded(
                run=self.run,
                round=self.n_rounds - 1,
                order=order,
                what=_WHAT[order],
                objective=float(state.value[focus]),
                gap=np.nan,
                n_iter=int(state.n_iter.max()),
                passes=self.passes,
                result=result,
            )
        )

    def _emit(self, event: Event) -> None:
        for listener in self.listeners:
            listener(event)
