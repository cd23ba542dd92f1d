"""Data larger than the workers' memory, read from a store as it is needed."""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import psutil
from costs import PeakMemory
from distributed import Client, wait
from figures import Figure, Part
from works import GAP, cluster

import dask_dml as dml
from dask_dml.datasets.synthetic import higgs_like
from dask_dml.linear_model import LogisticRegression

# A worker with the package and its compiled sums loaded takes half of it.
LIMIT_BYTES = 1_000_000_000
TIMES_LARGER = 3
TURNS = 3
# The rows are made once and written so often: making them takes longer than all the rest.
COPIES = 12


class Uncached(threading.Thread):
    """Keeps files out of the page cache: what is larger than memory would not be there either."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._files = [os.open(file, os.O_RDONLY) for file in folder.rglob("*") if file.is_file()]
        self._over = threading.Event()

    def __enter__(self) -> None:
        os.sync()
        self.start()

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self.join()
        for file in self._files:
            os.close(file)

    def run(self) -> None:
        while not self._over.wait(0.05):
            for file in self._files:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def bench_streaming(scale: float) -> Part:
    """Logistic regression on a store three times as large as what both workers may hold."""
    n_rows = int(scale * TIMES_LARGER * 2 * LIMIT_BYTES / (28 * 4))
    with tempfile.TemporaryDirectory(prefix="dml-bench-") as folder:
        store = Path(folder) / "rows.zarr"
        with cluster() as client:
            X, y = client.persist(higgs_like(n_rows // COPIES))
            wait([X, y])
            dml.write_dataset(store, da.concatenate([X] * COPIES), da.concatenate([y] * COPIES))
        stored = sum(file.stat().st_size for file in (store / "X").rglob("*") if file.is_file())
        reading_s, fit_s, reads = [], [], []
        with Uncached(store), cluster(memory_limit=f"{LIMIT_BYTES}B") as client:
            pids = client.run(os.getpid)
            model = LogisticRegression(tol=GAP).fit(store)
            watch = PeakMemory(list(pids.values()))
            watch.start()
            for _ in range(TURNS):
                reading_s.append(_read_s(store))
                before = _read_bytes(client)
                start_s = time.perf_counter()
                model.fit(store)
                fit_s.append(time.perf_counter() - start_s)
                reads.append((_read_bytes(client) - before) / stored)
            watch.finish()
            is_whole = client.run(os.getpid) == pids
    ratios = [f / (n * r) for f, n, r in zip(fit_s, reads, reading_s, strict=True)]
    times = TIMES_LARGER * scale
    name = f"logistic on a Zarr store of {n_rows:,} x 28, {times:g} x the workers' memory"
    return Part(
        [
            Figure(
                f"{name}, reads of the store",
                statistics.median(reads),
                "",
                4.0,
                "bytes that the workers have read over those of the store; "
                f"{model.n_passes_:.3g} passes, with the sample and the blocks that stay in "
                f"memory; gap at most {model.gap_:.0e}",
            ),
            Figure(
                f"{name}, time over that of reading it so often",
                statistics.median(ratios),
                "x",
                1.3,
                f"{statistics.median(fit_s):.3g} s; one read, decoded, takes "
                f"{statistics.median(reading_s):.3g} s, and the page cache has none of it; median "
                f"of {TURNS} turns",
            ),
            Figure(
                f"{name}, a worker's memory over its limit",
                max(watch.peak) / LIMIT_BYTES,
                "x",
                1.0,
                f"resident, all of the process, {max(watch.peak) / 1e6:.0f} MB at the peak; "
                f"{'no worker' if is_whole else '**a worker**'} was started anew",
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


def _read_bytes(client: Client) -> int:
    """Bytes that the workers' processes have read so far, from files."""
    return sum(client.run(lambda: psutil.Process().io_counters().read_chars).values())


BENCHES: dict[str, Callable[[float], Part]] = {"streaming": bench_streaming}
