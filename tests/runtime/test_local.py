from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import scipy.sparse

from dask_dml.data.source import ArraySource, RawBlock
from dask_dml.errors import DataError, FitError
from dask_dml.objective import (
    L2Penalty,
    LogisticLoss,
    Problem,
    Request,
    SquaredLoss,
    Survey,
    TargetKind,
    TreeSum,
    block_statistics,
    survey_block,
)
from dask_dml.objective.folds import FoldEncoder, FoldRequest, consecutive_folds
from dask_dml.objective.survey import TargetEncoder
from dask_dml.runtime import FitEnded, FitStarted, LocalExecutor, RoundEnded, RunSpec, minimise
from dask_dml.solvers import Goal, Newton

N, P = 1000, 3
CHUNKS = (130, 200, 1, 300, 69, 200, 100)
NAMES = ("a", "b", "c")


def source(chunks=CHUNKS, sparse=False, weighted=True):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, P))
    y = np.where(X[:, 0] + rng.logistic(size=N) > 0, "yes", "no")
    return ArraySource(
        scipy.sparse.csr_array(X) if sparse else X,
        y,
        rng.random(N) if weighted else None,
        NAMES,
        chunks,
    )


ENCODER = TargetEncoder(np.array(["no", "yes"]), np.array([1.0, 2.0]))
REQUEST = Request(LogisticLoss(), np.array([[0.3, -0.2, 0.1, 0.4]]), np.zeros(P), 2)


def by_hand(given, request=REQUEST):
    """Survey and sums, block after block, along the tree."""
    surveys, sums = TreeSum(len(CHUNKS)), TreeSum(len(CHUNKS))
    for number, load in enumerate(given.loaders()):
        block = load()
        surveys.add((0, number), survey_block(TargetKind.CLASSES, NAMES, number, *block))
        target, weight, _ = ENCODER.encode(block.y, block.sample_weight)
        sums.add((0, number), block_statistics(request, block.X, target, weight))
    return surveys.value, sums.value


