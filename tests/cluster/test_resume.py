"""The client or the scheduler dies in mid-fit: the same call on a new cluster ends as if not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import dask
import pytest
from distributed import Client

import dask_dml as dml
from dask_dml.errors import FitError
from dask_dml.faults import TOPIC

DEADLINE_S = 120.0

# A client with a cluster of its own: one fit, whose result goes to stdout. It may be told to say so
# after a round and then to stand still.
FIT = """
import json, sys
import dask_dml as dml
from dask_dml.linear_model import LogisticRegression
from dask_dml.runtime import RoundEnded
from distributed import Client, LocalCluster

def stand_still(event):
    if isinstance(event, RoundEnded) and event.round == int(sys.argv[3]):
        print("standing", flush=True)
        sys.stdin.read()

if __name__ == "__main__":
    with LocalCluster(
        n_workers=int(sys.argv[4]),
        threads_per_worker=1,
        memory_limit="1GiB",
        dashboard_address=":0",
    ) as cluster, Client(cluster) as client:
        model = LogisticRegression(
            solver="lbfgs",
            tol=1e-10,
            checkpoint=dml.Checkpoint(sys.argv[2], every_rounds=1),
            callbacks=[stand_still],
        ).fit(sys.argv[1])
    print(json.dumps({
        "coef": model.coef_.tobytes().hex(),
        "intercept": model.intercept_.tobytes().hex(),
        "gap": model.gap_,
        "n_iter": model.n_iter_,
        "n_passes": model.n_passes_,
        "objectives": model.history_["objective"].tolist(),
        "resumed_after": model.faults_.query("kind == 'checkpoint-resumed'")["round"].tolist(),
    }))
"""

# A fit in this process that kills itself while it writes a checkpoint, before the manifest.
DIE_WRITING = """
import os, signal, sys
import dask_dml as dml
import dask_dml.data.store as store
from dask_dml.linear_model import LogisticRegression

seal, calls = store.seal, []

def die(*arguments):
    calls.append(1)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    seal(*arguments)

store.seal = die
LogisticRegression(
    solver="lbfgs",
    tol=1e-10,
    runtime=dml.Runtime(client="local"),
    checkpoint=dml.Checkpoint(sys.argv[2], every_rounds=1),
).fit(sys.argv[1])
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "fit.py"
    path.write_text(FIT, encoding="utf-8")
    return path


@pytest.fixture
def data(problem, tmp_path):
    store = tmp_path / "rows.zarr"
    dml.write_dataset(store, problem.X, problem.three, chunks=(128, 6))
    return store


def assert_same_result(found, expected):
    assert found["coef"] == expected.coef_.tobytes().hex()
    assert found["intercept"] == expected.intercept_.tobytes().hex()
    assert found["gap"] == expected.gap_
    assert found["n_iter"] == expected.n_iter_
    assert found["objectives"] == expected.history_["objective"].tolist()


def test_the_client_is_killed_and_its_scheduler_with_it(script, data, descent, local, tmp_path):
    place = tmp_path / "fit"
    command = [sys.executable, str(script), str(data), str(place)]
    child = subprocess.Popen(
        [*command, "4", "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout.readline() == "standing\n"
        child.kill()
    assert child.returncode == -signal.SIGKILL
    assert sorted(path.name for path in place.iterdir()) == ["round-000003", "round-000004"]
    done = subprocess.run(
        [*command, "-1", "2"], capture_output=True, text=True, check=True, timeout=DEADLINE_S
    )
    found = json.loads(done.stdout)
    expected = descent(runtime=local).fit(dml.open_dataset(data))
    assert_same_result(found, expected)
    assert found["resumed_after"] == [3]
    # A second survey, and an evaluation to see that it is the same data; round 4 was lost with the
    # client before it was written, and is nowhere counted.
    assert found["n_passes"] == expected.n_passes_ + 2


def test_the_client_is_killed_while_it_writes(data, descent, local, tmp_path, same_bits):
    place = tmp_path / "fit"
    done = subprocess.run(
        [sys.executable, "-c", DIE_WRITING, str(data), str(place)],
        check=False,
        timeout=DEADLINE_S,
    )
    assert done.returncode == -signal.SIGKILL
    found = sorted(path.name for path in place.iterdir())
    assert len(found) == 3
    assert found[0].startswith(".round-000004.")  # the half that was written
    assert found[1:] == ["round-000002", "round-000003"]
    model = descent(runtime=local, checkpoint=dml.Checkpoint(place, every_rounds=1))
    same_bits(model.fit(data), descent(runtime=local).fit(data))
    assert list(model.faults_["round"]) == [2]
    assert not [path for path in place.iterdir() if path.name.startswith(".")]


@contextmanager
def processes(tmp_path: Path, name: str):
    """A scheduler and a worker, each a process of its own; the scheduler's process and a client."""
    file = tmp_path / f"{name}.json"
    common = ["--scheduler-file", str(file)]
    running = []
    try:
        for command in (
            ["dask_scheduler", *common, "--port", "0", "--dashboard-address", ":0"],
            ["dask_worker", *common, "--nthreads", "1", "--no-nanny", "--no-dashboard",
             "--memory-limit", "1GiB", "--local-directory", str(tmp_path)],
        ):  # fmt: skip
            program = [sys.executable, "-m", f"distributed.cli.{command[0]}", *command[1:]]
            running.append(subprocess.Popen(program, stderr=subprocess.DEVNULL))
        with Client(scheduler_file=str(file), timeout=DEADLINE_S) as client:
            client.wait_for_workers(1, timeout=DEADLINE_S)
            yield running[0], client
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_the_scheduler_is_killed_under_a_living_client(
    data, descent, local, tmp_path, same_bits, on_round
):
    place = tmp_path / "fit"
    arguments = {"checkpoint": dml.Checkpoint(place, every_rounds=1)}
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "2s"}),
        processes(tmp_path, "first") as (scheduler, _),
        pytest.raises(FitError, match="the same call goes on from there") as raised,
    ):
        descent(**arguments, callbacks=[on_round(2, scheduler.kill)]).fit(data)
    assert str(place / "round-000003") in str(raised.value)
    with processes(tmp_path, "second") as (_, client):
        model = descent(**arguments).fit(data)
        told = [message["kind"] for _, message in client.get_events(TOPIC)]
    assert "checkpoint-resumed" in told
    same_bits(model, descent(runtime=local).fit(data))
    assert "checkpoint-resumed" in set(model.faults_["kind"])
