from __future__ import annotations

from dataclasses import fields, replace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_dml.objective import (
    L2Penalty,
    LogisticLoss,
    MultinomialLoss,
    Problem,
    SquaredLoss,
    TargetKind,
    block_statistics,
    survey_block,
)
from dask_dml.solvers import LBFGS, Goal, GradientDescent, Newton, Relay, SubsampledNewton
from dask_dml.solvers.core import CONVERGED, MAX_ITER, STALLED, least_eigenvalue, state_arrays


class Case:
    """A problem, its rows, and its optimum found without any of the solvers."""

    def __init__(self, loss, *, seed=0, intercept=True, C=1.0, spread=0, strength=4.0, n=150, p=4):
        rng = np.random.default_rng(seed)
        scale = 10.0 ** rng.uniform(-spread, spread, p)
        X = rng.normal(size=(n, p)) + rng.normal(size=p)
        self.weight = rng.random(n) + 0.1
        K = max(2, loss.n_outputs)
        scores = X @ (strength * rng.normal(size=(p, K))) / np.sqrt(p)
        if isinstance(loss, SquaredLoss):
            self.target, kind = scores[:, 0] + rng.normal(size=n), TargetKind.NUMBERS
        else:
            self.target = (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)
            self.target[:K] = np.arange(K)
            kind = TargetKind.CLASSES
        self.X = X * scale
        survey = survey_block(kind, ("",) * p, 0, self.X, self.target, self.weight)
        self.problem = Problem(loss, L2Penalty(1.0), C, survey, intercept)

    def goal(self, tol=1e-8, max_iter=100):
        return Goal.of(self.problem, tol, max_iter)

    def evaluate(self, ask):
        request = self.problem.request(ask.point, ask.order, ask.share, ask.gram_share)
        sums = block_statistics(request, self.X, self.target, self.weight)
        return self.problem.evaluation(ask.point, sums)

    def objective(self, point):
        """The objective in extended precision."""
        problem = self.problem
        coef, constant = (np.asarray(a, np.longdouble) for a in problem.coefficients(point))
        z = self.X.astype(np.longdouble) @ coef.T + constant
        y = self.target
        if isinstance(problem.loss, SquaredLoss):
            losses = 0.5 * (z[:, 0] - y) ** 2
        else:
            z = np.column_stack([np.zeros(len(z)), z]) if z.shape[1] == 1 else z
            rest = z - z[np.arange(len(z)), y][:, None]
            top = np.maximum(rest.max(axis=1), 0)
            losses = top + np.log(np.exp(rest - top[:, None]).sum(axis=1))
        return problem.multiplier * (self.weight @ losses) + 0.5 * np.sum(coef**2)

    def optimum(self):
        """The least objective, by damped Newton steps until nothing changes any more."""
        point = self.problem.start()
        value = self.objective(point)
        for _ in range(300):
            found = self.evaluate(Newton(self.goal()).ask(Newton(self.goal()).start(point)))
            direction = -np.linalg.lstsq(found.hessian, found.gradient, rcond=1e-15)[0]
            step = 1.0
            while (trial := self.objective(point + step * direction)) >= value and step > 1e-6:
                step *= 0.5
            if trial >= value:
                break
            point, value = point + step * direction, trial
        return value

    def solve(self, solver, start=None):
        state = solver.start(self.problem.start() if start is None else start)
        n_rounds = 0
        while not state.reason:
            state = solver.tell(state, self.evaluate(solver.ask(state)))
            n_rounds += 1
            assert n_rounds < 3000
        return state, n_rounds


LOSSES = [LogisticLoss(), MultinomialLoss(3), SquaredLoss()]
SOLVERS = {
    "newton": Newton,
    "lbfgs": LBFGS,
    "gd": GradientDescent,
    "lbfgs, newton": lambda goal: Relay(LBFGS(goal), Newton(goal), goal.tol),
    "gd, newton": lambda goal: Relay(GradientDescent(goal), Newton(goal), goal.tol),
    "subsampled newton": lambda goal: subsampled(goal, (1.0,)),
}


