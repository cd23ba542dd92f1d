from __future__ import annotations

from functools import reduce
from operator import add

import numpy as np
import pytest

from dask_dml.objective import (
    ElasticNetPenalty,
    L2Penalty,
    LogisticLoss,
    MultinomialLoss,
    Problem,
    SquaredLoss,
    TargetKind,
    block_statistics,
    survey_block,
)
from dask_dml.objective.survey import HeldOut
from dask_dml.solvers import Goal, Newton, ProximalNewton
from dask_dml.solvers.joint import JointNewton

N, P, N_FOLDS = 300, 3, 3
FOLDS = np.arange(N) % N_FOLDS
SQUARES = (L2Penalty(1.0),)
LOSSES = {"logistic": LogisticLoss(), "multinomial": MultinomialLoss(3), "squared": SquaredLoss()}


def rows(name, spread=1.0):
    rng = np.random.default_rng(7)
    X = rng.normal(size=(N, P)) + 0.5
    scores = spread * X @ rng.normal(size=(P, 3)) + rng.gumbel(size=(N, 3))
    if name == "squared":
        return X, scores[:, 0], TargetKind.NUMBERS
    n_classes = LOSSES[name].n_outputs + (name == "logistic")
    return X, scores[:, :n_classes].argmax(axis=1).astype(np.int32), TargetKind.CLASSES


def joint_of(name, X, y, kind, multipliers, penalties=SQUARES):
    survey = survey_block(kind, tuple("abc"), 0, X, y, None)
    loss = LOSSES[name]
    problems = [
        Problem(loss, penalty, factor, survey, True)
        for factor in multipliers
        for penalty in penalties
    ]
    return JointNewton(problems, N_FOLDS, 100)


def solved(joint, X, y, wanted, tol, at_most=50):
    state = joint.start(joint.problems[0].request(joint.problems[0].start(), 1).theta)
    points = []
    while len(joint.unsolved(state, wanted, tol)):
        request = joint.ask(state, wanted, tol)
        halves = (request.of_block(X[s], y[s], None, HeldOut(FOLDS[s], None)) for s in HALVES)
        state = joint.tell(state, request, reduce(add, halves), tol)
        points.append(len(request.requests))
        assert len(points) < at_most
    return state, points


HALVES = (slice(N // 2), slice(N // 2, None))


def by_itself(problem, X, y):
    solver = Newton(Goal.of(problem, 1e-14, 100))
    if problem.penalty.absolute:
        solver = ProximalNewton.of(problem, 1e-14, 100)
    state = solver.start(problem.start())
    while not state.reason:
        ask = solver.ask(state)
        sums = block_statistics(problem.request(ask.point, ask.order), X, y, None)
        state = solver.tell(state, problem.evaluation(ask.point, sums))
    return problem.evaluation(
        state.point, block_statistics(problem.request(state.point, 1), X, y, None)
    ).value


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("tol", [1e-4, 1e-10])
@pytest.mark.parametrize(
    "penalties",
    [
        SQUARES,
        [ElasticNetPenalty(0.0, 1.0)],
        [L2Penalty(1.0), ElasticNetPenalty(0.5, 0.5), ElasticNetPenalty(0.0, 1.0)],
    ],
    ids=["squares", "absolute", "both"],
)
def test_every_member_is_within_its_gap(name, tol, penalties):
    X, y, kind = rows(name)
    joint = joint_of(name, X, y, kind, [1e-3, 1e-2, 0.1, 1.0, 10.0], penalties)
    state, _ = solved(joint, X, y, np.arange(len(joint.members)), tol)
    assert state.is_solved(tol).all()
    for number, member in enumerate(joint.members):
        problem = joint.problems[member.penalty]
        training = np.ones(N, dtype=bool) if member.held_out is None else member.held_out != FOLDS
        point = (state.trial[number] * problem.scale).ravel()
        sums = block_statistics(problem.request(point, 1), X[training], y[training], None)
        value = problem.evaluation(point, sums).value
        optimum = by_itself(problem, X[training], y[training])
        assert (value - optimum) / value <= max(state.left[number], 1e-13)
        if problem.penalty.strength == 0.0 and problem.multiplier < 0.01:
            assert not state.trial[number][:, :-1].any()


def test_a_quadratic_takes_one_point_for_all():
    X, y, kind = rows("squared")
    joint = joint_of("squared", X, y, kind, np.logspace(-3, 3, 20))
    _, points = solved(joint, X, y, np.arange(len(joint.members)), 1e-10)
    assert points == [1]


def test_members_share_points():
    X, y, kind = rows("logistic")
    joint = joint_of("logistic", X, y, kind, np.logspace(1, 3, 20))
    wanted = np.arange(len(joint.members))
    _, points = solved(joint, X, y, wanted, 1e-4)
    # 80 members, each of which by itself would take four or five.
    assert sum(points) <= 80


def test_those_wanted_alone_are_solved():
    X, y, kind = rows("logistic")
    joint = joint_of("logistic", X, y, kind, [0.1, 1e3])
    wanted = np.array([joint.at(1, None)])
    state, points = solved(joint, X, y, wanted, 1e-12)
    assert state.is_solved(1e-12)[wanted].all()
    assert set(points) == {1}


def test_steps_that_overshoot_are_shortened():
    X, y, kind = rows("logistic", spread=40.0)
    joint = joint_of("logistic", X, y, kind, [1e6])
    wanted = np.arange(len(joint.members))
    state, _ = solved(joint, X, y, wanted, 1e-10, at_most=80)
    assert state.is_solved(1e-10).all()


def test_of_many_rows_a_share_is_enough_for_the_hessian_and_is_part_of_the_estimate():
    rng = np.random.default_rng(5)
    n = 40_000
    X = rng.normal(size=(n, P))
    y = (X[:, 0] + rng.logistic(size=n) > 0.0).astype(np.int32)
    folds = np.arange(n) % N_FOLDS
    joint = joint_of("logistic", X, y, TargetKind.CLASSES, [1e-3, 1.0])
    state = joint.start(joint.problems[0].request(joint.problems[0].start(), 1).theta)
    wanted, tol, shares = np.arange(len(joint.members)), 1e-7, []
    while len(joint.unsolved(state, wanted, tol)):
        request = joint.ask(state, wanted, tol)
        shares += [asked.gram_share for asked in request.requests]
        state = joint.tell(state, request, request.of_block(X, y, None, HeldOut(folds, None)), tol)
    assert 0.0 < min(shares) < 0.5
    for number in (joint.at(0, 1), joint.at(1, 0), joint.at(1, None)):
        penalty, held_out = joint.members[number]
        problem, training = joint.problems[penalty], folds != held_out
        point = (state.trial[number] * problem.scale).ravel()
        sums = block_statistics(problem.request(point, 1), X[training], y[training], None)
        value = problem.evaluation(point, sums).value
        optimum = by_itself(problem, X[training], y[training])
        assert (value - optimum) / value <= state.left[number] <= tol
