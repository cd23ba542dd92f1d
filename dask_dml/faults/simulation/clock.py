"""A clock without time: events on a heap; and how irregular a simulated cluster is."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any


class VirtualClock:
    """Calls functions in the order of their virtual times.

    Attributes
    ----------
    now_s : float
    n_events : int
        How many have happened.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self.n_events = 0
        self._n_made = 0
        self._heap: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []

    def after(self, delay_s: float, call: Callable[..., object], *arguments: Any) -> None:
        """Call something in a while."""
        self._n_made += 1
        heappush(self._heap, (self.now_s + delay_s, self._n_made, call, arguments))

    def step(self) -> bool:
        """Let the next event happen; False if there is none."""
        if not self._heap:
            return False
        self.now_s, _, call, arguments = heappop(self._heap)
        self.n_events += 1
        call(*arguments)
        return True

    def skip(self, seconds: float) -> None:
        """Put off all that is to come."""
        self.now_s += seconds
        self._heap = [(at_s + seconds, *rest) for at_s, *rest in self._heap]  # type: ignore[misc]


@dataclass(frozen=True)
class Noise:
    """How irregular a cluster without faults is.

    Parameters
    ----------
    heartbeat_sigma_s : float
        Standard deviation of a heartbeat's delay, which is normal and not negative.
    latency_s : float
        Mean of a message's time on its way, which is exponential.
    loss : float
        Share of the datagrams that are lost.
    holds_per_h : float
        How often a worker's process holds its GIL, so that it neither speaks nor answers; it
        computes meanwhile.
    hold_s, hold_shape, longest_hold_s : float
        These holds last as a Pareto distribution says that begins at `hold_s`, up to a limit.
    freezes_per_h : float
        How often a machine stands still, its nanny too (steal, migration), or is cut off.
    freeze_s, freeze_sigma : float
        Median of that, and the sigma of its log-normal distribution.
    work_sigma : float
        Sigma of the log-normal time of a task.
    """

    heartbeat_sigma_s: float = 0.05
    latency_s: float = 0.0005
    loss: float = 0.001
    holds_per_h: float = 60.0
    hold_s: float = 0.2
    hold_shape: float = 1.2
    longest_hold_s: float = 60.0
    freezes_per_h: float = 2.0
    freeze_s: float = 0.2
    freeze_sigma: float = 1.0
    work_sigma: float = 0.1

    def hold_share(self, least_s: float, most_s: float) -> float:
        """Share of the holds that last so long."""

        def over(limit_s: float) -> float:
            is_never = limit_s > self.longest_hold_s
            return 0.0 if is_never else min((self.hold_s / limit_s) ** self.hold_shape, 1.0)

        return over(least_s) - over(most_s)

    def freeze_share(self, least_s: float, most_s: float) -> float:
        """Share of the standstills that last so long."""

        def over(limit_s: float) -> float:
            if limit_s == math.inf:
                return 0.0
            deviations = math.log(limit_s / self.freeze_s) / self.freeze_sigma
            return 0.5 * math.erfc(deviations / math.sqrt(2.0))

        return over(least_s) - over(most_s)

    def draw_hold_s(self, rng: random.Random) -> float:
        """How long a process holds its GIL."""
        return min(self.hold_s * rng.paretovariate(self.hold_shape), self.longest_hold_s)

    def draw_freeze_s(self, rng: random.Random) -> float:
        """How long a machine stands still."""
        return rng.lognormvariate(math.log(self.freeze_s), self.freeze_sigma)
