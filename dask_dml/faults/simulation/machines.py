"""Machines of a simulated cluster: a process that works, its nanny, and the network between."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dask_dml.faults.simulation.clock import Noise, VirtualClock

# A nanny's way from a dead process to a new one that has joined.
RESTART_S = (0.8, 2.5)
SLOWED = 10.0

Blocks = tuple[int, ...]
TaskKey = tuple[int, int, int]


@dataclass(eq=False)
class Task:
    """One attempt as Dask knows it.

    Attributes
    ----------
    key : tuple of int
        Round, shard, number of the attempt.
    blocks : tuple of int
    planned : str
        The worker that is preferred.
    version : int
        Of the parameters.
    compute : callable
        Gives its result, with the parameters that the task brings along.
    at : str
        Where it is; empty while nobody can be given it.
    is_done : bool
        Whether its result is in that worker's memory.
    n_deaths : int
    """

    key: TaskKey
    blocks: Blocks
    planned: str
    version: int
    compute: Callable[[Blocks], Any]
    at: str = ""
    is_done: bool = False
    result: Any = None
    n_deaths: int = 0


@dataclass(eq=False)
class Machine:
    """A machine with a nanny; a worker's process runs on it at most times.

    Attributes
    ----------
    number : int
    n_cut_in, n_cut_out : int
        Partitions in force that drop what comes, and what goes.
    is_off : bool
    frozen_until_s : float
    """

    number: int
    n_cut_in: int = 0
    n_cut_out: int = 0
    is_off: bool = False
    frozen_until_s: float = -math.inf
    cut_s: float = 0.0
    healed_s: float = -math.inf
    process: Process | None = None
    n_processes: int = 0
    # What waits until the network is there again: (goes out, call, arguments).
    waiting: list[tuple[bool, Callable[..., object], tuple[Any, ...]]] = field(default_factory=list)

    @property
    def is_reachable(self) -> bool:
        """Whether packets go both ways."""
        return not (self.is_off or self.n_cut_in or self.n_cut_out)

    def lets(self, goes_out: bool) -> bool:
        """Whether packets go one way."""
        return not (self.is_off or (self.n_cut_out if goes_out else self.n_cut_in))


class Process:
    """A worker's process: a queue, one thread that works, and an event loop that answers.

    Parameters
    ----------
    address : str
    machine : Machine
    clock : VirtualClock
    rng : random.Random
    noise : Noise
    costs : callable
        Seconds that blocks take, and of these the ones that it does not have.
    done : callable
        Told when a task is done, and where.
    dies_of : callable
        Asked whether the process has died of a task.
    """

    def __init__(
        self,
        address: str,
        machine: Machine,
        clock: VirtualClock,
        rng: random.Random,
        noise: Noise,
        costs: Callable[[Blocks, set[int]], float],
        done: Callable[[Process, Task], None],
        dies_of: Callable[[Process, Task], bool],
    ) -> None:
        self.address = address
        self.machine = machine
        self.is_alive = True
        self.is_stopped = False
        self.is_beating = True
        self.n_slowed = 0
        self.held_until_s = -math.inf
        self.blocks: set[int] = set()
        self._clock = clock
        self._rng = rng
        self._noise = noise
        self._costs = costs
        self._done = done
        self._dies_of = dies_of
        self._queue: list[Task] = []
        self._left_s = 0.0
        self._since_s = 0.0
        self._token = 0

    @property
    def answers_s(self) -> float:
        """When its event loop answers what comes now."""
        if not self.is_alive or self.is_stopped:
            return math.inf
        return max(self._clock.now_s, self.held_until_s, self.machine.frozen_until_s)

    @property
    def is_sound(self) -> bool:
        """Whether it works and can be reached."""
        return self.is_alive and not self.is_stopped and self.machine.is_reachable

    @property
    def speed(self) -> float:
        """Of its work, where 1 is usual."""
        if not self.is_alive or self.is_stopped:
            return 0.0
        return 1.0 / SLOWED if self.n_slowed else 1.0

    def take(self, task: Task) -> None:
        """Put a task into the queue."""
        if self.is_alive:
            self._queue.append(task)
            if len(self._queue) == 1:
                self._begin()

    def drop(self, task: Task) -> None:
        """Take back a task that has not begun; one that has is let run, as Dask does."""
        if task in self._queue[1:]:
            self._queue.remove(task)

    def change(self) -> None:
        """Go on at another speed; to be called before and after the change."""
        if self._queue:
            now_s = self._clock.now_s
            self._left_s -= (now_s - self._since_s) * self.speed
            self._since_s = now_s
            self._token += 1
            if self.speed > 0.0:
                left_s = max(self._left_s, 0.0) / self.speed
                self._clock.after(left_s, self._end, self._token)

    def _begin(self) -> None:
        task = self._queue[0]
        self._left_s = self._costs(task.blocks, self.blocks)
        self._left_s *= self._rng.lognormvariate(0.0, self._noise.work_sigma)
        self._since_s = self._clock.now_s
        self.change()

    def _end(self, token: int) -> None:
        if token != self._token or not self.is_alive:
            return
        task = self._queue.pop(0)
        self.blocks.update(task.blocks)
        if self._dies_of(self, task):
            return
        self._clock.after(max(self.answers_s - self._clock.now_s, 0.0), self._done, self, task)
        if self._queue:
            self._begin()


class Network:
    """Messages between the scheduler and the machines.

    Connections lose nothing: what cannot go is sent again, ever more rarely, until it can.
    """

    def __init__(self, clock: VirtualClock, rng: random.Random, noise: Noise) -> None:
        self._clock = clock
        self._rng = rng
        self._noise = noise

    @property
    def latency_s(self) -> float:
        """Time on the way of one message."""
        return self._rng.expovariate(1.0) * self._noise.latency_s

    def send(
        self, machine: Machine, goes_out: bool, call: Callable[..., object], *arguments: Any
    ) -> None:
        """Send something over a connection."""
        if machine.lets(goes_out):
            # Connections keep their order.
            wait_s = max(machine.frozen_until_s, machine.healed_s) - self._clock.now_s
            self._clock.after(max(wait_s, 0.0) + self.latency_s, call, *arguments)
        elif not machine.is_off:
            machine.waiting.append((goes_out, call, arguments))

    def is_lost(self, machine: Machine) -> bool:
        """Whether a datagram from a machine does not arrive."""
        return not machine.lets(True) or self._rng.random() < self._noise.loss

    def cut(self, machine: Machine, kind: str) -> None:
        """Begin to drop packets."""
        if not (machine.n_cut_in or machine.n_cut_out):
            machine.cut_s = self._clock.now_s
        machine.n_cut_in += kind != "partition-out"
        machine.n_cut_out += kind != "partition-in"

    def heal(self, machine: Machine, kind: str) -> None:
        """Drop packets no longer."""
        machine.n_cut_in -= kind != "partition-out"
        machine.n_cut_out -= kind != "partition-in"
        if machine.n_cut_in or machine.n_cut_out or machine.is_off:
            return
        # The next time that is sent again comes after up to as long as it was cut.
        now_s = self._clock.now_s
        wait_s = self._rng.random() * min(now_s - machine.cut_s, 10.0)
        machine.healed_s = now_s + wait_s
        waiting, machine.waiting = machine.waiting, []
        for goes_out, call, arguments in waiting:
            self.send(machine, goes_out, call, *arguments)
