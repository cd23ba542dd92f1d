"""A real cluster of two worker processes, shared by all tests of this folder.

Tests may kill its workers (nannies start new ones) and scale it: `client` waits until two workers
are there again. No test may leave a task on it, which the same fixture checks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster, Status, wait

import dask_dml as dml
from dask_dml.data.layout import BlockGrid
from dask_dml.linear_model import LogisticRegression
from dask_dml.runtime import RoundEnded

N_WORKERS = 2
DEADLINE_S = 60.0


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition that nothing signals, up to a deadline."""
    never = threading.Event()
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_s, f"after {DEADLINE_S} s still not so: {what}"
        never.wait(0.02)


def workers_of(client: Client) -> list[str]:
    return sorted(client.scheduler_info(n_workers=-1)["workers"])


def tasks_of(client: Client) -> set[Any]:
    """All tasks the scheduler knows of, once it has heard all that this client had to say."""
    # Messages of a client keep their order: when this is done, releases before it are.
    barrier = client.submit(int, pure=False)
    barrier.result(timeout=DEADLINE_S)
    tasks = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.tasks))
    return set(tasks) - {barrier.key}


@pytest.fixture(autouse=True)
def nothing_is_small() -> Iterator[None]:
    """Have problems as small as those of a test fitted on the cluster none the less."""
    with dask.config.set({"dml.small-bytes": 0}):
        yield


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(
        n_workers=N_WORKERS,
        threads_per_worker=1,
        memory_limit="1GiB",
        dashboard_address=":0",
    ) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster, no_collector: None) -> Iterator[Client]:
    """Client of the shared cluster: two workers before, no task left behind after."""
    with Client(cluster) as client:
        client.wait_for_workers(N_WORKERS, timeout=DEADLINE_S)
        yield client
        restore(cluster, client)
        left = tasks_of(client)
        assert not left, f"tasks left on the scheduler: {sorted(map(str, left))}"


def served(client: Client) -> set[Any]:
    """Names of the workers that there are."""
    return {info["name"] for info in client.scheduler_info(n_workers=-1)["workers"].values()}


def await_nannies(cluster: LocalCluster, client: Client) -> None:
    """Wait for workers that nannies are starting.

    A nanny that is told to close meanwhile may never be done with it: it waits for the start of the
    worker in the time that it has for its end, gives up, and is closing for ever after. Whoever
    connects to the cluster then waits for that.
    """

    def expected() -> set[Any]:
        nannies = cluster.workers.items()
        return {name for name, nanny in nannies if nanny.status == Status.running}

    wait_until(lambda: expected() <= served(client), "nannies have started their workers")


def restore(cluster: LocalCluster, client: Client) -> None:
    """Have exactly as many workers again as before the test."""
    # Nannies without a worker do not start another one when theirs was retired.
    if served(client) != set(cluster.workers) or len(cluster.workers) != N_WORKERS:
        await_nannies(cluster, client)
        cluster.scale(0)
        wait_until(lambda: not cluster.workers and not workers_of(client), "no workers")
        cluster.scale(N_WORKERS)
    wait_until(lambda: len(workers_of(client)) == N_WORKERS, f"{N_WORKERS} workers")


@pytest.fixture
def nannies_done() -> Callable[[LocalCluster, Client], None]:
    return await_nannies


@pytest.fixture
def scheduler_tasks(client: Client) -> Callable[[], set[Any]]:
    return lambda: tasks_of(client)


@pytest.fixture
def until() -> Callable[[Callable[[], bool], str], None]:
    return wait_until


