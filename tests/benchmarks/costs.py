"""What the pieces of a fit cost: a pass of the kernel, a round, memory, the import."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import dask
import numpy as np
import psutil
from distributed import wait
from figures import Figure, Part
from scipy.special import expit, log1p
from threadpoolctl import threadpool_limits
from works import cluster

from dask_dml.data.source import dask_source
from dask_dml.datasets.synthetic import higgs_like
from dask_dml.linear_model import LogisticRegression
from dask_dml.objective import LogisticLoss, Request, block_statistics
from dask_dml.runtime import ClusterExecutor

NUMPY_ROWS = 16_384
KERNEL_TURNS = 7


def bench_kernel(scale: float) -> Part:
    """One pass of loss and gradient on one thread, beside the same in blocked NumPy."""
    n_rows = int(4_000_000 * scale)
    X, y = dask.compute(*higgs_like(n_rows))
    rng = np.random.default_rng(0)
    coef = 0.1 * rng.standard_normal(X.shape[1])
    request = Request(LogisticLoss(), np.append(coef, 0.1)[np.newaxis], np.zeros(len(coef)), 1)
    # The survey has classes numbered as bytes, whatever the labels are.
    target = y.astype(np.int8)
    passes: dict[str, Callable[[], object]] = {
        "ours": lambda: block_statistics(request, X, target, None),
        "float64": lambda: numpy_pass(X, y, coef, np.float64),
        "float32": lambda: numpy_pass(X, y, coef, np.float32),
    }
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    with threadpool_limits(1):
        for turn in range(KERNEL_TURNS + 1):
            for name, one_pass in passes.items():
                start_s = time.perf_counter()
                one_pass()
                if turn:
                    seconds[name].append(time.perf_counter() - start_s)
    figures = []
    for name, target_ratio in (("float64", 0.5), ("float32", 1.0)):
        ratios = [o / t for o, t in zip(seconds["ours"], seconds[name], strict=True)]
        figures.append(
            Figure(
                f"a pass of the logistic kernel, {n_rows:,} x 28 float32, one thread, time over "
                f"blocked NumPy in {name}",
                statistics.median(ratios),
                "x",
                target_ratio,
                f"{1e3 * statistics.median(seconds['ours']):.0f} ms against "
                f"{1e3 * statistics.median(seconds[name]):.0f} ms; median of {KERNEL_TURNS} turns",
            )
        )
    return Part(figures)


def numpy_pass(X: Any, y: Any, coef: Any, dtype: type[np.floating[Any]]) -> tuple[float, Any]:
    """Loss and gradient in NumPy, blocks of rows at a time."""
    total, gradient = 0.0, np.zeros(len(coef) + 1)
    w = coef.astype(dtype)
    for start in range(0, len(y), NUMPY_ROWS):
        rows = X[start : start + NUMPY_ROWS].astype(dtype, copy=False)
        label = y[start : start + NUMPY_ROWS].astype(dtype)
        z = rows @ w + dtype(0.1)
        total += float((np.maximum(z, 0) + log1p(np.exp(-np.abs(z))) - label * z).sum())
        residual = expit(z) - label
        gradient[:-1] += residual @ rows
        gradient[-1] += residual.sum()
    return total, gradient


def bench_round(scale: float) -> Part:
    """What a round costs beyond computing, and how even the work is."""
    n_rows = int(4_000_000 * scale)
    figures = []
    for n_blocks, target_ms in ((4, 6.0), (16, 20.0)):
        overhead, balance = [], []
        with cluster() as client:
            X, y = client.persist(higgs_like(n_rows, chunk_rows=n_rows // n_blocks))
            wait([X, y])
            for _ in range(4):
                history = LogisticRegression(solver="lbfgs", tol=1e-12).fit(X, y).history_
                overhead += list(1e3 * (history["seconds"] - history["busy_s"]))
                balance += list(history["balance"])
            executor = ClusterExecutor(client, dask_source(X, y, None, None))
            placed = Counter(executor.placement.values())
            executor.close()
            n_workers = len(client.scheduler_info()["workers"])
        name = f"a round over {n_blocks} blocks of {n_rows // n_blocks:,} x 28 on two workers"
        figures += [
            Figure(
                f"{name}, beyond the slowest worker's computing",
                statistics.median(overhead),
                "ms",
                target_ms,
                f"median of {len(overhead)} rounds, 90 % below {np.quantile(overhead, 0.9):.1f} ms",
            ),
            Figure(
                f"{name}, blocks of the busiest worker over the mean",
                max(placed.values()) * n_workers / placed.total(),
                "x",
                1.1,
                f"its computing time over the mean: median {statistics.median(balance):.2f}",
            ),
        ]
    return Part(figures)


class PeakMemory(threading.Thread):
    """Samples the resident memory of processes and keeps the largest."""

    def __init__(self, pids: list[int]) -> None:
        super().__init__(daemon=True)
        self.processes = [psutil.Process(pid) for pid in pids]
        self._over = threading.Event()
        self.first = [p.memory_info().rss for p in self.processes]
        self.peak = list(self.first)

    def run(self) -> None:
        while not self._over.wait(0.01):
            for i, process in enumerate(self.processes):
                self.peak[i] = max(self.peak[i], process.memory_info().rss)

    def finish(self) -> None:
        self._over.set()
        self.join()


def bench_memory(scale: float) -> Part:
    """Resident memory of the client and of the workers while fitting."""
    n_rows = int(12_000_000 * scale)
    with cluster(memory_limit="8GB") as client:
        X, y = client.persist(higgs_like(n_rows, chunk_rows=min(250_000, n_rows // 8)))
        wait([X, y])
        # Memory that making the data has left behind is not the fit's.
        client.run(_trim_memory)
        holds = client.run(_held_bytes)
        pids = client.run(os.getpid)
        watch = PeakMemory([os.getpid(), *pids.values()])
        watch.start()
        LogisticRegression().fit(X, y)
        watch.finish()
    worker = max(peak / holds[address] for address, peak in zip(pids, watch.peak[1:], strict=True))
    return Part(
        [
            Figure(
                f"client's memory above idle, {n_rows:,} x 28 float32",
                (watch.peak[0] - watch.first[0]) / 1e6,
                "MB",
                300.0,
                f"resident, {watch.first[0] / 1e6:.0f} MB before and {watch.peak[0] / 1e6:.0f} MB "
                "at the peak",
            ),
            Figure(
                "a worker's memory over the data it holds",
                worker,
                "x",
                1.5,
                f"resident, all of the process, {max(watch.peak[1:]) / 1e6:.0f} MB at the peak for "
                f"{max(holds.values()) / 1e6:.0f} MB of data",
            ),
        ]
    )


def _held_bytes(dask_worker: Any) -> int:
    return sum(getattr(value, "nbytes", 0) for value in dask_worker.data.values())


def _trim_memory() -> int:
    import ctypes

    return ctypes.CDLL("libc.so.6").malloc_trim(0)


def bench_import(scale: float) -> Part:
    """Import time above what it is built on, in pairs of fresh processes."""
    del scale

    def seconds(code: str) -> float:
        probe = f"import time; s = time.perf_counter(); {code}; print(time.perf_counter() - s)"
        done = subprocess.run(
            [sys.executable, "-c", probe], capture_output=True, text=True, check=True
        )
        return float(done.stdout)

    base = "import dask.array, distributed, sklearn"
    # With the estimators: the package alone loads next to nothing. Zarr comes with the first store.
    whole = f"{base}, dask_dml, dask_dml.linear_model"
    seconds(whole)
    pairs = [(seconds(whole), seconds(base)) for _ in range(7)]
    extra = statistics.median(ours - theirs for ours, theirs in pairs)
    what = (
        "`import dask_dml, dask_dml.linear_model` above `import dask.array, distributed, sklearn`"
    )
    detail = f"median of 7 pairs; {statistics.median(b for _, b in pairs):.2f} s below it"
    return Part([Figure(what, extra, "s", 0.3, detail)])


BENCHES: dict[str, Callable[[float], Part]] = {
    "kernel": bench_kernel,
    "round": bench_round,
    "memory": bench_memory,
    "import": bench_import,
}