def same_bits(a, b):
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same_bits, a, b))
    if hasattr(a, "__dataclass_fields__"):
        return all(same_bits(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__)
    x, y = np.asarray(a), np.asarray(b)
    return x.dtype == y.dtype and x.tobytes() == y.tobytes()


@pytest.mark.parametrize(
    "memory_bytes", [None, 0, 4 * P * N], ids=["resident", "streamed", "half of each"]
)
@pytest.mark.parametrize("n_threads", [1, 2, 16])
@pytest.mark.parametrize("sparse", [False, True])
def test_threads_and_memory_do_not_show_in_the_bits(n_threads, memory_bytes, sparse):
    given = source(sparse=sparse)
    survey, sums = by_hand(given)
    executor = LocalExecutor(given, n_threads, memory_bytes)
    try:
        found = executor.survey(TargetKind.CLASSES)
        assert same_bits(found.total, survey)
        executor.encode(ENCODER)
        for _ in range(2):
            result = executor.evaluate(REQUEST)
            assert same_bits(result.total, sums)
    finally:
        executor.close()
    assert result.seconds >= 0.0
    assert list(result.busy_s) == ["local"]
    assert (result.nbytes, result.faults) == (0, ())


@dataclass
class Counting:
    """A source that counts what is loaded, and by which threads."""

    inner: ArraySource
    loads: list[int] = field(default_factory=list)
    held: int = 0
    most_held: int = 0

    feature_names = NAMES
    row_chunks = CHUNKS
    block_nbytes = tuple(8.0 * P * n for n in CHUNKS)

    def loaders(self):
        return [
            lambda number=number, load=load: self._load(number, load)
            for number, load in enumerate(self.inner.loaders())
        ]

    def _load(self, number, load) -> RawBlock:
        self.loads.append(number)
        return load()


def test_resident_blocks_are_loaded_once_and_streamed_ones_each_pass():
    for memory_bytes, times in ((None, 1), (0, 4)):
        counting = Counting(source())
        executor = LocalExecutor(counting, 2, memory_bytes)
        executor.survey(TargetKind.CLASSES)
        executor.encode(ENCODER)
        for _ in range(3):
            executor.evaluate(REQUEST)
        executor.close()
        assert sorted(counting.loads) == sorted(list(range(len(CHUNKS))) * times)


def test_of_blocks_that_do_not_fit_those_that_do_are_loaded_once():
    counting = Counting(source())
    executor = LocalExecutor(counting, 2, int(8 * P * N * 0.6))
    executor.survey(TargetKind.CLASSES)
    executor.encode(ENCODER)
    for _ in range(3):
        executor.evaluate(REQUEST)
    executor.close()
    times = Counter(counting.loads)
    assert set(times.values()) == {1, 4}
    kept = sum(CHUNKS[block] for block, n in times.items() if n == 1)
    assert 0.4 * N < kept <= 0.6 * N


def test_blocks_that_just_fit_are_kept():
    counting = Counting(source())
    executor = LocalExecutor(counting, 1, int(8 * P * N))
    executor.survey(TargetKind.CLASSES)
    executor.encode(ENCODER)
    executor.evaluate(REQUEST)
    executor.close()
    assert len(counting.loads) == len(CHUNKS)


def test_no_thread_is_left_behind_after_a_fit_or_an_error():
    before = set(threading.enumerate())
    for memory_bytes in (None, 0):
        given = source()
        given.X[400, 1] = np.nan
        executor = LocalExecutor(given, 2, memory_bytes)
        with pytest.raises(DataError, match=r"block 3, column 1 \('b'\), first at row 69"):
            executor.survey(TargetKind.CLASSES)
        executor.close()
    left = [t for t in set(threading.enumerate()) - before if t.is_alive()]
    assert left == []


def run_fit(given, listeners, solver=None):
    executor = LocalExecutor(given, 2)
    try:
        survey = executor.survey(TargetKind.CLASSES)
        executor.encode(TargetEncoder(survey.total.classes))
        problem = Problem(LogisticLoss(), L2Penalty(1.0), 1.0, survey.total, True)
        solver = solver or Newton(Goal.of(problem, 1e-8, 50))
        run = RunSpec("r1", "newton", "LogisticLoss", N, P, len(CHUNKS), 50, 1e-8)
        return minimise(problem, solver, problem.start(), executor, run, survey, listeners)
    finally:
        executor.close()


def test_the_loop_tells_what_happens():
    heard = []
    outcome = run_fit(source(), [heard.append])
    assert isinstance(heard[0], FitStarted)
    assert isinstance(heard[-1], FitEnded)
    rounds = heard[1:-1]
    assert all(isinstance(event, RoundEnded) for event in rounds)
    assert [event.round for event in rounds] == list(range(len(rounds)))
    assert [event.passes for event in rounds] == [2.0 + k for k in range(len(rounds))]
    assert outcome.passes == rounds[-1].passes
    assert heard[-1].reason == outcome.state.reason == "converged"
    assert heard[-1].gap == rounds[-1].gap == outcome.state.gap <= 1e-8
    assert heard[0].survey.total.n_rows == N


def test_an_error_of_a_listener_reaches_the_caller():
    def bad(event):
        if isinstance(event, RoundEnded):
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        run_fit(source(), [bad])


def test_an_objective_that_overflows_is_an_error_that_names_the_run():
    X = np.array([[1.0], [2.0]])
    given = ArraySource(X, np.array([1e200, -1e200]), None, ("a",), (2,))
    executor = LocalExecutor(given)
    try:
        with np.errstate(over="ignore"):
            survey = executor.survey(TargetKind.NUMBERS)
            executor.encode(TargetEncoder())
            problem = Problem(SquaredLoss(), L2Penalty(1.0), 1.0, survey.total, True)
            run = RunSpec("r7", "newton", "SquaredLoss", 2, 1, 1, 5, 1e-8)
            with pytest.raises(FitError, match=r"objective is inf .*rescale") as caught:
                minimise(
                    problem,
                    Newton(Goal.of(problem, 1e-8, 5)),
                    problem.start(),
                    executor,
                    run,
                    survey,
                    [],
                )
    finally:
        executor.close()
    assert caught.value.run == "r7"


def test_one_block_and_more_threads_than_blocks_work():
    for chunks in ((N,), (1, N - 1)):
        executor = LocalExecutor(source(chunks), 8)
        found: Survey = executor.survey(TargetKind.CLASSES).total
        executor.close()
        assert found.n_rows == N


@pytest.mark.parametrize("memory_bytes", [0, 10**9], ids=["streamed", "resident"])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_sums_of_folds_are_the_same_bits_however_they_are_taken(memory_bytes, n_threads):
    given = source()
    encoder = FoldEncoder(ENCODER, consecutive_folds(CHUNKS, 3))
    asked = FoldRequest((REQUEST, replace(REQUEST, order=1)), 3)
    expected = TreeSum(len(CHUNKS))
    for number, load in enumerate(given.loaders()):
        block = load()
        expected.add(
            (0, number),
            asked.of_block(block.X, *encoder.of_block(number).encode(block.y, block.sample_weight)),
        )
    executor = LocalExecutor(given, n_threads, memory_bytes)
    try:
        executor.survey(TargetKind.CLASSES)
        executor.encode(encoder)
        total = executor.evaluate_folds(asked).total
    finally:
        executor.close()
    assert same_bits(total, expected.value)