def subsampled(goal, shares, n_rows=150):
    first = SubsampledNewton(goal, n_rows, len(goal.row_extent), shares)
    return Relay(first, Newton(goal), goal.tol)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_reaches_the_optimum(name, loss, intercept):
    case = Case(loss, intercept=intercept, spread=2)
    state, _ = case.solve(SOLVERS[name](case.goal(tol=1e-10, max_iter=2000)))
    optimum = case.optimum()
    assert state.reason == CONVERGED
    assert case.objective(state.point) - optimum <= 1e-8 * optimum
    if "newton" in name:
        assert case.objective(state.point) - optimum <= 1e-10 * optimum
        assert state.gap <= 1e-10


@pytest.mark.parametrize("name", ["newton", "lbfgs, newton", "subsampled newton"])
@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    loss=st.sampled_from(LOSSES),
    intercept=st.booleans(),
    C=st.sampled_from([1e-3, 1.0, 1e4]),
    spread=st.sampled_from([0, 4]),
    strength=st.sampled_from([0.5, 4.0, 40.0]),
    tol=st.sampled_from([1e-2, 1e-8]),
)
def test_the_gap_is_never_below_the_true_one(name, tol, **drawn):
    case = Case(n=60, p=3, **drawn)
    solver = SOLVERS[name](case.goal(tol=tol, max_iter=500))
    optimum = case.optimum()
    state = solver.start(case.problem.start())
    while not state.reason:
        state = solver.tell(state, case.evaluate(solver.ask(state)))
        if not np.isnan(state.gap):
            objective = case.objective(state.point)
            assert state.gap >= (objective - optimum) / objective
    assert state.reason == CONVERGED


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    loss=st.sampled_from(LOSSES[:2]),
    intercept=st.booleans(),
    C=st.sampled_from([1e-3, 1.0, 1e4]),
    spread=st.sampled_from([0, 4]),
    strength=st.sampled_from([0.5, 4.0, 40.0]),
    shares=st.sampled_from([(1.0,), (0.3, 1.0)]),
    is_collinear=st.booleans(),
)
def test_a_gap_by_the_hessian_of_some_rows_is_never_below_the_true_one(
    shares, is_collinear, **drawn
):
    case = Case(n=500, p=4, **drawn)
    if is_collinear:
        case.X[:, 3] = case.X[:, 0] - case.X[:, 1]
        kind = TargetKind.CLASSES
        survey = survey_block(kind, ("",) * 4, 0, case.X, case.target, case.weight)
        case.problem = replace(case.problem, survey=survey)
    optimum = case.optimum()
    goal = case.goal(max_iter=500)
    solver = subsampled(goal, shares, 500)
    state = solver.start(case.problem.start())
    # Where rounds cost nothing, no more rows are taken for a Hessian than it needs.
    with mock.patch("dask_dml.solvers.subsampled._ROUND_ENTRIES", 0.0):
        while not state.reason:
            ask = solver.ask(state)
            state = solver.tell(state, case.evaluate(ask))
            if not np.isnan(state.gap):
                objective = case.objective(state.point)
                assert state.gap >= (objective - optimum) / objective
    assert state.reason == CONVERGED


@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 30),
    condition=st.sampled_from([1.0, 1e3, 1e8, 1e12]),
    is_definite=st.booleans(),
)
def test_the_least_eigenvalue_is_not_overestimated(seed, size, condition, is_definite):
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(size, size)))
    values = np.geomspace(1.0, condition, size)
    if not is_definite:
        values[0] = -1.0
    found = least_eigenvalue((basis * values) @ basis.T, np.ones(size))
    rounding = 1e-13 * abs(values).max()
    assert found <= values[0] + rounding
    assert found >= min(0.8 * values[0], values[0]) - rounding


def test_a_quadratic_is_done_after_one_round():
    case = Case(SquaredLoss())
    state, n_rounds = case.solve(Newton(case.goal()))
    assert n_rounds == 1
    assert state.gap < 1e-12


