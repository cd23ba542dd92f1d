"""A fit on a simulated cluster: rounds of sums by the ledger, while a schedule of faults runs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_dml.exchange.holder import Nodes, OnceSum
from dask_dml.exchange.ranges import NamedArrays
from dask_dml.faults.attempts import (
    Action,
    AttemptKey,
    Blocks,
    Cancel,
    Ledger,
    Poison,
    Submit,
)
from dask_dml.faults.policy import FaultPolicy
from dask_dml.faults.schedule import Fault, Schedule, draw_schedule
from dask_dml.faults.simulation.clock import Noise, VirtualClock
from dask_dml.faults.simulation.cluster import SimulatedCluster
from dask_dml.faults.simulation.holding import Flow, SimulatedHolder, run
from dask_dml.faults.simulation.machines import Process, Task, TaskKey
from dask_dml.faults.timeline import FaultEvent
from dask_dml.objective import TreeSum
from dask_dml.objective.summation import Node

Array = NDArray[np.float64]
Sums = list[tuple[Node, Array]]

# How often a fit looks at its round, and at the cluster.
TICK_S = 0.1
LOOK_S = 0.5
# A fit that has not ended by then never will.
LONGEST_S = 1200.0
# What a block takes, and what it takes to make it where it is not.
BLOCK_S = 0.25
REMADE_S = 0.15
N_VALUES = 4
# Until a fit hears of an event.
_NEWS_S = 0.003
_SHARDS_A_WORKER = 2


@dataclass(frozen=True, slots=True)
class Recovery:
    """How long work was with nobody who could do it.

    Attributes
    ----------
    kind : str
        Of the fault.
    seconds : float
        From the fault until all that its worker had was done, or was with others.
    """

    kind: str
    seconds: float


@dataclass(frozen=True, slots=True)
class SimulatedFit:
    """What came of a fit.

    Attributes
    ----------
    schedule : Schedule
    reason : str
        "done", or what stopped it: "poison", "exhausted", "no workers", "stalled".
    same_bits : bool
        Whether it gave what it gives without faults, to the last bit.
    virtual_s, undisturbed_s : float
        How long it took, and how long its work takes when nothing happens.
    n_rounds : int
        Rounds that were finished.
    events : tuple of FaultEvent
        With virtual times.
    n_evicted, n_falsely_evicted : int
        Workers that were evicted, and those among them that worked and could be reached.
    n_resubmitted, n_duplicated : int
        Attempts beyond the first ones.
    recoveries : tuple of Recovery
    poison : tuple of int
        Blocks that were held to be poison.
    n_redone : int
        Blocks that were done again since their sums were lost with all hosts of the holder.
    n_steps : int
        Events of the virtual clock.
    """

    schedule: Schedule
    reason: str
    same_bits: bool
    virtual_s: float
    undisturbed_s: float
    n_rounds: int
    events: tuple[FaultEvent, ...]
    n_evicted: int
    n_falsely_evicted: int
    n_resubmitted: int
    n_duplicated: int
    recoveries: tuple[Recovery, ...]
    poison: tuple[int, ...]
    n_redone: int
    n_steps: int

    @property
    def ended(self) -> bool:
        """Whether all rounds were finished."""
        return self.reason == "done"

    def __str__(self) -> str:
        bits = "same bits" if self.same_bits else "OTHER BITS"
        return (
            f"seed {self.schedule.seed}: {self.reason}, {bits}, {self.virtual_s:.1f} s "
            f"({self.undisturbed_s:.1f} s undisturbed), {self.n_evicted} evicted, "
            f"{self.n_resubmitted} resubmitted, {self.n_duplicated} duplicated"
        )


class _Work:
    """What is summed: values of all sizes; each round goes on from the last."""

    def __init__(self, seed: int, n_blocks: int) -> None:
        rng = np.random.default_rng(seed)
        exponents = rng.integers(-8, 9, size=(n_blocks, 1))
        self._blocks: list[Array] = list(
            rng.normal(size=(n_blocks, N_VALUES)) * 10.0**exponents,
        )
        self.n_blocks = n_blocks
        self.start: Array = np.ones(N_VALUES)

    def of(self, point: Array) -> Callable[[Blocks], Sums]:
        """Make the work of a round at a point."""

        def nodes(blocks: Blocks) -> Sums:
            total: TreeSum[Array] = TreeSum(self.n_blocks)
            for block in blocks:
                total.add((0, block), self._blocks[block] * point)
            return total.nodes

        return nodes

    def step(self, point: Array, total: Array) -> Array:
        """Give the next round's point."""
        return np.cos(total) + 0.5 * point

    def undisturbed(self, n_rounds: int) -> Array:
        """Give the last point of a fit in one process."""
        point = self.start
        for _ in range(n_rounds):
            total: TreeSum[Array] = TreeSum(self.n_blocks)
            total.update(self.of(point)(tuple(range(self.n_blocks))))
            point = self.step(point, total.value)
        return point


