"""Counts false alarms: fits on a cluster without faults, while other work keeps all cores busy.

    python tests/benchmarks/soak.py [--hours H] [--workers N] [--out FILE]

Starts as many busy processes as there are cores, and a cluster on the same machine, and fits one
model after the other. Prints a line of JSON: worker-hours, fits, and events of the watcher by kind.
Ends with status 1 if a worker was evicted, drained or lost, or bits differed.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from distributed import Client, LocalCluster

import dask_dml as dml
from dask_dml.faults import TOPIC
from dask_dml.linear_model import LogisticRegression

FALSE_ALARMS = ("worker-evicted", "worker-draining", "worker-lost")


def burn() -> None:
    """Keep a core busy."""
    value = 1.0
    while True:
        value = value * 1.0000001 % 7.0


def soak(seconds: float, n_workers: int, folder: Path) -> dict[str, object]:
    """Fit again and again for so long."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400_000, 20))
    y = (X[:, 0] + rng.normal(size=len(X)) > 0.0).astype(int)
    store = folder / "rows.zarr"
    dml.write_dataset(store, X, y, chunks=(25_000, 20))
    model = LogisticRegression(solver="lbfgs", tol=1e-10)
    undisturbed = model.set_params(runtime=dml.Runtime(client="local")).fit(store).coef_
    n_fits, n_other, loads = 0, 0, []
    with (
        LocalCluster(n_workers=n_workers, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        events: Counter[str] = Counter()
        client.subscribe_topic(TOPIC, lambda event: events.update([event[1]["kind"]]))
        started_s = time.monotonic()
        while time.monotonic() - started_s < seconds:
            fitted = model.set_params(runtime=None).fit(store)
            n_fits += 1
            n_other += int(not np.array_equal(fitted.coef_, undisturbed))
            loads.append(os.getloadavg()[0])
            sys.stderr.write(f"{n_fits} fits, {dict(events)}, load {loads[-1]:.1f}\n")
        hours = (time.monotonic() - started_s) / 3600.0
    return {
        "hours": hours,
        "worker_hours": hours * n_workers,
        "fits": n_fits,
        "fits_with_other_bits": n_other,
        "load_median": float(np.median(loads)),
        "events": dict(events),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    logging.getLogger("distributed").setLevel(logging.ERROR)
    burners = [
        multiprocessing.get_context("spawn").Process(target=burn, daemon=True)
        for _ in range(os.cpu_count() or 1)
    ]
    for burner in burners:
        burner.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = soak(3600.0 * arguments.hours, arguments.workers, Path(folder))
    finally:
        for burner in burners:
            burner.kill()
            burner.join()
    line = json.dumps(found)
    print(line)
    if arguments.out is not None:
        arguments.out.write_text(line, encoding="utf-8")
    events = found["events"]
    assert isinstance(events, dict)
    wrong = sum(events.get(kind, 0) for kind in FALSE_ALARMS)
    return 1 if wrong or found["fits_with_other_bits"] else 0


if __name__ == "__main__":
    sys.exit(main())
