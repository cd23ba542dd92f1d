"""What a worker may be going through: tasks that load it, some of which cost it its life.

Each is a task for one worker, seeded, that lasts about as long as it is told. Memory is taken in
shares of the worker's limit, counted from what the process has when the task starts.
"""

from __future__ import annotations

import ctypes
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import psutil

STEP_S = 0.1
# Above this share of its limit Dask pauses a worker: one that is in order stays below.
HEALTHY_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Circumstance:
    """Of a worker that goes through an episode.

    Attributes
    ----------
    limit_bytes : int
        Its memory limit.
    seconds : float
        How long the episode lasts.
    seed : int
    """

    limit_bytes: int
    seconds: float
    seed: int


class _Memory:
    """Memory that an episode takes and gives back."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._process = psutil.Process()
        self._held: list[np.ndarray] = []

    @property
    def share(self) -> float:
        return float(self._process.memory_info().rss / self.limit_bytes)

    def take(self, share: float) -> None:
        self._held.append(np.ones(max(1, int(share * self.limit_bytes / 8))))

    def give_back(self) -> None:
        self._held.clear()


def _grow(memory: _Memory, to_share: float, share_per_s: float, until_s: float) -> None:
    """Take memory at a rate until there is so much, or the time is up."""
    before_s = time.monotonic()
    while memory.share < to_share and before_s < until_s:
        time.sleep(STEP_S)
        now_s = time.monotonic()
        # No more for the time in which the machine did not let it run: harmless growth stays so.
        memory.take(share_per_s * min(now_s - before_s, 2.0 * STEP_S))
        before_s = now_s


def _compute(rng: np.random.Generator, until_s: float, n_bytes: int) -> None:
    """Keep one core busy with passes over data."""
    X = rng.standard_normal((max(64, n_bytes // 8 // 32), 32))
    theta = np.zeros(32)
    while time.monotonic() < until_s:
        residual = 1.0 / (1.0 + np.exp(-(X @ theta)))
        theta -= 1e-3 * (X.T @ residual) / len(X)


def idle(case: Circumstance) -> None:
    """Nothing but a task that waits."""
    time.sleep(case.seconds)


def busy(case: Circumstance) -> None:
    """Passes over data, as a fit makes them."""
    rng = np.random.default_rng(case.seed)
    _compute(rng, time.monotonic() + case.seconds, int(rng.uniform(0.02, 0.3) * case.limit_bytes))


def load(case: Circumstance) -> None:
    """Data is loaded, worked on, and released: growth that ends by itself."""
    rng = np.random.default_rng(case.seed)
    until_s = time.monotonic() + case.seconds
    memory = _Memory(case.limit_bytes)
    _grow(memory, rng.uniform(0.3, HEALTHY_SHARE), _rate(rng, 0.01, 0.5), until_s)
    _compute(rng, until_s, 4_000_000)


def sawtooth(case: Circumstance) -> None:
    """Temporary copies: memory goes up and down."""
    rng = np.random.default_rng(case.seed)
    until_s = time.monotonic() + case.seconds
    memory = _Memory(case.limit_bytes)
    top, rate = rng.uniform(0.4, HEALTHY_SHARE), _rate(rng, 0.05, 0.6)
    while time.monotonic() < until_s:
        _grow(memory, top, rate, until_s)
        memory.give_back()
        time.sleep(rng.uniform(0.1, 1.0))


def hold_gil(case: Circumstance) -> None:
    """Foreign code that does not let go of the interpreter, again and again."""
    rng = np.random.default_rng(case.seed)
    until_s = time.monotonic() + case.seconds
    libc = ctypes.PyDLL(None)  # unlike CDLL, it keeps the interpreter's lock during a call
    while time.monotonic() < until_s:
        libc.usleep(int(rng.uniform(0.5, 5.0) * 1e6))
        time.sleep(rng.uniform(0.1, 2.0))


@contextmanager
def _rivals(n: int) -> Iterator[None]:
    """Other processes that want the machine's cores, as neighbours on a host do."""
    # They end by themselves should the worker be killed.
    loop = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
    processes = [subprocess.Popen([sys.executable, "-S", "-c", loop]) for _ in range(n)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def starved(case: Circumstance) -> None:
    """Passes over data while other processes take the cores."""
    rng = np.random.default_rng(case.seed)
    with _rivals(int(rng.integers(1, 3))):
        _compute(rng, time.monotonic() + case.seconds, 8_000_000)


def hog(case: Circumstance) -> None:
    """One task takes ever more memory, until the nanny ends the worker."""
    rng = np.random.default_rng(case.seed)
    _grow(_Memory(case.limit_bytes), math.inf, _rate(rng, 0.008, 0.3), math.inf)


def leak(case: Circumstance) -> None:
    """Memory is lost piece by piece, with work in between, until the nanny ends the worker."""
    rng = np.random.default_rng(case.seed)
    memory = _Memory(case.limit_bytes)
    piece, rate = rng.uniform(0.005, 0.04), _rate(rng, 0.008, 0.08)
    while True:
        _compute(rng, time.monotonic() + rng.uniform(0.0, 2.0) * piece / rate, 2_000_000)
        memory.take(piece * rng.uniform(0.3, 1.7))


def burst(case: Circumstance) -> None:
    """Work as usual, then an allocation beyond the limit."""
    rng = np.random.default_rng(case.seed)
    _compute(rng, time.monotonic() + case.seconds, 8_000_000)
    memory = _Memory(case.limit_bytes)
    _grow(memory, math.inf, 5.0, math.inf)


def _rate(rng: np.random.Generator, least: float, most: float) -> float:
    """A rate, as likely in one octave as in another."""
    return float(math.exp(rng.uniform(math.log(least), math.log(most))))


def block(case: Circumstance) -> np.ndarray:
    """One of many pieces of data that stay on a worker, which spills what is too much to disk."""
    rng = np.random.default_rng(case.seed)
    time.sleep(rng.uniform(0.0, 0.5))
    return np.ones(int(rng.uniform(0.02, 0.06) * case.limit_bytes / 8))


# Those that a worker survives, and those that it does not; with how often each is drawn.
HARMLESS: dict[str, tuple[Callable[[Circumstance], None], float]] = {
    "idle": (idle, 1.0),
    "busy": (busy, 2.5),
    "load": (load, 3.0),
    "sawtooth": (sawtooth, 1.5),
    "hold-gil": (hold_gil, 1.0),
    "starved": (starved, 0.7),
}
FATAL: dict[str, tuple[Callable[[Circumstance], None], float]] = {
    "hog": (hog, 2.0),
    "leak": (leak, 2.0),
    "burst": (burst, 0.5),
}
