"""Ask and tell: the protocol of solvers, and the certificate with which they stop.

A solver never evaluates anything. It is asked for the next point (`Solver.ask`), somebody evaluates
the objective there, and the solver is told (`Solver.tell`). A trial point of a line search is an
ordinary round. Its state is plain data: arrays and numbers, which can be stored between any two
rounds and read back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Protocol, Self, TypeVar, cast

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from dask_dml.objective.blocks import GramDtype
from dask_dml.objective.losses import Array
from dask_dml.objective.problem import Evaluation, Problem

CONVERGED = "converged"
MAX_ITER = "max_iter"
STALLED = "no further descent"
VANISHED = "the objective falls to zero"

# Relative size below which a change of the objective is rounding.
_NOISE = 64 * float(np.finfo(np.float64).eps)
# Relative rounding of a sum over rows.
_UNIT = 0.25 * _NOISE
# Of the sum of the weights: an objective that only rows of the least doubt are left of.
_VANISHING = 1e-14
# Inverse iterations for an eigenvalue, and the share of what they find that is tried as a bound.
_ITERATIONS = 8
_SURELY = 0.9
# Reciprocal condition below which a Hessian is taken as singular.
_SINGULAR = 1e-13


class Ask(NamedTuple):
    """What a solver wants to know.

    Attributes
    ----------
    point : ndarray of shape (d,)
    order : {1, 2}
        1: value and gradient. 2: the Hessian too.
    share : float
        Share of the rows to look at, drawn at random.
    gram_share : float
        Of those rows, the share that the Hessian is formed of; it stands for all of them.
    terms : ndarray of int or None
        Terms, in order, that the Hessian is of; None is all. The point is zero in all others.
    gram_dtype : {numpy.float64, numpy.float32}
        What the Hessian's products are formed in; float32 may serve where it only leads the way.
    """

    point: Array
    order: int
    share: float = 1.0
    gram_share: float = 1.0
    terms: NDArray[np.intp] | None = None
    gram_dtype: GramDtype = np.float64

    @property
    def is_whole_hessian(self) -> bool:
        """Whether the Hessian is asked for as it is, of all rows and terms."""
        is_exact = self.share * self.gram_share == 1.0 and self.gram_dtype == np.float64
        return self.order == 2 and is_exact and self.terms is None

    @property
    def what(self) -> str:
        """In words, such as "gradient, and Hessian of 10 % of the rows"."""
        rows = "" if self.share == 1.0 else f" of {100.0 * self.share:.3g} % of the rows"
        if self.order == 1:
            return f"gradient{rows}"
        hessian = "Hessian" if self.terms is None else f"Hessian of {len(self.terms)} terms"
        if self.gram_share == 1.0:
            return f"gradient and {hessian}{rows}"
        share = 100.0 * self.share * self.gram_share
        return f"gradient{rows}, and {hessian} of {share:.3g} % of the rows"


@dataclass(frozen=True, slots=True)
class Goal:
    """When to stop, and what is known for certifying it.

    Attributes
    ----------
    tol : float
        Relative gap to reach: (objective - optimum) / |objective|.
    max_iter : int
        Most iterations (accepted steps).
    self_concordance : float
        Constant of the loss; see `Loss.self_concordance`.
    row_extent : ndarray of shape (q,)
        Bounds of a row's entries, in the solver's coordinates.
    convexity : ndarray of shape (d,)
        A diagonal matrix that is below the Hessian everywhere; 0 where there is no such bound.
    smoothness : float
        Bound of the Hessian's eigenvalues everywhere; inf where there is none.
    vanishing : float
        Below, an objective without a penalty is taken as falling to zero, where there may be no
        optimum.
    """

    tol: float
    max_iter: int
    self_concordance: float
    row_extent: Array
    convexity: Array
    smoothness: float = np.inf
    vanishing: float = 0.0

    @classmethod
    def of(cls, problem: Problem, tol: float, max_iter: int) -> Self:
        """The goal for a problem."""
        penalty, concordance = problem.penalty, problem.loss.self_concordance
        is_free = penalty.strength == 0.0 and penalty.absolute == 0.0
        size = problem.multiplier * problem.survey.weight
        return cls(
            tol,
            max_iter,
            concordance,
            problem.row_extent,
            problem.convexity,
            problem.smoothness,
            _VANISHING * size if is_free and 0.0 < concordance < np.inf else 0.0,
        )


@dataclass(frozen=True)
class SolverState:
    """What every solver's state has.

    Attributes
    ----------
    point : ndarray of shape (d,)
        The best point so far; the result, once `reason` is not empty.
    value : float
        Objective at the last accepted point.
    gap : float
        Upper bound of the relative gap at `point`; nan while there is none.
    n_iter : int
        Accepted steps.
    reason : str
        Why it stopped; empty while it goes on.
    """

    point: Array
    value: float
    gap: float
    n_iter: int
    reason: str


S = TypeVar("S", bound=SolverState)


class Solver(Protocol[S]):
    """A method of minimising, apart from what is minimised and who evaluates it."""

    @property
    def name(self) -> str: ...

    def start(self, point: Array) -> S:
        """State before the first round."""
        ...

    def ask(self, state: S) -> Ask:
        """The next point to evaluate; asked only while `state.reason` is empty."""
        ...

    def tell(self, state: S, evaluation: Evaluation) -> S:
        """State after the point that was asked for has been evaluated."""
        ...

    def restore(self, stored: StoredState) -> S:
        """The state of which `state_arrays` and `state_reasons` were kept, to the same bits."""
        ...


class StoredState(NamedTuple):
    """A state as plain data, by the names of its fields.

    Those of a state within a state have names such as ``first/point``.

    Attributes
    ----------
    arrays : dict of str to ndarray
        See `state_arrays`.
    reasons : dict of str to str
        See `state_reasons`.
    """

    arrays: Mapping[str, Array]
    reasons: Mapping[str, str]

    def part(self, name: str) -> StoredState | None:
        """The state that is within this one under a name; None where there is none."""
        start = f"{name}/"
        arrays = {k.removeprefix(start): a for k, a in self.arrays.items() if k.startswith(start)}
        reasons = {k.removeprefix(start): r for k, r in self.reasons.items() if k.startswith(start)}
        return StoredState(arrays, reasons) if arrays else None

    def restored(self, kind: type[S]) -> S:
        """The state, apart from those within it."""
        own: dict[str, Any] = {
            name: array if array.ndim else array.item()
            for name, array in self.arrays.items()
            if "/" not in name
        }
        return kind(**own, reason=self.reasons["reason"])


def state_arrays(state: SolverState) -> dict[str, Array]:
    """A state without its reason as named numeric arrays, for storing it without pickle.

    The fields of a state within a state have names such as ``first/point``.
    """
    arrays: dict[str, Array] = {}
    for field in fields(state):
        value = getattr(state, field.name)
        if isinstance(value, SolverState):
            arrays |= {f"{field.name}/{name}": a for name, a in state_arrays(value).items()}
        elif field.name != "reason" and value is not None:
            arrays[field.name] = np.asarray(value)
    return arrays


def state_reasons(state: SolverState) -> dict[str, str]:
    """The reasons of a state and of those within it, named as by `state_arrays`."""
    reasons = {"reason": state.reason}
    for field in fields(state):
        value = getattr(state, field.name)
        if isinstance(value, SolverState):
            reasons |= {f"{field.name}/{name}": r for name, r in state_reasons(value).items()}
    return reasons


class NewtonStep(NamedTuple):
    """A Newton step and what it certifies.

    Attributes
    ----------
    direction : ndarray of shape (d,)
    decrement2 : float
        Squared Newton decrement, ``g^T H^-1 g``.
    gap : float
        Upper bound of (value - optimum) at the point; inf where none can be given.
    gap_after : float
        The same at the point plus the whole direction.
    """

    direction: Array
    decrement2: float
    gap: float
    gap_after: float


def newton_step(evaluation: Evaluation, goal: Goal) -> NewtonStep:
    r"""Newton step at a point and the bounds on the gap that it gives.

    Parameters
    ----------
    evaluation : Evaluation
        With a Hessian.
    goal : Goal

    Returns
    -------
    NewtonStep

    Notes
    -----
    For a generalised self-concordant function of order 2 (Bach 2010; Sun & Tran-Dinh 2019,
    proposition 10) with ``|D3 f[u, u, v]| <= M |v|_x D2 f[u, u]``, in the norm of the Hessian
    ``|v|_x`` at the point x, and ``a = M * decrement < 1``,

    .. math:: f(x) - f^* \le (a + (1 - a) \log(1 - a)) / M^2,

    the minimum over all lengths of the lower model; and the upper model along the step gives

    .. math:: f(x + d) \le f(x) - a^2 / M^2 + (e^a - a - 1) / M^2.

    Their difference bounds the gap after the step, about ``a^3 / (3 M^2)``: the step that the
    certifying Hessian has paid for makes the result better, and the bound still holds. M comes from
    the largest change of a score: ``|x_i v| <= |D^-1/2 x_i| |D^1/2 v|`` with D the squared bounds
    of the entries, so that it does not depend on units. A step that changes no score by much leaves
    less; see `contracted_gap`.
    """
    if evaluation.hessian is None:
        raise ValueError("newton_step(evaluation=...) needs a Hessian: ask with order=2")
    direction, rounding = newton_direction(evaluation, goal.self_concordance == 0.0)
    decrement2 = max(float(-(evaluation.gradient @ direction)), 0.0)
    if goal.self_concordance == 0.0:
        return NewtonStep(direction, decrement2, 0.5 * decrement2 + rounding, rounding)
    if not np.isfinite(goal.self_concordance):
        # A loss with kinks in its slope: what the penalty alone tells.
        strong = bool(np.all(goal.convexity > 0.0))
        bound = 0.5 * float(np.sum(evaluation.gradient**2 / goal.convexity)) if strong else np.inf
        return NewtonStep(direction, decrement2, bound, np.inf)
    least = least_eigenvalue(evaluation.hessian, goal.row_extent)
    if least <= 0.0:
        return NewtonStep(direction, decrement2, np.inf, np.inf)
    M = goal.self_concordance * np.sqrt(len(goal.row_extent) / least)
    decrement = np.sqrt(decrement2)
    gap, gap_after = self_concordant_gaps(M * decrement)
    change = goal.self_concordance * largest_change(direction, goal.row_extent)
    gap_after = min(gap_after / M**2, contracted_gap(M, decrement, change))
    return NewtonStep(direction, decrement2, gap / M**2 + rounding, gap_after + rounding)


def self_concordant_gaps(a: float) -> tuple[float, float]:
    """Bounds on the gap before and after a Newton step, in units of ``1 / M^2``.

    Parameters
    ----------
    a : float
        M times the Newton decrement.

    Returns
    -------
    gap, gap_after : float
        inf when `a` is not below 1.
    """
    if not a < 1.0:
        return np.inf, np.inf
    if a < 1e-2:
        # The series; the closed forms lose their digits to cancellation here. The factors on the
        # last terms are above what remains of the series for a < 0.01.
        gap = a**2 / 2 + a**3 / 6 + a**4 / 12 * 1.02
        return gap, a**3 / 3 + a**4 / 8 * 1.02
    gap = a + (1.0 - a) * float(np.log1p(-a))
    return gap, float(np.expm1(a)) - a - a**2 + gap


def largest_change(direction: Array, row_extent: Array) -> float:
    """Bound of the change that a direction, shape (K * q,), makes to the scores of any row."""
    change = np.abs(direction).reshape(-1, len(row_extent)) @ row_extent
    return float(np.linalg.norm(change))


def contracted_gap(M: float, decrement: float, change: float) -> float:
    r"""Bound on the gap after a Newton step, by how much the Hessian changes along it.

    Parameters
    ----------
    M, decrement : float
        See `newton_step`.
    change : float
        Self-concordance of the loss times the largest change of a row's score: r.

    Returns
    -------
    float
        inf where the bound says nothing.

    Notes
    -----
    Along the step the Hessian is between :math:`e^{-tr}` and :math:`e^{tr}` times that at its
    start (Sun & Tran-Dinh 2019, proposition 8). The gradient after the step is the integral of what
    it has changed, at most :math:`(e^r - 1 - r) / r` times the decrement in the norm of the first
    Hessian, and :math:`e^{r / 2}` times that in its own. So the gap is about
    :math:`r^2 \lambda^2 / 8`, smaller than the other bound by a factor of r.
    """
    if not change < 10.0:
        return np.inf
    half = float(np.exp(0.5 * change))
    # The series where the closed form cancels; its last factor is above what remains.
    short = 0.5 * change * (1.0 + change / 3.0 + change**2 / 11.0)
    factor = short if change < 1e-2 else (float(np.expm1(change)) - change) / change
    gap, _ = self_concordant_gaps(M * half * half * factor * decrement)
    return gap / (M * half) ** 2


def newton_direction(evaluation: Evaluation, is_quadratic: bool) -> tuple[Array, float]:
    """Newton direction, and the gap that its rounding may leave.

    The Hessian is taken with a diagonal of ones, so that units do not matter. Its entries are
    rounded; the solution is then wrong by the inverse times that. inf where the gradient has a part
    along directions that are flat to working precision.
    """
    hessian = cast("Array", evaluation.hessian)
    diagonal = np.diagonal(hessian)
    root = np.sqrt(np.where(diagonal > 0.0, diagonal, 1.0))
    scaled = hessian / root[:, None] / root
    scaled[np.diag_indices_from(scaled)] = np.where(diagonal > 0.0, 1.0, 0.0)
    gradient = evaluation.gradient / root
    norm = float(np.abs(scaled).sum(axis=0).max())
    found = _cholesky_solve(scaled, norm, gradient)
    if found is not None:
        solution, least = found
        return -solution / root, _rounding(norm, solution, least)
    values, vectors = scipy.linalg.eigh(scaled)
    unsure = len(values) * float(np.finfo(np.float64).eps) * 10.0
    steep = values > unsure * values[-1]
    flat, basis = vectors[:, ~steep], vectors[:, steep]
    solution = basis @ ((basis.T @ gradient) / values[steep])
    slope = flat.T @ gradient
    noise = 4.0 * _UNIT * norm * (np.linalg.norm(solution) + np.sqrt(2.0 * abs(evaluation.value)))
    if np.linalg.norm(slope) > noise:
        if not is_quadratic:
            # Far out, where rows are so surely wrong that they have no curvature: Polyak's step,
            # for an objective that is nowhere below zero.
            solution = solution + flat @ slope * (evaluation.value / float(slope @ slope))
        return -solution / root, np.inf
    direction = solution / root
    null, _ = np.linalg.qr(np.where(np.abs(flat) > unsure, flat, 0.0) / root[:, None])
    # Of all solutions that of least norm; once is not enough where the scales are far apart.
    for _ in range(2):
        direction -= null @ (null.T @ direction)
    return -direction, _rounding(norm, solution, float(values[steep][0]))


def _rounding(norm: float, solution: Array, least_eigenvalue: float) -> float:
    """The gap that is left by rounding of a solution with a matrix of such norm."""
    return (_UNIT * norm * float(np.linalg.norm(solution))) ** 2 / (2.0 * least_eigenvalue)


def least_eigenvalue(hessian: Array, row_extent: Array) -> float:
    """Least eigenvalue of a Hessian in units of the rows' extent, without what may be rounding."""
    extent = np.tile(row_extent, len(hessian) // len(row_extent))
    # A larger bound is still one, and keeps the eigenvalues within what rounding resolves.
    extent = np.maximum(extent, 1e-4 * extent.max())
    metric = hessian / extent[:, None] / extent
    rounding = _UNIT * float(np.linalg.norm(metric))
    # Two factorisations show what an eigenvalue is above in a third of the time that it takes.
    try:
        factor = scipy.linalg.cholesky(metric, lower=True)
        least = _SURELY * about_least_eigenvalue(factor, np.ones(len(metric)))
        scipy.linalg.cholesky(metric - least * np.eye(len(metric)), lower=True)
    except scipy.linalg.LinAlgError:
        least = float(scipy.linalg.eigvalsh(metric, subset_by_index=[0, 0])[0])
    return least - rounding


def about_least_eigenvalue(factor: Array, extent: Array) -> float:
    """About the least eigenvalue of a matrix in some units, by inverse iteration.

    Parameters
    ----------
    factor : ndarray of shape (d, d)
        The matrix's lower Cholesky factor.
    extent : ndarray of shape (d,)
        The units.
    """
    vector = np.ones(len(factor))
    norm = 1.0
    for _ in range(_ITERATIONS):
        vector = extent * scipy.linalg.cho_solve((factor, True), extent * (vector / norm))
        norm = float(np.linalg.norm(vector))
        if not np.isfinite(norm):
            return 0.0
    return 1.0 / norm if norm > 0.0 else np.inf


def _cholesky_solve(matrix: Array, norm: float, vector: Array) -> tuple[Array, float] | None:
    """Solution by Cholesky and about the least eigenvalue; None where that is nearly zero."""
    try:
        factor = scipy.linalg.cholesky(matrix, lower=True)
    except scipy.linalg.LinAlgError:
        return None
    reciprocal_condition, _ = scipy.linalg.lapack.dpocon(factor, norm, uplo="L")
    if reciprocal_condition < _SINGULAR:
        return None
    solution = np.asarray(scipy.linalg.cho_solve((factor, True), vector))
    return solution, float(reciprocal_condition) * norm


def certified_finish(
    point: Array, evaluation: Evaluation, goal: Goal
) -> tuple[NewtonStep, Array, float]:
    """The Newton step at a point, the better point it leads to, and that point's relative gap.

    Returns
    -------
    step : NewtonStep
    point : ndarray of shape (d,)
        The point plus the step.
    gap : float
        Relative gap there; nan where there is no bound.
    """
    step = newton_step(evaluation, goal)
    return step, point + step.direction, relative_gap(evaluation.value, step.gap, step.gap_after)


def lower_bound_gap(evaluation: Evaluation, share: float, goal: Goal) -> float:
    """Bound of the relative gap at a point from the Hessian of a share of the rows.

    The rows that were left out have a Hessian too, which is not below zero: that of the others, not
    scaled up, is below that of all, and so are its bounds of the curvature and of its change.

    Parameters
    ----------
    evaluation : Evaluation
        On all rows, with a Hessian that was scaled up from some.
    share : float
        Factor with which that is below the Hessian of all rows.
    goal : Goal

    Returns
    -------
    float
        nan where there is no bound.
    """
    if evaluation.hessian is None:
        raise ValueError("lower_bound_gap(evaluation=...) needs a Hessian: ask with order=2")
    step = newton_step(replace(evaluation, hessian=share * evaluation.hessian), goal)
    return relative_gap(evaluation.value, step.gap, step.gap)


def relative_gap(value: float, gap: float, gap_after: float) -> float:
    """Bound of the relative gap after a step, from absolute bounds before and after it.

    The objective after the step is not known, only that it is above ``value - gap``. Rounding of
    the sums themselves and of the point is added; of an objective that falls to zero, as in a
    perfect fit, nothing below that rounding can be told, and the gap is relative to it.
    """
    if not np.isfinite(gap_after):
        return np.nan
    noise = _NOISE * 0.125
    size = max(abs(value) - gap, noise * abs(value))
    return gap_after / size + 2.0 * noise if size > 0.0 else 2.0 * noise


def gradient_gap(value: float, gradient: Array, goal: Goal) -> float:
    """Bound of the relative gap from the gradient alone, ``sum(g^2 / (2 * convexity))``.

    nan without strong convexity, as with an intercept that is not penalised.
    """
    if np.any(goal.convexity <= 0.0):
        return np.nan
    gap = 0.5 * float(np.sum(gradient**2 / goal.convexity))
    return relative_gap(value, gap, gap)


def is_descent(value: float, slope: float, step: float, trial_value: float) -> bool:
    """Armijo's condition at a trial point, with allowance for rounding of the sums.

    Parameters
    ----------
    value, slope : float
        Objective and directional derivative where the line starts.
    step : float
        How far along the line the trial is.
    trial_value : float
        Objective there.
    """
    allowed = value + 1e-4 * step * slope + _NOISE * abs(value)
    return bool(np.isfinite(trial_value) and trial_value <= allowed)


def shorter_step(value: float, slope: float, step: float, trial_value: float) -> float:
    """Next trial of a backtracking: the parabola's minimum, between a tenth and a half."""
    if not np.isfinite(trial_value):
        return 0.1 * step
    curvature = trial_value - value - step * slope
    if curvature <= 0.0:
        return 0.5 * step
    return float(np.clip(-0.5 * slope * step**2 / curvature, 0.1 * step, 0.5 * step))


def resolved(value: float, initial: float) -> float:
    """Size of the objective, or what of its first value is rounding if that is larger.

    Of an objective that falls to zero, as in a perfect fit, nothing below that can be told.
    """
    return max(abs(value), _NOISE * 0.125 * abs(initial))


def is_negligible(value: float, expected_decrease: float) -> bool:
    """Whether an expected decrease is lost in the rounding of the objective."""
    return expected_decrease <= _NOISE * 0.125 * abs(value)
