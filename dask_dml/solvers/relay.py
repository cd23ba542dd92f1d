"""One solver after another: the second starts where the first has converged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from dask_dml.objective.losses import Array
from dask_dml.objective.problem import Evaluation
from dask_dml.solvers.core import CONVERGED, Ask, Solver, SolverState, StoredState

A = TypeVar("A", bound=SolverState)
B = TypeVar("B", bound=SolverState)


@dataclass(frozen=True)
class RelayState(SolverState, Generic[A, B]):
    """State of `Relay`: that of the first solver, and of the second once it has begun."""

    first: A
    second: B | None


@dataclass(frozen=True)
class Relay(Generic[A, B]):
    """Runs `first` until it has converged, then `second` from there, if that is not certified yet.

    A gradient method hands over to Newton's: one Hessian at its result certifies it, and the
    step that the Hessian pays for makes it better.

    Parameters
    ----------
    first, second : Solver
    tol : float
        Relative gap that is small enough.
    """

    first: Solver[A]
    second: Solver[B]
    tol: float

    @property
    def name(self) -> str:
        """The first solver's name."""
        return self.first.name

    def start(self, point: Array) -> RelayState[A, B]:
        """State before the first round."""
        first = self.first.start(point)
        return RelayState(point, first.value, first.gap, 0, first.reason, first, None)

    def ask(self, state: RelayState[A, B]) -> Ask:
        """What the solver that is at work asks."""
        if state.second is None:
            return self.first.ask(state.first)
        return self.second.ask(state.second)

    def restore(self, stored: StoredState) -> RelayState[A, B]:
        """The state that was stored, with the states of both solvers."""
        first, second = stored.part("first"), stored.part("second")
        if first is None:
            raise ValueError("Relay.restore(stored=...) needs the state of its first solver")
        whole = stored.restored(SolverState)
        return RelayState(
            whole.point,
            whole.value,
            whole.gap,
            whole.n_iter,
            whole.reason,
            self.first.restore(first),
            None if second is None else self.second.restore(second),
        )

    def tell(self, state: RelayState[A, B], evaluation: Evaluation) -> RelayState[A, B]:
        """Tell the solver that is at work, and hand over when the first has converged."""
        if state.second is not None:
            second = self.second.tell(state.second, evaluation)
            return replace(
                state,
                point=second.point,
                value=second.value,
                gap=second.gap,
                n_iter=state.first.n_iter + second.n_iter,
                reason=second.reason,
                second=second,
            )
        first = self.first.tell(state.first, evaluation)
        handed_over = first.reason == CONVERGED and not first.gap <= self.tol
        return replace(
            state,
            point=first.point,
            value=first.value,
            gap=first.gap,
            n_iter=first.n_iter,
            reason="" if handed_over else first.reason,
            first=first,
            second=self.second.start(first.point) if handed_over else None,
        )