def nearly_equal_columns(distance):
    case = Case(SquaredLoss(), n=300, p=2, C=1e8)
    rng = np.random.default_rng(1)
    both = rng.normal(size=(300, 2)) * [1.0, distance]
    case.X = np.column_stack([both[:, 0], both[:, 0] + both[:, 1]])
    case.target = both[:, 0] + both[:, 1] / distance + rng.normal(size=300)
    survey = survey_block(TargetKind.NUMBERS, ("", ""), 0, case.X, case.target, case.weight)
    case.problem = replace(case.problem, survey=survey, penalty=L2Penalty(0.0))
    exact = (case.X[:, 1] - case.X[:, 0]) / distance  # no cancellation left to do
    design = np.column_stack([case.X[:, 0], exact, np.ones(300)])
    root = np.sqrt(case.weight)
    solution = np.linalg.lstsq(design * root[:, None], case.target * root)[0]
    rest = case.target - design @ solution
    return case, 0.5e8 * case.weight @ rest**2


@pytest.mark.parametrize("distance", [1e-2, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-10])
def test_least_squares_of_nearly_equal_columns_is_certified_or_said_not_to_be(distance):
    case, optimum = nearly_equal_columns(distance)
    state, n_rounds = case.solve(Newton(case.goal()))
    objective = 1e8 * float(0.5 * case.weight @ (rows_of(case, state.point) - case.target) ** 2)
    true = (objective - optimum) / objective
    assert state.reason == CONVERGED
    if distance >= 1e-6:
        assert true <= 1e-8
        assert state.gap >= true - 1e-10  # the digits of the reference
        assert n_rounds <= 4
    else:
        assert np.isnan(state.gap)


def rows_of(case, point):
    coef, constant = case.problem.coefficients(point)
    return (case.X.astype(np.longdouble) @ coef[0] + constant[0]).astype(float)


@pytest.mark.parametrize("factor", [100.0, -100.0, 1e4, -1e4])
@pytest.mark.parametrize("loss", LOSSES[:2], ids=repr)
def test_newton_comes_back_from_a_bad_start(loss, factor):
    case = Case(loss)
    solver = Newton(case.goal())
    far = factor * np.random.default_rng(0).normal(size=case.problem.n_coordinates)
    far = case.problem.point(*case.problem.coefficients(far))
    state, n_rounds = case.solve(solver, far)
    assert state.reason == CONVERGED
    assert n_rounds < 200
    optimum = case.optimum()
    assert case.objective(state.point) - optimum <= 1e-8 * optimum


@pytest.mark.parametrize("name", SOLVERS)
def test_the_value_of_accepted_points_does_not_rise(name):
    case = Case(LogisticLoss(), spread=2)
    solver = SOLVERS[name](case.goal(max_iter=300))
    state = solver.start(case.problem.start())
    accepted = []
    while not state.reason:
        state = solver.tell(state, case.evaluate(solver.ask(state)))
        if np.isfinite(state.value):
            accepted.append(state.value)
    if "gd" not in name:  # whose steps are non-monotone
        assert np.all(np.diff(accepted) <= 1e-13 * abs(accepted[0]))
    assert accepted[-1] <= accepted[0]


@pytest.mark.parametrize("name", SOLVERS)
def test_it_stops_at_max_iter_and_says_so(name):
    case = Case(LogisticLoss(), spread=2)
    state, _ = case.solve(SOLVERS[name](case.goal(tol=1e-14, max_iter=2)))
    assert (state.reason, state.n_iter) == (MAX_ITER, 2)


@pytest.mark.parametrize("name", SOLVERS)
def test_it_stops_where_no_trial_goes_down(name):
    case = Case(LogisticLoss())
    solver = SOLVERS[name](case.goal())
    state = solver.start(case.problem.start() + 0.5)
    first = solver.ask(state)
    state = solver.tell(state, case.evaluate(first))
    for _ in range(200):
        if state.reason:
            break
        state = solver.tell(state, replace(case.evaluate(solver.ask(state)), value=np.inf))
    assert state.reason == STALLED
    np.testing.assert_array_equal(state.point, first.point)


