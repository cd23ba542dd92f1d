"""Measures what dask_dml promises, beside scikit-learn, in one run on one machine.

    python tests/benchmarks/run.py [NAME ...] [--rows N] [--write]

NAME is one of: logistic, round, memory, import, recovery, watching, scheduler; all by default.
Prints a table on stdout, progress on stderr, and ends with status 1 when a target is missed.
``--write`` puts the table into docs/performance_figures.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from distributed import Client, LocalCluster, wait
from recovery import BENCHES as FAULT_BENCHES
from scipy.special import log1p
from sklearn.linear_model import LogisticRegression as SklearnLogisticRegression

from dask_dml.datasets.synthetic import higgs_like
from dask_dml.linear_model import LogisticRegression

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "performance_figures.md"
GAP = 1e-8


@dataclass(frozen=True)
class Figure:
    """One measured figure and what it has to be."""

    what: str
    value: float
    unit: str
    target: float
    detail: str

    @property
    def reached(self) -> bool:
        return self.value <= self.target

    def row(self) -> str:
        mark = "yes" if self.reached else "**no**"
        return (
            f"| {self.what} | {self.value:.3g} {self.unit} | at most {self.target:g} {self.unit} "
            f"| {mark} | {self.detail} |"
        )


@contextmanager
def cluster(memory_limit: str = "6GB") -> Iterator[Client]:
    """Two workers of one thread."""
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit=memory_limit, dashboard_address=":0"
        ) as local,
        Client(local) as client,
    ):
        yield client


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def logistic_objective(
    X: np.ndarray, y: np.ndarray, coef: np.ndarray, intercept: float, C: float
) -> float:
    """scikit-learn's objective in float64, for every program alike."""
    total = 0.0
    for start in range(0, len(X), 100_000):
        rows = slice(start, start + 100_000)
        z = X[rows].astype(np.float64) @ coef + intercept
        loss = np.maximum(z, 0.0) + log1p(np.exp(-np.abs(z))) - y[rows] * z
        total += float(loss.sum())
    return C * total + 0.5 * float(coef @ coef)


