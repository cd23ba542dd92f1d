from __future__ import annotations

import os
import signal
import threading

import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster

from dask_dml.faults.chaos.episodes import (
    FATAL,
    HARMLESS,
    HEALTHY_SHARE,
    Circumstance,
    block,
    load,
    sawtooth,
    starved,
)
from dask_dml.faults.chaos.recording import collect, record
from dask_dml.faults.telemetry import PREDICTOR_FEATURES


def roomy(share):
    """A limit of which this process uses so much."""
    return int(psutil.Process().memory_info().rss / share)


@pytest.mark.parametrize("episode", [load, sawtooth])
@pytest.mark.parametrize("seed", [1, 2])
def test_harmless_growth_stays_below_where_dask_pauses_a_worker(episode, seed):
    process, seen = psutil.Process(), []
    limit_bytes = roomy(0.3)
    ended = threading.Event()

    def watch():
        while not ended.wait(0.02):
            seen.append(process.memory_info().rss / limit_bytes)

    watcher = threading.Thread(target=watch)
    watcher.start()
    episode(Circumstance(limit_bytes, 1.0, seed))
    ended.set()
    watcher.join()
    # One more step of growth is taken before it is seen.
    assert max(seen, default=0.0) < HEALTHY_SHARE + 0.13


def test_a_block_is_a_few_hundredths_of_the_limit():
    assert 0.01e6 < block(Circumstance(1_000_000, 1.0, 3)).nbytes < 0.07e6


def test_rivals_end_with_their_episode():
    before = {child.pid for child in psutil.Process().children()}
    starved(Circumstance(1_000_000_000, 0.2, 0))
    assert {child.pid for child in psutil.Process().children()} <= before


@pytest.mark.slow
def test_a_run_gives_telemetry_of_all_workers_and_leaves_nothing_behind():
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    records = record(12.0, seed=5, n_workers=2)
    assert records.telemetry["worker"].nunique() >= 2
    assert np.isfinite(records.telemetry[list(PREDICTOR_FEATURES)].to_numpy()).all()
    assert (records.telemetry["rss_share"] > 0.0).all()
    assert set(records.losses["kind"]) <= {*FATAL, *HARMLESS, "spill", "kill"}
    assert "dml-recording" not in {thread.name for thread in threading.enumerate()}
    left = {child.pid for child in psutil.Process().children(recursive=True)} - before
    names = [" ".join(psutil.Process(pid).cmdline()) for pid in left]
    assert [name for name in names if "resource_tracker" not in name] == []


@pytest.mark.slow
def test_a_cluster_of_others_is_recorded_with_its_losses():
    # Inside of the test, so that it travels by value: workers cannot import this file.
    def die_once_watched():
        pause = threading.Event()
        for _ in range(600):
            if any("heartbeat" in thread.name for thread in threading.enumerate()):
                break
            pause.wait(0.05)
        pause.wait(1.5)
        os.kill(os.getpid(), signal.SIGKILL)

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        victim = next(iter(client.scheduler_info()["workers"]))
        future = client.submit(die_once_watched, workers=[victim], pure=False)
        records = collect(client, 12.0)
        future.cancel()
    assert victim in set(records.telemetry["worker"])
    lost = records.losses[records.losses["kind"] == "lost"]
    assert victim in set(lost["worker"])
