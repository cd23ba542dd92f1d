"""Where blocks are and go: nothing is copied that need not be, and nothing is left behind."""

from __future__ import annotations

from collections import Counter

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Future, futures_of, wait

import dask_dml as dml
from dask_dml.data.source import WHOLE, dask_source
from dask_dml.linear_model import LogisticRegression, Ridge
from dask_dml.runtime import ClusterExecutor, FitStarted, RoundEnded

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture
def persisted(client, problem):
    """Blocks of X and y, the first half on one worker and the others on the other."""
    workers = sorted(client.scheduler_info(n_workers=-1)["workers"])

    def worker_of(key):
        return workers[key[1] // 4]

    # In the annotation, since a worker for each block is meant.
    with dask.annotate(workers=worker_of):
        lazy = [problem.lazy(values).map_blocks(np.copy) for values in (problem.X, problem.two)]
    data = client.persist(lazy, optimize_graph=False)
    wait(data)
    yield data
    client.cancel(data)


@pytest.fixture
def skewed(client, problem):
    """Blocks of X and y, all of them on one worker."""
    first = sorted(client.scheduler_info(n_workers=-1)["workers"])[0]
    data = client.persist([problem.lazy(problem.X), problem.lazy(problem.two)], workers=[first])
    wait(data)
    yield data
    client.cancel(data)


def who_has(client, *arrays):
    return {key: sorted(held) for key, held in client.who_has(futures_of(arrays)).items()}


def prefixes(keys):
    """What our own tasks are called, without run and number."""
    names = [key[0] if isinstance(key, tuple) else key for key in keys]
    return {"-".join(name.split("-")[:2]) for name in names if name.startswith("dml-")}


class Watch:
    """Notes the scheduler's tasks at every event."""

    def __init__(self, client):
        self.client = client
        self.tasks = []

    def __call__(self, event):
        if isinstance(event, FitStarted | RoundEnded):
            tasks = self.client.run_on_scheduler(
                lambda dask_scheduler: {
                    key: sorted(worker.address for worker in task.who_has or ())
                    for key, task in dask_scheduler.tasks.items()
                }
            )
            self.tasks.append(tasks)


def test_balanced_data_stays_where_it_is(client, persisted, scheduler_tasks, patient):
    X, _ = persisted
    before, tasks = who_has(client, X), scheduler_tasks()
    watch = Watch(client)
    LogisticRegression(callbacks=[watch], runtime=patient).fit(*persisted)
    for during in watch.tasks:
        assert {key: during[key] for key in before} == before
        assert not prefixes(during) & {"dml-move", "dml-send"}
    assert who_has(client, X) == before
    assert scheduler_tasks() == tasks


def test_what_is_made_from_data_on_the_workers_is_made_there(client, problem):
    """Slices and sums of persisted blocks: those are not sent about for it."""
    workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
    # Every other block on the same worker, which is no run of neighbours.
    with dask.annotate(workers=lambda key: workers[key[1] % 2]):
        lazy = problem.lazy(problem.X).map_blocks(np.copy)
    X = client.persist(lazy, optimize_graph=False)
    wait(X)
    before = who_has(client, X)
    y = problem.lazy(problem.two, X.chunks[0])
    executor = ClusterExecutor(client, dask_source(X[:, :4] * 2.0, y, None, None))
    placed = executor.placement
    executor.survey(LogisticRegression._target_kind)
    assert who_has(client, X) == before
    executor.close()
    assert [placed[block] for block in range(8)] == workers * 4
    client.cancel(X)


def test_persisted_data_does_not_come_to_the_client(client, persisted, monkeypatch):
    sizes = []
    gather = client.gather

    async def gathered(futures, **arguments):
        results = await gather(futures, **arguments)
        sizes.extend(result.nbytes for result in results)
        return results

    monkeypatch.setattr(client, "gather", gathered)
    LogisticRegression().fit(*persisted)
    block = 128 * persisted[0].shape[1] * 8
    assert len(sizes) > 0
    assert max(sizes) < block


def test_skewed_data_is_spread(client, skewed, local, same_bits, problem):
    executor = ClusterExecutor(client, dask_source(*skewed, None, None))
    rows = Counter()
    for block, worker in executor.placement.items():
        rows[worker] += skewed[0].chunks[0][block]
    executor.close()
    assert max(rows.values()) <= 1.1 * sum(rows.values()) / 2
    fitted = LogisticRegression().fit(*skewed)
    data = problem.lazy(problem.X), problem.lazy(problem.two)
    same_bits(fitted, LogisticRegression(runtime=local).fit(*data))
    assert set(fitted.history_["workers"]) == {2}
    assert all(who_has(client, *skewed).values())


def test_work_is_done_where_blocks_were_placed(client, problem):
    X, y = problem.lazy(problem.X, rows=40), problem.lazy(problem.two, rows=40)
    executor = ClusterExecutor(client, dask_source(X, y, None, None))
    try:
        survey = executor.survey(LogisticRegression._target_kind)
        placed = Counter(executor.placement.values())
    finally:
        executor.close()
    assert set(survey.busy_s) == set(placed)
    assert max(placed.values()) - min(placed.values()) <= 1


def test_lazy_data_is_computed_once(client, problem, tmp_path):
    """Each block leaves a file's worth of a mark whenever it is made."""
    marks = tmp_path / "marks"

    def mark(block, block_info=None):
        with marks.open("a") as file:
            file.write(f"{block_info[0]['chunk-location'][0]}\n")
        return block

    X = problem.lazy(problem.X).map_blocks(mark, dtype=float, meta=np.empty((0, 0)))
    LogisticRegression().fit(X, problem.lazy(problem.two))
    made = [int(line) for line in marks.read_text().split()]
    assert sorted(made) == list(range(X.numblocks[0]))


def test_tasks_have_the_names_that_the_dashboard_shows(client, problem):
    data = problem.lazy(problem.X), problem.lazy(problem.two)
    LogisticRegression(solver="lbfgs", runtime=dml.Runtime(client)).fit(*data)
    names = client.run_on_scheduler(lambda dask_scheduler: set(dask_scheduler.task_prefixes))
    assert {"dml-survey", "dml-gradient", "dml-hessian"} <= names


def test_fits_do_not_share_keys(client, persisted):
    keys = []

    class Keys:
        def __call__(self, event):
            if isinstance(event, FitStarted):
                keys.append(event.run.run_id)

    for _ in range(3):
        LogisticRegression(callbacks=[Keys()]).fit(*persisted)
    assert len(set(keys)) == 3


def test_large_theta_goes_to_the_workers_once(client, local, same_bits, monkeypatch):
    """20,000 columns: 320 kB a request, which would be sent with every task."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(64, 20_000)).astype(np.float32)
    y = (X[:, 0] + 0.1 * rng.normal(size=64) > 0).astype(int)
    data = da.from_array(X, chunks=(8, -1)), da.from_array(y, chunks=8)
    watch = Watch(client)
    submitted = []
    submit = client.submit

    def noting(function, *arguments, **options):
        submitted.append((options.get("key"), arguments))
        return submit(function, *arguments, **options)

    monkeypatch.setattr(client, "submit", noting)
    arguments = {"solver": "lbfgs", "max_iter": 500, "tol": 1e-4}
    fitted = LogisticRegression(**arguments, callbacks=[watch]).fit(*data)
    same_bits(fitted, LogisticRegression(**arguments, runtime=local).fit(*data))
    rounds = [given for key, given in submitted if str(key[0]).startswith("dml-gradient")]
    assert len(rounds) >= 4
    assert all(isinstance(given[2], Future) for given in rounds)


def test_data_of_the_user_outlives_an_exception(client, persisted, scheduler_tasks, on_round):
    before, tasks = who_has(client, persisted[0]), scheduler_tasks()

    def fail():
        raise ZeroDivisionError("in a callback")

    # The traceback that is held here holds the frames of the fit.
    with pytest.raises(ZeroDivisionError) as raised:
        LogisticRegression(callbacks=[on_round(1, fail)]).fit(*persisted)
    assert scheduler_tasks() == tasks
    assert who_has(client, persisted[0]) == before
    assert raised.type is ZeroDivisionError


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", ["numpy", "lazy", "skewed"])
def test_nothing_is_left_after_bad_data(client, problem, scheduler_tasks, kind, request):
    if kind == "skewed":
        X, y = request.getfixturevalue("skewed")
        y = y * 0
    elif kind == "lazy":
        X, y = problem.lazy(problem.X), problem.lazy(problem.two) * 0
    else:
        X, y = problem.X, problem.two * 0
    tasks = scheduler_tasks()
    with pytest.raises(dml.errors.DataError) as raised:
        LogisticRegression().fit(X, y)
    assert scheduler_tasks() == tasks
    assert "class" in str(raised.value)


def test_large_rows_of_this_process_are_sent_without_a_warning(client, local, same_bits):
    """40 MB, of which Dask would warn in one piece; a warning fails the test."""
    X = np.random.default_rng(0).normal(size=(500_000, 10))
    y = X @ np.arange(10.0)
    fitted = Ridge().fit(X, y)
    same_bits(fitted, Ridge(runtime=local).fit(X, y))
    assert set(fitted.history_["workers"]) == {2}


@pytest.mark.usefixtures("split")
def test_few_chunks_are_shared_evenly_and_only_rows_that_move_are_copied(client, few):
    before = who_has(client, *few)
    executor = ClusterExecutor(client, dask_source(*few, None))
    n_rows = Counter()
    for block, worker in executor.placement.items():
        n_rows[worker] += executor._source.row_chunks[block]
    assert set(n_rows.values()) == {500}
    moved = [held.X for held in executor._blocks._held if held.rows == WHOLE]
    assert sum(len(part) for part in client.gather(moved)) == 150
    assert who_has(client, *few) == before
    executor.close()


@pytest.mark.usefixtures("split")
def test_few_chunks_have_the_same_bits_wherever_they_are(client, few, problem, local, same_bits):
    data = [problem.lazy(each, 350) for each in (problem.X, problem.three, problem.weight)]
    expected = LogisticRegression(solver="lbfgs", runtime=local).fit(*data)
    for given in (few, data):
        same_bits(LogisticRegression(solver="lbfgs").fit(*given), expected)


@pytest.mark.usefixtures("split")
def test_lost_parts_of_a_chunk_are_made_again_together(client, few):
    """Its worker is suspect: the other one makes the chunk again, once."""
    executor = ClusterExecutor(client, dask_source(*few, None))
    executor.survey(LogisticRegression._target_kind)
    blocks, placed = executor._blocks, executor.placement
    suspect, other = placed[8], placed[0]
    assert suspect != other
    again = blocks.remake([8, 9], other, [suspect])
    assert again == set(range(8, 16))
    assert len({blocks._held[block].X.key for block in again}) == 1
    assert blocks.remake([10, 11], other, [suspect]) == set()
    executor.close()
