"""Data larger than the workers' memory, read from a store as it is needed."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
from costs import PeakMemory
from figures import Figure, Part
from works import GAP, cluster

import dask_dml as dml
from dask_dml.datasets.synthetic import higgs_like
from dask_dml.linear_model import LogisticRegression

LIMIT_BYTES = 600_000_000
TIMES_LARGER = 3
TURNS = 3


def bench_streaming(scale: float) -> Part:
    """Logistic regression on a store three times as large as what both workers may hold."""
    limit_bytes = max(int(LIMIT_BYTES * scale), 400_000_000)
    n_rows = TIMES_LARGER * 2 * limit_bytes // (28 * 4)
    with tempfile.TemporaryDirectory(prefix="dml-bench-") as folder:
        store = Path(folder) / "rows.zarr"
        with cluster():
            dml.write_dataset(store, *higgs_like(n_rows))
        with cluster(memory_limit=f"{limit_bytes}B") as client:
            reading_s, fit_s = [], []
            watch = PeakMemory(list(client.run(os.getpid).values()))
            watch.start()
            for _ in range(TURNS):
                reading_s.append(_read_s(store))
                start_s = time.perf_counter()
                model = LogisticRegression(tol=GAP).fit(store)
                fit_s.append(time.perf_counter() - start_s)
            watch.finish()
            pids = set(client.run(os.getpid).values())
    n_reads = model.n_passes_
    ratio = statistics.median(f / (n_reads * r) for f, r in zip(fit_s, reading_s, strict=True))
    name = f"logistic on a Zarr store of {n_rows:,} x 28, {TIMES_LARGER} x the workers' memory"
    n_died = sum(p.pid not in pids for p in watch.processes)
    return Part(
        [
            Figure(f"{name}, reads of the store", n_reads, "", 4.0, f"gap {model.gap_:.0e}"),
            Figure(
                f"{name}, time over that of reading it so often",
                ratio,
                "x",
                1.3,
                f"{statistics.median(fit_s):.3g} s; one read takes "
                f"{statistics.median(reading_s):.3g} s; median of {TURNS} turns",
            ),
            Figure(
                f"{name}, a worker's memory over its limit",
                max(watch.peak) / limit_bytes,
                "x",
                1.0,
                f"resident, all of the process, {max(watch.peak) / 1e6:.0f} MB at the peak; "
                f"{n_died} workers died",
            ),
        ]
    )


def _read_s(store: Path) -> float:
    """Seconds of having both workers read and decode every block once."""
    dataset = dml.open_dataset(store)
    start_s = time.perf_counter()
    parts: list[Any] = [
        dask.delayed(_n_bytes)(x, y)
        for x, y in zip(dataset.X.to_delayed().ravel(), dataset.y.to_delayed().ravel(), strict=True)
    ]
    dask.compute(parts)
    return time.perf_counter() - start_s


def _n_bytes(X: Any, y: Any) -> int:
    return int(X.nbytes + y.nbytes)


BENCHES: dict[str, Callable[[float], Part]] = {"streaming": bench_streaming}
