"""The loop of rounds: ask the solver, evaluate on all blocks, tell the solver, say what happened.

The loop knows no machine. An `Executor` evaluates a request on all blocks and adds up what they
contribute; listeners hear of every event; a fit is the same in one process and on a cluster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from dask_dml.errors import FitError
from dask_dml.faults import FaultEvent
from dask_dml.faults.checkpoint import CheckpointKeeper, Progress
from dask_dml.objective import Problem, Request, Statistics, Survey, TargetKind
from dask_dml.objective.blas import single_threaded_blas
from dask_dml.objective.folds import FoldWiseRequest, FoldWiseSums
from dask_dml.objective.likelihood import Likelihood
from dask_dml.objective.losses import Array
from dask_dml.objective.problem import Evaluation
from dask_dml.objective.survey import Encoder
from dask_dml.solvers import Solver, SolverState

T = TypeVar("T")
F = TypeVar("F", bound=FoldWiseSums)
S = TypeVar("S", bound=SolverState)


@dataclass(frozen=True, slots=True)
class RoundResult(Generic[T]):
    """What came of one round.

    Attributes
    ----------
    total : Statistics or Survey
        The sum over all blocks.
    seconds : float
        Wall time.
    busy_s : dict of str to float
        Computing time of each worker.
    nbytes : int
        Bytes of request and answers that crossed between processes; 0 in one process.
    faults : tuple of FaultEvent
        What happened to the workers in this round.
    """

    total: T
    seconds: float
    busy_s: dict[str, float]
    nbytes: int
    faults: tuple[FaultEvent, ...] = ()


class Executor(Protocol):
    """Evaluates requests on all blocks of a source.

    The survey comes first, then the encoding of the target, then rounds; `close` gives back
    whatever the executor holds, also after an error.
    """

    def survey(
        self, kind: TargetKind, sample_share: float = 0.0, with_moments: bool = False
    ) -> RoundResult[Survey]:
        """Survey of all blocks, one pass, with a sample of that share of the rows, and moments."""
        ...

    def encode(self, encoder: Encoder) -> None:
        """Prepare targets and weights for the rounds."""
        ...

    def evaluate(self, request: Request) -> RoundResult[Statistics]:
        """Sums over all blocks, one pass."""
        ...

    def evaluate_folds(self, request: FoldWiseRequest[F]) -> RoundResult[F]:
        """Sums over all blocks that tell folds apart, one pass; after a `FoldEncoder`."""
        ...

    def publish(self, event: FaultEvent) -> None:
        """Tell of an event that the fit itself has noticed, in the log and where others look."""
        ...

    def close(self) -> None:
        """Release blocks, threads and futures."""
        ...


@dataclass(frozen=True, slots=True)
class RunSpec:
    """Which run this is.

    Attributes
    ----------
    run_id : str
        Unique; every task and message of the run carries it.
    solver : str
    loss : str
    n_rows, n_columns, n_blocks : int
    max_iter : int
    tol : float
    why : str
        Why it is that solver.
    """

    run_id: str
    solver: str
    loss: str
    n_rows: int
    n_columns: int
    n_blocks: int
    max_iter: int
    tol: float
    why: str = ""


@dataclass(frozen=True, slots=True)
class FitStarted:
    """A fit begins its rounds.

    Attributes
    ----------
    run : RunSpec
    survey : RoundResult of Survey
        What the pass before the rounds found.
    first_round : int
        0, or the next one after those of a checkpoint.
    """

    run: RunSpec
    survey: RoundResult[Survey]
    first_round: int = 0


@dataclass(frozen=True, slots=True)
class RoundEnded:
    """One round is over.

    Attributes
    ----------
    run : RunSpec
    round : int
        Counted from 0.
    order : {1, 2}
        Whether the Hessian was asked for (2).
    what : str
        What was asked for, in words.
    objective : float
        At the point that was evaluated.
    gap : float
        Upper bound of the relative gap at the solver's best point; nan while there is none.
    n_iter : int
        Steps accepted so far.
    passes : float
        Full-data passes so far, the survey included.
    result : RoundResult
    """

    run: RunSpec
    round: int
    order: int
    what: str
    objective: float
    gap: float
    n_iter: int
    passes: float
    result: RoundResult[Any]


@dataclass(frozen=True, slots=True)
class FitEnded:
    """A fit has stopped, and why."""

    run: RunSpec
    reason: str
    gap: float


Event = FitStarted | RoundEnded | FitEnded
Listener = Callable[[Event], object]


@dataclass(frozen=True, slots=True)
class KeptSample:
    """Some of the rows, at hand where the solver is.

    Attributes
    ----------
    share : float
        Of all rows.
    executor : Executor
        Evaluates requests on them, with weights that make their sums stand for all rows.
    """

    share: float
    executor: Executor


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a fit ended.

    Attributes
    ----------
    state : SolverState
        The solver's last.
    passes : float
        Passes over the full data that it took.
    evaluated : ndarray of shape (d,) or None
        The last point that was evaluated on all rows, with a Hessian of all of them.
    evaluation : Evaluation or None
        The objective there.
    likelihood : Likelihood or None
        Sums at the result, where inference can be made of it.
    """

    state: SolverState
    passes: float
    evaluated: Array | None = None
    evaluation: Evaluation | None = None
    likelihood: Likelihood | None = None