class Warnings(logging.Handler):
    """Keeps what distributed logs at WARNING and above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def quiet(client: Client) -> Iterator[None]:
    """Fail the test if scheduler, nannies or client logged a warning meanwhile."""
    handler = Warnings()
    logger = logging.getLogger("distributed")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    assert handler.messages == []


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut what is in this process into blocks of 128 rows, so that little data makes several."""

    def choose(n_rows: int, n_columns: int, itemsize: int, **_: Any) -> BlockGrid:
        return BlockGrid.regular(n_rows, n_columns, 128, n_columns)

    monkeypatch.setattr("dask_dml.estimator.choose_grid", choose)


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have chunks split into a dozen blocks or more, however small they are."""
    monkeypatch.setattr("dask_dml.data.layout.SMALL_BLOCK_BYTES", 1)


class Problem:
    """Rows and targets of every kind, from one seed."""

    def __init__(self, n_rows: int = 1_000, n_columns: int = 6, seed: int = 3) -> None:
        rng = np.random.default_rng(seed)
        self.X = rng.normal(size=(n_rows, n_columns)) * np.logspace(-1, 1, n_columns) + 0.5
        scores = self.X @ rng.normal(size=(n_columns, 3)) / 3
        noisy = scores + rng.gumbel(size=(n_rows, 3))
        self.number = scores[:, 0] + rng.normal(size=n_rows)
        self.two = (noisy[:, 0] > noisy[:, 1]).astype(np.int64)
        self.three = np.array(["a", "b", "c"])[noisy.argmax(axis=1)]
        self.weight = rng.uniform(0.1, 3.0, size=n_rows)

    def lazy(self, values: np.ndarray, rows: Any = 128) -> da.Array:
        return da.from_array(values, chunks=(rows, -1) if values.ndim == 2 else (rows,))


@pytest.fixture(scope="session")
def problem() -> Problem:
    return Problem()


@pytest.fixture
def few(client: Client, problem: Problem) -> Iterator[Any]:
    """Three chunks of X, y and weights, of which one worker has two."""
    workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
    values = problem.X, problem.three, problem.weight
    # Not there alone: a chunk that is lost is made again elsewhere.
    with dask.annotate(workers=lambda key: workers[key[1] % 2], allow_other_workers=True):
        lazy = [problem.lazy(each, 350).map_blocks(np.copy) for each in values]
    data = client.persist(lazy, optimize_graph=False)
    wait(data)
    yield data
    client.cancel(data)


@pytest.fixture(scope="session")
def local() -> dml.Runtime:
    return dml.Runtime(client="local")


@pytest.fixture(scope="session")
def patient() -> dml.Runtime:
    """A runtime that suspects nobody who is slow to answer on a busy machine."""
    return dml.Runtime(faults=dml.FaultPolicy(pause_s=DEADLINE_S))


def assert_same_bits(fitted: Any, expected: Any) -> None:
    """The same coefficients and the same objective in every round, to the last bit."""
    np.testing.assert_array_equal(fitted.coef_, expected.coef_, strict=True)
    np.testing.assert_array_equal(fitted.intercept_, expected.intercept_)
    np.testing.assert_array_equal(
        fitted.history_["objective"].to_numpy(), expected.history_["objective"].to_numpy()
    )


@pytest.fixture(scope="session")
def same_bits() -> Callable[[Any, Any], None]:
    return assert_same_bits


class OnRound:
    """A callback that does something once, after a given round; `busy` had blocks in that one."""

    def __init__(self, number: int, action: Callable[[], object]) -> None:
        self.number = number
        self.action = action
        self.done = False
        self.busy: list[str] = []

    def __call__(self, event: Any) -> None:
        if isinstance(event, RoundEnded) and event.round == self.number:
            self.busy = sorted(event.result.busy_s)
            self.action()
            self.done = True


@pytest.fixture(scope="session")
def on_round() -> type[OnRound]:
    return OnRound


@pytest.fixture
def descent(local: dml.Runtime) -> Callable[..., LogisticRegression]:
    """A fit of a good many cheap rounds; on the cluster unless told otherwise."""

    def make(**arguments: Any) -> LogisticRegression:
        return LogisticRegression(solver="lbfgs", tol=1e-10, **arguments)

    return make