class _Client:
    """The client's side of a fit: what an executor does, on the virtual clock."""

    def __init__(
        self,
        policy: FaultPolicy,
        clock: VirtualClock,
        rng: random.Random,
        noise: Noise,
        n_workers: int,
        work: _Work,
        n_rounds: int,
        poison: frozenset[int],
    ) -> None:
        self.reason = ""
        self.point = work.start
        self.n_done = 0
        self.events: list[FaultEvent] = []
        self.n_resubmitted = self.n_duplicated = self.n_redone = 0
        self.recoveries: list[Recovery] = []
        self.poison: list[int] = []
        self._policy = policy
        self._clock = clock
        self._rng = rng
        self._work = work
        self._n_rounds = n_rounds
        self._kills = poison
        self._n_round = 0
        # On the scheduler: these hear at once.
        self._listeners: list[Callable[[str, str], None]] = []
        self.cluster = SimulatedCluster(
            clock, rng, noise, policy, n_workers, _costs, self._hear, self._is_killing
        )
        self.cluster.erred = self._erred
        self.cluster.finished = self._finished
        self._notices: list[tuple[str, tuple[TaskKey, ...]]] = []
        self._suspects: frozenset[str] = frozenset()
        self._threads: dict[str, int] = {}
        self._where: dict[AttemptKey, str] = {}
        self._looked_s = self._alone_s = 0.0
        self._lost: list[tuple[str, float, int, frozenset[int]]] = []
        clock.after(0.5, self._begin)

    def strike(self, fault: Fault) -> None:
        """Let a fault happen, and watch who takes over the work."""
        worker = self.cluster.strike(fault)
        if worker and fault.kind in ("kill", "hang", "partition") and self._n_round:
            now_s = self._clock.now_s
            had = frozenset(
                block
                for task in self.cluster.tasks.values()
                if task.at == worker and not task.is_done
                for block in task.blocks
            )
            self._lost.append((fault.kind, now_s, self._n_round, had))
            if fault.kind != "kill" and fault.duration_s < float("inf"):
                self._clock.after(fault.duration_s, self._recover)

    # -- rounds -----------------------------------------------------------------------------

    def _begin(self) -> None:
        self._look()
        if not self._threads:
            self._await(self._begin)
            return
        self._sum: TreeSum[Array] = TreeSum(self._work.n_blocks)
        self._compute = self._work.of(self.point)
        self._open(frozenset(range(self._work.n_blocks)))

    def _open(self, blocks: frozenset[int]) -> None:
        """Have blocks done."""
        self._look()
        if not self._threads:
            self._await(self._open, blocks)
            return
        self._n_round += 1
        self._ledger = Ledger(self._policy, [1.0] * self._work.n_blocks)
        self._where = {}
        cut = [(worker, tuple(b for b in part if b in blocks)) for worker, part in self._cut()]
        self._do(self._ledger.open([part for part in cut if part[1]], self._clock.now_s))
        self._clock.after(TICK_S, self._tick, self._n_round)

    def _take(self, nodes: Any) -> None:
        self._sum.update(nodes)

    def _lose(self, shard: int, attempt: int) -> None:
        raise AssertionError("a task that brings its parameters along cannot miss them")

    def _cut(self) -> Iterable[tuple[str, Blocks]]:
        """Blocks stay where they are, as evenly as that goes; each worker has some shards."""
        workers = [w for w in self._threads if w not in self._suspects] or list(self._threads)
        most = -(-self._work.n_blocks // len(workers))
        given: dict[str, list[int]] = {worker: [] for worker in workers}
        for block in range(self._work.n_blocks):
            free = [w for w in workers if len(given[w]) < most]
            holders = [w for w in free if block in self.cluster.workers[w].blocks]
            given[min(holders or free, key=lambda w: len(given[w]))].append(block)
        for worker, blocks in given.items():
            size = -(-len(blocks) // _SHARDS_A_WORKER) or 1
            for first in range(0, len(blocks), size):
                yield worker, tuple(blocks[first : first + size])

    def _tick(self, number: int) -> None:
        if number != self._n_round or self.reason:
            return
        self._listen()
        now_s = self._clock.now_s
        if now_s >= self._looked_s + LOOK_S:
            self._look()
        if not self._threads:
            self._await(self._tick, number)
            return
        self._do(self._ledger.tick(now_s, self._threads, self._suspects, self._where))
        self._recover()
        self._clock.after(TICK_S, self._tick, number)

    def _await(self, then: Callable[..., None], *arguments: Any) -> None:
        """Wait for workers, as long as the policy says."""
        now_s = self._clock.now_s
        if now_s - self._alone_s > self._policy.wait_for_workers_s:
            self.reason = "no workers"
            return
        self._looked_s = -LOOK_S
        self._clock.after(TICK_S, then, *arguments)

    def _look(self) -> None:
        self._looked_s = self._clock.now_s
        self._threads = dict.fromkeys(sorted(self.cluster.workers), 1)
        if self._threads:
            self._alone_s = self._clock.now_s
        for (number, *key), task in self.cluster.tasks.items():
            if number == self._n_round and task.at:
                self._where[key[0], key[1]] = task.at

    def _do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Submit):
                attempt = action.attempt
                self.n_resubmitted += action.kind == "work-resubmitted"
                self.n_duplicated += action.kind == "work-duplicated"
                if action.kind:
                    self._note(action.kind, attempt.worker, action.reason)
                key = (self._n_round, *attempt.key)
                task = Task(key, attempt.blocks, attempt.worker, self.n_done, self._compute)
                self.cluster.submit(task)
            elif isinstance(action, Cancel):
                self.cluster.cancel([(self._n_round, *key) for key in action.keys])
            elif isinstance(action, Poison):
                self.poison.append(action.block)
                self.reason = "poison"
                self._note("poison-block", action.workers[-1], f"block {action.block}")
            else:
                self.reason = "exhausted"

    def _finished(self, task: Task) -> None:
        self.cluster.fetch(task, self._fetched)

    def _fetched(self, task: Task) -> None:
        number, shard, attempt = task.key
        if number != self._n_round or self.cluster.tasks.pop(task.key, None) is None:
            return
        if task.result is None:
            self._lose(shard, attempt)
            return
        counts, actions = self._ledger.finished((shard, attempt), self._clock.now_s)
        if counts:
            self._take(task.result)
        self._do(actions)
        if self._ledger.is_complete:
            self._end()

    def _end(self) -> None:
        self._recover()
        self._step(self._sum.value)

    def _step(self, total: Array) -> None:
        self.point = self._work.step(self.point, total)
        self.n_done += 1
        self.cluster.cancel(list(self.cluster.tasks))
        if self.n_done == self._n_rounds:
            self.reason = "done"
        else:
            self._begin()

    # -- what it hears ----------------------------------------------------------------------

    def _hear(
        self, kind: str, worker: str, evidence: str, keys: tuple[TaskKey, ...], blamed: bool
    ) -> None:
        self._note(kind, worker, evidence)
        delay_s = self._rng.expovariate(1.0) * _NEWS_S
        if blamed:
            self._clock.after(delay_s, self._notices.append, (worker, keys))
        self._clock.after(delay_s, self._learn)
        for listen in self._listeners:
            listen(kind, worker)

    def _learn(self) -> None:
        self._suspects = self.cluster.suspects

    def _listen(self) -> None:
        for worker, keys in self._notices:
            ours = [(shard, attempt) for n, shard, attempt in keys if n == self._n_round]
            self._ledger.died(worker, ours)
        self._notices.clear()

    def _erred(self, key: TaskKey, worker: str) -> None:
        number, shard, attempt = key
        if number == self._n_round and not self.reason:
            # What has been published by now is heard first; the rest comes late.
            self._listen()
            self._do(self._ledger.failed((shard, attempt), self._clock.now_s))

    def _is_killing(self, task: Task) -> bool:
        return not self._kills.isdisjoint(task.blocks)

    def _recover(self) -> None:
        """See whose work is with others by now."""
        left = []
        for kind, at_s, number, blocks in self._lost:
            missing = set() if number < self._n_round else blocks & set(self._ledger.missing)
            if missing:
                for task in self.cluster.tasks.values():
                    process = self.cluster.workers.get(task.at)
                    if process is not None and process.is_sound:
                        missing -= set(task.blocks)
            if missing:
                left.append((kind, at_s, number, blocks))
            elif blocks:
                self.recoveries.append(Recovery(kind, self._clock.now_s - at_s))
        self._lost = left

    def _note(self, kind: str, worker: str, evidence: str) -> None:
        self.events.append(FaultEvent(self._clock.now_s, kind, worker, evidence, ""))


class _HeldClient(_Client):
    """A client whose parameters and sums are with the holder."""

    def hold(self, n_hosts: int) -> None:
        """Have the holder on so many hosts; before the first round."""
        self._holder = SimulatedHolder(
            self.cluster, self._clock, self._work.n_blocks, n_hosts, self._note
        )
        self.cluster.worked = self._worked
        self._listeners.append(self._holder.noticed)

    def _begin(self) -> None:
        self._look()
        if not self._threads:
            self._await(self._begin)
            return
        self._compute = self._work.of(self.point)
        self._given_back = OnceSum(self._work.n_blocks)
        self._publish(lambda: self._open(frozenset(range(self._work.n_blocks))))

    def _publish(self, then: Callable[[], None]) -> None:
        def published(is_there: bool) -> None:
            if is_there:
                then()
            elif not self.reason:
                # Nobody can host now.
                self._look()
                if self._threads:
                    self._clock.after(LOOK_S, self._publish, then)
                else:
                    self._await(self._publish, then)

        # Not the client's own array: what tasks have must have come to them.
        values = NamedArrays({"theta": self.point.copy()})
        run(self._holder.publish(self.n_done, values), published)

    def _worked(self, process: Process, task: Task, tell: Callable[[Any], None]) -> None:
        run(self._pushed(process, task), tell)

    def _pushed(self, process: Process, task: Task) -> Flow:
        values = yield from self._holder.pull(process, task.version)
        if values is None:
            return None
        sums = self._work.of(values.arrays["theta"])(task.blocks)
        nodes = [(node, NamedArrays({"gradient": value})) for node, value in sums]
        is_there = yield from self._holder.push(
            process, task.version, task.blocks, task.key[2], nodes
        )
        return [] if is_there else nodes

    def _take(self, nodes: Any) -> None:
        self._given_back.add(nodes)

    def _lose(self, shard: int, attempt: int) -> None:
        number = self._n_round

        def again() -> None:
            if number == self._n_round and not self.reason:
                self._do(self._ledger.failed((shard, attempt), self._clock.now_s))

        self._publish(again)

    def _end(self) -> None:
        self._recover()
        run(self._holder.collect(self.n_done), self._collected)

    def _collected(self, nodes: Nodes) -> None:
        total = OnceSum(self._work.n_blocks)
        total.add(nodes)
        total.add(self._given_back.nodes)
        if missing := frozenset(total.missing):
            self.n_redone += len(missing)
            self._publish(lambda: self._open(missing))
        else:
            self._step(total.value.arrays["gradient"])


def _costs(blocks: Blocks, held: set[int]) -> float:
    return BLOCK_S * len(blocks) + REMADE_S * len(set(blocks) - held)


def simulate(
    schedule: Schedule | int,
    policy: FaultPolicy | None = None,
    n_workers: int = 4,
    n_blocks: int = 16,
    n_rounds: int = 8,
    *,
    noise: Noise | None = None,
    poison: Iterable[int] = (),
    holder_hosts: int = 0,
) -> SimulatedFit:
    """Fit on a simulated cluster while a schedule of faults runs.

    Parameters
    ----------
    schedule : Schedule or int
        A schedule, or a seed to draw one from that is as long as the fit is.
    policy : FaultPolicy, optional
    n_workers : int
        Where a schedule is drawn.
    n_blocks : int
    n_rounds : int
        A round takes about a second if nothing happens.
    noise : Noise, optional
        How irregular the cluster is without faults.
    poison : iterable of int
        Blocks that kill the process that has done them.
    holder_hosts : int
        Hosts of the parameter holder, its replicas included, through which parameters and sums go;
        0: there is no holder, and they go through the client.

    Returns
    -------
    SimulatedFit
        The same for the same arguments.
    """
    policy = policy or FaultPolicy()
    if isinstance(schedule, int):
        length_s = n_rounds * BLOCK_S * -(-n_blocks // n_workers)
        schedule = draw_schedule(schedule, n_workers, length_s)
    rng = random.Random(schedule.seed)
    clock = VirtualClock()
    work = _Work(schedule.seed, n_blocks)
    arguments = (
        policy, clock, rng, noise or Noise(), schedule.n_workers, work, n_rounds, frozenset(poison),
    )  # fmt: skip
    client: _Client
    if holder_hosts:
        client = held = _HeldClient(*arguments)
        held.hold(holder_hosts)
    else:
        client = _Client(*arguments)
    for fault in schedule.faults:
        clock.after(0.5 + fault.at_s, client.strike, fault)
    while not client.reason:
        clock.step()
        if clock.now_s > LONGEST_S:
            client.reason = "stalled"
    same_bits = client.point.tobytes() == work.undisturbed(n_rounds).tobytes()
    return SimulatedFit(
        schedule=schedule,
        reason=client.reason,
        same_bits=same_bits,
        virtual_s=clock.now_s - 0.5,
        undisturbed_s=n_rounds * BLOCK_S * -(-n_blocks // schedule.n_workers),
        n_rounds=client.n_done,
        events=tuple(client.events),
        n_evicted=client.cluster.n_evicted,
        n_falsely_evicted=client.cluster.n_falsely_evicted,
        n_resubmitted=client.n_resubmitted,
        n_duplicated=client.n_duplicated,
        recoveries=tuple(client.recoveries),
        poison=tuple(client.poison),
        n_redone=client.n_redone,
        n_steps=clock.n_events,
    )