def minimise(
    problem: Problem,
    solver: Solver[S],
    start: np.ndarray,
    executor: Executor,
    run: RunSpec,
    survey: RoundResult[Survey],
    listeners: Sequence[Listener],
    passes: float = 1.0,
    keeper: CheckpointKeeper | None = None,
    known: Statistics | None = None,
    sample: KeptSample | None = None,
) -> Outcome:
    """Run rounds until the solver has a reason to stop.

    Parameters
    ----------
    problem : Problem
    solver : Solver
    start : ndarray of shape (d,)
        First point, in the problem's coordinates.
    executor : Executor
        Surveyed and encoded.
    run : RunSpec
    survey : RoundResult of Survey
    listeners : sequence of callable
        Each is called with every event, in this thread. An exception of theirs ends the fit.
    passes : float
        Passes over the full data that came before, that of the survey included.
    keeper : CheckpointKeeper, optional
        Writes the rounds' checkpoints; where it has found one, rounds go on from there.
    known : Statistics, optional
        What the survey tells of the first round, which then costs no pass.
    sample : KeptSample, optional
        Rows that the solver may ask for by their share of all.

    Returns
    -------
    Outcome

    Raises
    ------
    FitError
        If blocks could not be evaluated, or the objective is not finite at the first point.
    IncompatibleError
        If the checkpoint that was found is that of other data.
    """

    def emit(event: Event) -> None:
        for listener in listeners:
            listener(event)

    def evaluated(number: int, request: Request) -> tuple[RoundResult[Statistics], float]:
        """Sums of a round, and the passes that they took."""
        if number == 0 and known is not None:
            return RoundResult(known, survey.seconds, survey.busy_s, 0), 0.0
        if sample is not None and request.share == sample.share:
            whole = replace(request, share=1.0)
            return sample.executor.evaluate(whole), request.share
        return executor.evaluate(request), request.share

    with single_threaded_blas():
        state = solver.start(start)
    n_rounds = 0
    if keeper is not None and (progress := keeper.restored(solver)) is not None:
        state, n_rounds = progress.state, progress.n_rounds
        request = problem.request(progress.point, 1, progress.share)
        result, spent = evaluated(n_rounds - 1, request)
        passes += progress.passes + spent
        survey = _verified(problem, executor, survey, result, keeper, progress)
    emit(FitStarted(run, survey, n_rounds))
    last: tuple[Array, Evaluation] | tuple[()] = ()
    while not state.reason:
        # The solver's own sums too have other bits with another number of threads.
        with single_threaded_blas():
            ask = solver.ask(state)
            request = problem.request(
                ask.point, ask.order, ask.share, ask.gram_share, ask.terms, ask.gram_dtype
            )
        result, spent = evaluated(n_rounds, request)
        with single_threaded_blas():
            evaluation = problem.evaluation(ask.point, result.total, ask.terms)
            if n_rounds == 0 and not np.isfinite(evaluation.value):
                raise FitError(
                    f"the objective is {evaluation.value} at the first point: rescale X, y or "
                    "sample_weight, whose sums overflow",
                    run.run_id,
                    n_rounds,
                )
            state = solver.tell(state, evaluation)
        if ask.is_whole_hessian:
            last = (ask.point, evaluation)
        n_rounds += 1
        passes += spent
        if keeper is not None:
            keeper.note(
                Progress(
                    state,
                    n_rounds,
                    passes,
                    ask.point,
                    ask.share,
                    evaluation.value,
                    evaluation.gradient,
                )
            )
        emit(
            RoundEnded(
                run=run,
                round=n_rounds - 1,
                order=ask.order,
                what=ask.what if spent else f"{ask.what}, from the survey",
                objective=evaluation.value,
                gap=state.gap,
                n_iter=state.n_iter,
                passes=passes,
                result=result,
            )
        )
        if keeper is not None:
            keeper.write_if_due()
    emit(FitEnded(run, state.reason, state.gap))
    return Outcome(state, passes, *last)


def _verified(
    problem: Problem,
    executor: Executor,
    survey: RoundResult[Survey],
    result: RoundResult[Statistics],
    keeper: CheckpointKeeper,
    progress: Progress[S],
) -> RoundResult[Survey]:
    """Compare a checkpoint with its last point's sums; the survey, with what happened meanwhile."""
    with single_threaded_blas():
        evaluation = problem.evaluation(progress.point, result.total)
    cost_s = survey.seconds + result.seconds
    event = keeper.verified(progress, evaluation, time.time(), cost_s)
    executor.publish(event)
    return replace(survey, faults=(*survey.faults, *result.faults, event))


@dataclass
class Stopwatch:
    """Wall time since it was made, by a monotonic clock."""

    clock: Callable[[], float] = time.perf_counter
    started_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.started_s = self.clock()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self.clock() - self.started_s
