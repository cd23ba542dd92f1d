"""Where a fit may be called from: tasks, threads, other people's code, and scripts that stop it."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from distributed import Client
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import dask_dml as dml
from dask_dml.linear_model import LogisticRegression, Ridge
from dask_dml.runtime import FitStarted


@pytest.mark.parametrize("kind", ["numpy", "lazy", "persisted"])
def test_a_fit_inside_a_task_runs_in_its_process(client, problem, local, same_bits, kind):
    X, y = problem.X, problem.two
    if kind != "numpy":
        X, y = problem.lazy(X), problem.lazy(y)
    given = client.persist([X, y]) if kind == "persisted" else [X, y]

    def fit():
        fitted = LogisticRegression().fit(*given)
        return LogisticRegression().fit(*given), fitted

    # One for each thread of the cluster: none is free for tasks of theirs.
    fits = [client.submit(fit, pure=False) for _ in range(2)]
    expected = LogisticRegression(runtime=local).fit(X, y)
    for both in client.gather(fits):
        for fitted in both:
            same_bits(fitted, expected)
            assert list(fitted.history_["workers"].unique()) == [1]
    client.cancel(fits)
    if kind == "persisted":
        client.cancel(given)


def test_two_fits_at_once(client, problem, local, same_bits):
    data = problem.lazy(problem.X), problem.lazy(problem.two)
    both = threading.Barrier(2, timeout=60)
    fitted = {}

    def meet(event):
        if isinstance(event, FitStarted):
            both.wait()

    def fit(C):
        model = LogisticRegression(C=C, runtime=dml.Runtime(client), callbacks=[meet])
        fitted[C] = model.fit(*data)

    threads = [threading.Thread(target=fit, args=(C,)) for C in (0.1, 10.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for C, model in fitted.items():
        same_bits(model, LogisticRegression(C=C, runtime=local).fit(*data))
    assert set(fitted) == {0.1, 10.0}


def test_the_client_in_whose_context_it_is(cluster, client, problem):
    data = problem.lazy(problem.X), problem.lazy(problem.number)
    used = []

    def note(event):
        if isinstance(event, FitStarted):
            used.extend(event.survey.busy_s)

    with Client(processes=False, n_workers=1, dashboard_address=":0", set_as_default=False) as one:
        with one.as_current():
            Ridge(callbacks=[note]).fit(*data)
        (worker,) = one.scheduler_info()["workers"]
    assert used == [worker]
    used.clear()
    Ridge(callbacks=[note]).fit(*data)
    assert sorted(used) == sorted(client.scheduler_info(n_workers=-1)["workers"])


@pytest.mark.usefixtures("small_blocks")
def test_a_grid_search(client, problem, local):
    def search(runtime):
        model = make_pipeline(StandardScaler(), LogisticRegression(runtime=runtime))
        grid = {"logisticregression__C": [0.01, 1.0]}
        return GridSearchCV(model, grid, cv=2).fit(problem.X, problem.two)

    fitted, expected = search(dml.Runtime(client)), search(local)
    assert fitted.best_params_ == expected.best_params_
    assert np.array_equal(
        fitted.cv_results_["mean_test_score"], expected.cv_results_["mean_test_score"]
    )


SCRIPT = """
    import sys
    import dask.array as da
    import numpy as np
    from distributed import Client
    from dask_dml.linear_model import LogisticRegression
    from dask_dml.runtime import RoundEnded

    with Client(sys.argv[1]) as client:
        def tasks():
            barrier = client.submit(int, pure=False)
            barrier.result()
            tasks = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.tasks))
            return set(tasks) - {barrier.key}

        rng = np.random.default_rng(0)
        X = rng.normal(size=(1_000, 6))
        y = (X[:, 0] + rng.normal(size=1_000) > 0).astype(int)
        X, y = da.from_array(X, chunks=(100, 6)), da.from_array(y, chunks=100)
        before = tasks()
        rounds = []

        def say(event):
            if isinstance(event, RoundEnded):
                rounds.append(event.round)
                print("round", event.round, flush=True)

        interrupted = False
        try:
            while True:
                LogisticRegression(solver="gd", tol=1e-15, max_iter=20, callbacks=[say]).fit(X, y)
        except KeyboardInterrupt as error:
            kept = error
            interrupted = True
        left = tasks() - before
        fitted = LogisticRegression().fit(X, y)
        print("interrupted", interrupted, "left", len(left), "gap", fitted.gap_ < 1e-8)
        print("left after", len(tasks() - before), flush=True)
"""


def test_control_c_leaves_the_cluster_usable(client, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, "-W", "ignore", str(script), client.scheduler.address]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for _ in range(3):
            assert process.stdout.readline().startswith("round")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "interrupted True left 0 gap True" in out
    assert "left after 0" in out


WAITING = """
    import sys, time
    import dask.array as da
    import numpy as np
    from distributed import Client, Event
    from dask_dml.linear_model import LogisticRegression

    def stuck(block):
        Event("begun").set()
        Event("never").wait(600)
        return block

    with Client(sys.argv[1]) as client:
        X = da.zeros((100, 2), chunks=(10, 2)).map_blocks(stuck, dtype=float, meta=np.empty((0, 0)))
        try:
            LogisticRegression().fit(X, da.zeros(100, chunks=10))
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        Event("never").set()
"""


def test_control_c_while_blocks_are_made(client, tmp_path, scheduler_tasks):
    from distributed import Event as ClusterEvent

    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(WAITING))
    begun = ClusterEvent("begun", client)
    command = [sys.executable, str(script), client.scheduler.address]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert begun.wait(60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert out.strip() == "interrupted", err
    assert scheduler_tasks() == set()