def timed(fit: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    model = fit()
    return time.perf_counter() - start, model


def bench_logistic(n_rows: int) -> list[Figure]:
    """Time to a relative gap of 1e-8, in turns with scikit-learn's newton-cholesky."""
    with cluster() as client:
        X, y = client.persist(higgs_like(n_rows))
        wait([X, y])
        # An array that came over the wire need not be aligned, and then scikit-learn takes five
        # times as long: a copy is what people have in memory.
        X_here, y_here = X.compute().copy(), y.compute().astype(np.float64)
        ours, theirs, models = [], [], []
        mine = LogisticRegression(tol=GAP)
        peers = SklearnLogisticRegression(solver="newton-cholesky", tol=1e-4, max_iter=100)
        # What is loaded at first use, on workers and here, is loaded before the clock starts.
        mine.fit(X[:250_000], y[:250_000])
        peers.fit(X_here[:250_000], y_here[:250_000])
        for _ in range(5):
            seconds, model = timed(lambda: mine.fit(X, y))
            ours.append(seconds)
            seconds, peer = timed(lambda: peers.fit(X_here, y_here))
            theirs.append(seconds)
            models = [model, peer]
            say(f"logistic: {ours[-1]:.2f} s, newton-cholesky {theirs[-1]:.2f} s")
        # What every objective is compared with: scikit-learn's, driven to the end in float64.
        best = SklearnLogisticRegression(solver="newton-cholesky", tol=1e-10, max_iter=100).fit(
            X_here.astype(np.float64), y_here
        )
    objectives = [
        logistic_objective(X_here, y_here, m.coef_[0], float(m.intercept_[0]), 1.0)
        for m in (*models, best)
    ]
    optimum = min(objectives)
    gaps = [(value - optimum) / optimum for value in objectives]
    ratio = statistics.median(o / t for o, t in zip(ours, theirs, strict=True))
    detail = (
        f"{statistics.median(ours):.2f} s (gap {gaps[0]:.0e}, bound {models[0].gap_:.0e}, "
        f"{models[0].n_passes_:g} passes) against {statistics.median(theirs):.2f} s "
        f"(gap {gaps[1]:.0e}, {models[1].n_iter_[0]} iterations); "
        "median of 5 pairs after a warm-up, "
        f"ratios {', '.join(f'{o / t:.2f}' for o, t in zip(ours, theirs, strict=True))}"
    )
    return [
        Figure(f"logistic, {n_rows:,} x 28 float32, time over newton-cholesky", ratio, "x", 0.5,
               detail),
        Figure("the same, relative gap reached", gaps[0], "", GAP, "recomputed in float64"),
    ]  # fmt: skip


def bench_round(n_rows: int) -> list[Figure]:
    """What a round over 16 blocks costs beyond computing, and how even the work is."""
    chunk_rows = n_rows // 16
    with cluster() as client:
        X, y = client.persist(higgs_like(n_rows, chunk_rows=chunk_rows))
        wait([X, y])
        overhead, balance = [], []
        for _ in range(4):
            history = LogisticRegression(solver="lbfgs", tol=1e-12).fit(X, y).history_
            overhead += list(1e3 * (history["seconds"] - history["busy_s"]))
            balance += list(history["balance"])
    name = f"a round over 16 blocks of {chunk_rows:,} x 28 on two workers"
    return [
        Figure(
            f"{name}, beyond the slowest worker's computing",
            statistics.median(overhead),
            "ms",
            20.0,
            f"median of {len(overhead)} rounds, 90 % below {np.quantile(overhead, 0.9):.1f} ms",
        ),
        Figure(
            f"{name}, blocks of the busiest worker over the mean",
            _block_balance(n_rows, chunk_rows),
            "x",
            1.1,
            f"its computing time over the mean: median {statistics.median(balance):.2f}",
        ),
    ]


def _block_balance(n_rows: int, chunk_rows: int) -> float:
    """Blocks (all of a size) of the busiest worker over the mean."""
    from dask_dml.data.source import dask_source
    from dask_dml.runtime.cluster import ClusterExecutor

    with cluster() as client:
        X, y = client.persist(higgs_like(n_rows, chunk_rows=chunk_rows))
        wait([X, y])
        executor = ClusterExecutor(client, dask_source(X, y, None, None))
        per_worker: dict[str, int] = {}
        for worker in executor.placement.values():
            per_worker[worker] = per_worker.get(worker, 0) + 1
        executor.close()
        n_workers = len(client.scheduler_info()["workers"])
    return max(per_worker.values()) * n_workers / sum(per_worker.values())


class PeakMemory(threading.Thread):
    """Samples the resident memory of processes and keeps the largest."""

    def __init__(self, pids: list[int]) -> None:
        super().__init__(daemon=True)
        self._processes = [psutil.Process(pid) for pid in pids]
        self._over = threading.Event()
        self.first = [p.memory_info().rss for p in self._processes]
        self.peak = list(self.first)

    def run(self) -> None:
        while not self._over.wait(0.01):
            for i, process in enumerate(self._processes):
                self.peak[i] = max(self.peak[i], process.memory_info().rss)

    def finish(self) -> None:
        self._over.set()
        self.join()


def bench_memory(n_rows: int) -> list[Figure]:
    """Resident memory of the client and of the workers while fitting."""
    n_rows *= 3
    with cluster(memory_limit="8GB") as client:
        X, y = client.persist(higgs_like(n_rows))
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
    return [
        Figure(
            f"client's memory above idle, {n_rows:,} x 28 float32",
            (watch.peak[0] - watch.first[0]) / 1e6,
            "MB",
            300.0,
            f"resident, {watch.first[0] / 1e6:.0f} MB before and {watch.peak[0] / 1e6:.0f} MB at "
            "the peak",
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


def _held_bytes(dask_worker: Any) -> int:
    return sum(getattr(value, "nbytes", 0) for value in dask_worker.data.values())


def _trim_memory() -> int:
    import ctypes

    return ctypes.CDLL("libc.so.6").malloc_trim(0)


def bench_import(n_rows: int) -> list[Figure]:
    """Import time above what it is built on, in pairs of fresh processes."""
    del n_rows

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
    return [
        Figure(
            "`import dask_dml, dask_dml.linear_model` above "
            "`import dask.array, distributed, sklearn`",
            extra,
            "s",
            0.3,
            f"median of 7 pairs; {statistics.median(b for _, b in pairs):.2f} s below it",
        )
    ]


BENCHES = {
    "logistic": bench_logistic,
    "round": bench_round,
    "memory": bench_memory,
    "import": bench_import,
}
BENCHES |= {
    name: lambda n_rows, bench=bench: [Figure(*row) for row in bench(n_rows)]
    for name, bench in FAULT_BENCHES.items()
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("names", nargs="*", choices=[[], *BENCHES], metavar="NAME")
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    figures = []
    for name in arguments.names or BENCHES:
        say(f"{name} ...")
        figures += BENCHES[name](arguments.rows)
    header = "| what | measured | target | reached | how |\n|---|---|---|---|---|"
    table = "\n".join([header, *(figure.row() for figure in figures)])
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    if arguments.json:
        print(json.dumps([vars(f) | {"reached": f.reached} for f in figures], indent=1))
    else:
        print(f"{table}\n\n{machine}")
    if arguments.write:
        command = " ".join(["python", "tests/benchmarks/run.py", *sys.argv[1:]])
        PAGE.write_text(f"{table}\n\nMeasured by `{command}` on {machine}.\n", encoding="utf-8")
    return 0 if all(figure.reached for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
