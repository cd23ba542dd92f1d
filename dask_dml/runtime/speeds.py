"""How fast workers are, judged by what they have done: decided on plain data.

A speed is in bytes of blocks a second of one thread. It is measured anew in every round; a worker
that others overtook is known by the speed that it did not reach, and one that was given nothing is
thought a little better of each round, until it is tried again.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence

from dask_dml.runtime.placement import shards_a_thread

# How much slower or faster than the typical worker a worker is taken to be, at most; in rounds
# shorter than `UNEVEN_S` speeds are mostly chance.
_MOST_RATIO = 20.0
_MOST_RATIO_SHORT = 2.0
_FORGIVEN = 1.2
# A round this much longer than with even loads, and no shorter, has its blocks placed anew.
_UNEVEN = 1.4
UNEVEN_S = 0.5
# What is taken for granted while nothing is known: a thread's speed, and rounds that are to come.
_FIRST_SPEED = 1e9
USUAL_ROUNDS = 20


class Speeds:
    """Speeds of workers, and what follows from them.

    Parameters
    ----------
    block_nbytes : sequence of float
        Bytes of each block.
    n_rounds : int
        Rounds that are to come; later, as many are expected as there have been.
    """

    def __init__(self, block_nbytes: Sequence[float], n_rounds: int = USUAL_ROUNDS) -> None:
        self._block_nbytes = block_nbytes
        self._first_rounds = n_rounds
        self._speed: dict[str, float] = {}
        self._tried: set[str] = set()

    def learn(
        self,
        measured: Mapping[str, float],
        overtaken: Sequence[tuple[str, float]],
        workers: Collection[str],
    ) -> None:
        """Take note of a round.

        Parameters
        ----------
        measured : mapping of str to float
            Speed of each worker that did something.
        overtaken : sequence of (worker, speed)
            Workers that others overtook, and the speed that they did not reach.
        workers : collection of str
            Those that there are.
        """
        known = [speed for worker, speed in self._speed.items() if worker in workers]
        for worker in self._speed.keys() - measured.keys() - {worker for worker, _ in overtaken}:
            speed = self._speed[worker]
            typical = statistics.median(known) if known else speed
            self._speed[worker] = max(speed, min(speed * _FORGIVEN, typical))
        # The first task of a process has to import and load all that it needs: how slow a newcomer
        # is shows in its next one.
        untried = (measured.keys() | {worker for worker, _ in overtaken}) - self._tried
        for worker, speed in measured.items():
            is_believed = worker not in untried or not known
            self._speed[worker] = speed if is_believed else max(speed, statistics.median(known))
        for worker, speed in overtaken:
            if worker not in untried:
                self._speed[worker] = min(self._speed.get(worker, math.inf), speed)
        self._tried |= untried

    def capacity(self, threads: Mapping[str, int], placed: Mapping[int, str]) -> dict[str, float]:
        """What each worker can do, to share blocks by; see `dask_dml.runtime.placement.place`.

        Parameters
        ----------
        threads : mapping of str to int
            Threads of each worker that may be given blocks.
        placed : mapping of int to str
            Worker of each block so far.
        """
        known = [speed for worker, speed in self._speed.items() if worker in threads]
        typical = statistics.median(known) if known else 1.0
        is_short = self._busiest_s(threads, placed) < UNEVEN_S
        most = _MOST_RATIO_SHORT if is_short else _MOST_RATIO
        return {
            worker: n_threads
            * min(max(self._speed.get(worker, typical) / typical, 1.0 / most), most)
            for worker, n_threads in threads.items()
        }

    def worth(self, n_rounds: int, bandwidth: float) -> float:
        """What it is worth that a round gets shorter; see `dask_dml.runtime.placement.place`.

        Parameters
        ----------
        n_rounds : int
            Rounds so far.
        bandwidth : float
            Bytes a second that a worker sends or receives.
        """
        typical = statistics.median(self._speed.values()) if self._speed else _FIRST_SPEED
        return max(n_rounds, self._first_rounds) * bandwidth / typical

    def shards(self, threads: Mapping[str, int], placed: Mapping[int, str]) -> dict[str, int]:
        """Into how many shards each worker's blocks are to be cut."""
        counts = {}
        for worker, load in self._loads(placed).items():
            n_threads = threads.get(worker, 1)
            speed = self._speed.get(worker, math.inf)
            counts[worker] = n_threads * shards_a_thread(load / (speed * n_threads))
        return counts

    def is_uneven(self, threads: Mapping[str, int], placed: Mapping[int, str]) -> bool:
        """Whether blocks are shared so unevenly that moving some pays."""
        return self._is_one_too_busy(threads, placed) or bool(self._idlers(threads, placed))

    def _is_one_too_busy(self, threads: Mapping[str, int], placed: Mapping[int, str]) -> bool:
        busiest_s = self._busiest_s(threads, placed)
        if len(threads) < 2 or len(self._block_nbytes) <= len(threads) or busiest_s < UNEVEN_S:
            return False
        speed = sum(self._speed.get(worker, 0.0) * n for worker, n in threads.items())
        return busiest_s * speed > _UNEVEN * sum(self._block_nbytes)

    def _idlers(self, threads: Mapping[str, int], placed: Mapping[int, str]) -> list[str]:
        """Workers that have no block, though they are not slow and there are enough blocks."""
        busy = set(placed.values())
        if len(threads) > len(self._block_nbytes) or len(busy) == len(threads):
            return []
        typical = statistics.median(self._speed.values()) if self._speed else 1.0
        return [
            worker
            for worker in threads
            if worker not in busy and self._speed.get(worker, typical) > typical / _MOST_RATIO_SHORT
        ]

    def _busiest_s(self, threads: Mapping[str, int], placed: Mapping[int, str]) -> float:
        """Seconds that the busiest worker's blocks should take it; 0 while nothing is known."""
        return max(
            (
                load / (self._speed.get(worker, math.inf) * threads[worker])
                for worker, load in self._loads(placed).items()
                if worker in threads
            ),
            default=0.0,
        )

    def _loads(self, placed: Mapping[int, str]) -> dict[str, float]:
        loads = dict.fromkeys(placed.values(), 0.0)
        for block, worker in placed.items():
            loads[worker] += self._block_nbytes[block]
        return loads