def stored(state):
    """The state as bytes, and read back."""
    copies = {
        name: np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape)
        for name, array in state_arrays(state).items()
    }
    return rebuilt(state, copies, "")


def rebuilt(state, arrays, prefix):
    values = {}
    for field in fields(state):
        old = getattr(state, field.name)
        if hasattr(old, "point"):
            values[field.name] = rebuilt(old, arrays, f"{prefix}{field.name}/")
        elif f"{prefix}{field.name}" in arrays:
            array = arrays[f"{prefix}{field.name}"]
            values[field.name] = array if array.ndim else array.item()
    return replace(state, **values)


@pytest.mark.parametrize("loss", LOSSES[:2], ids=repr)
@pytest.mark.parametrize("name", SOLVERS)
def test_a_state_that_was_stored_goes_on_with_the_same_bits(name, loss):
    case = Case(loss, spread=2)
    solver = SOLVERS[name](case.goal(max_iter=500))
    straight, n_rounds = case.solve(solver)
    state = solver.start(case.problem.start())
    for _ in range(n_rounds):
        state = stored(state)
        ask = solver.ask(stored(state))
        state = solver.tell(stored(state), case.evaluate(ask))
    assert state.reason == straight.reason
    assert state.point.tobytes() == straight.point.tobytes()
    assert (state.value, state.gap, state.n_iter) == (straight.value, straight.gap, straight.n_iter)


def test_states_are_numbers_only():
    case = Case(LogisticLoss())
    for make in SOLVERS.values():
        solver = make(case.goal())
        state = solver.tell(
            solver.start(case.problem.start()),
            case.evaluate(solver.ask(solver.start(case.problem.start()))),
        )
        assert all(array.dtype.kind in "fi" for array in state_arrays(state).values())


def test_asking_and_telling_change_nothing_that_was_there():
    case = Case(LogisticLoss())
    for make in SOLVERS.values():
        solver = make(case.goal())
        state = solver.start(case.problem.start())
        for _ in range(6):
            if state.reason:
                break
            before = {name: array.copy() for name, array in state_arrays(state).items()}
            following = solver.tell(state, case.evaluate(solver.ask(state)))
            for name, array in state_arrays(state).items():
                np.testing.assert_array_equal(array, before[name])
            state = following


def test_a_relay_hands_over_where_the_first_has_converged():
    case = Case(LogisticLoss(), spread=2)
    goal = case.goal()
    alone, _ = case.solve(LBFGS(goal))
    relay = Relay(LBFGS(goal), Newton(goal), goal.tol)
    assert relay.name == "lbfgs"
    state = relay.start(case.problem.start())
    orders = []
    while not state.reason:
        ask = relay.ask(state)
        orders.append(ask.order)
        if ask.order == 2 and 2 not in orders[:-1]:
            np.testing.assert_array_equal(ask.point, alone.point)
        state = relay.tell(state, case.evaluate(ask))
    assert orders == [1] * (len(orders) - 1) + [2]
    assert state.n_iter > alone.n_iter
    assert case.objective(state.point) < case.objective(alone.point)


def test_a_relay_does_not_hand_over_what_is_not_done():
    case = Case(LogisticLoss(), spread=2)
    goal = case.goal(tol=1e-14, max_iter=1)
    state, n_rounds = case.solve(Relay(LBFGS(goal), Newton(goal), goal.tol))
    assert state.reason == MAX_ITER
    assert state.second is None
    assert n_rounds >= 2


def test_without_intercept_a_gradient_certifies():
    case = Case(LogisticLoss(), intercept=False)
    state, _ = case.solve(LBFGS(case.goal(tol=1e-12)))
    optimum = case.optimum()
    objective = case.objective(state.point)
    assert (objective - optimum) / objective <= state.gap <= 1e-4
