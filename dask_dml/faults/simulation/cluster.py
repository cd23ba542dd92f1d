"""A simulated Dask cluster: its scheduler, the watcher on it, and faults that hit its machines.

Of Dask is modelled what matters here: a killed worker's socket closes, and its tasks go elsewhere;
a first attempt is tried once more by Dask itself, then it fails as `KilledWorker` does; those that
a worker held when it was evicted or retired are not to blame; a result stays on its worker until it
is fetched; nannies start killed workers again; one that was silent for five minutes is removed.
The watcher is the edge around `Membership`, as the plugin of the real scheduler is.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

from dask_dml.faults.membership import (
    TICK_S,
    Action,
    Drain,
    Evict,
    HeartbeatsBlocked,
    Look,
    Membership,
    Probe,
    ProcessView,
    Rehabilitate,
    Suspect,
    heartbeat_interval_s,
)
from dask_dml.faults.policy import FaultPolicy
from dask_dml.faults.schedule import PARTITIONS, Fault
from dask_dml.faults.simulation.clock import Noise, VirtualClock
from dask_dml.faults.simulation.machines import (
    RESTART_S,
    Blocks,
    Machine,
    Network,
    Process,
    Task,
    TaskKey,
)
from dask_dml.faults.telemetry import Telemetry

LOOK_S = 2.0
WORKER_TTL_S = 300.0
_TTL_CHECKS = 10
_RETRY_S = 3.0
_RETRIES = 20
_COPY_S = 0.3
# A metadata service is asked for notices so often.
_NOTICE_S = 2.0

# Told to fits: kind, worker, evidence, tasks that it had, whether they may be to blame.
Listener = Callable[[str, str, str, tuple[TaskKey, ...], bool], None]


class SimulatedCluster:
    """Scheduler, watcher and machines on one virtual clock.

    Parameters
    ----------
    clock : VirtualClock
    rng : random.Random
    noise : Noise
    policy : FaultPolicy
    n_workers : int
    costs : callable
        Seconds of a task, from its blocks and those that its worker holds.
    listener : callable
        Hears of every event.
    kills : callable, optional
        Whether a task kills the process that has done it.
    """

    def __init__(
        self,
        clock: VirtualClock,
        rng: random.Random,
        noise: Noise,
        policy: FaultPolicy,
        n_workers: int,
        costs: Callable[[Blocks, set[int]], float],
        listener: Listener,
        kills: Callable[[Task], bool] = lambda task: False,
    ) -> None:
        self.clock = clock
        self.network = Network(clock, rng, noise)
        self.membership = Membership(policy, seed=rng.getrandbits(32))
        self.machines: list[Machine] = []
        self.workers: dict[str, Process] = {}
        # All that ever were; some live on after they were evicted.
        self.known: dict[str, Process] = {}
        self.tasks: dict[TaskKey, Task] = {}
        self.erred: Callable[[TaskKey, str], None] = lambda key, worker: None
        self.finished: Callable[[Task], None] = lambda task: None
        self.worked: Callable[[Process, Task, Callable[[Any], None]], None] = _compute
        self.n_evicted = 0
        self.n_falsely_evicted = 0
        self._rng = rng
        self._noise = noise
        self._policy = policy
        self._costs = costs
        self._listener = listener
        self._kills = kills
        self._paused: set[str] = set()
        self._draining: set[str] = set()
        self._outbox: dict[Process, list[Task]] = {}
        self._n_unheard: dict[str, int] = {}
        for _ in range(n_workers):
            self._registered(self._process(self._machine()))
        clock.after(rng.random() * TICK_S, self._tick)
        clock.after(WORKER_TTL_S / _TTL_CHECKS, self._check_ttl)

    # -- what fits ask ----------------------------------------------------------------------

    @property
    def running(self) -> list[str]:
        """Workers that Dask gives work to."""
        return [worker for worker in self.workers if worker not in self._paused]

    @property
    def suspects(self) -> frozenset[str]:
        """Workers that are to be given nothing."""
        return self.membership.suspects | self.membership.draining

    def submit(self, task: Task) -> None:
        """Have a task run, on the worker that is planned if that can be."""
        self.tasks[task.key] = task
        self._assign(task)

    def cancel(self, keys: list[TaskKey]) -> None:
        """Let go of tasks."""
        for key in keys:
            task = self.tasks.pop(key, None)
            if task is not None and task.at in self.workers:
                process = self.workers[task.at]
                self.network.send(process.machine, False, process.drop, task)

    def fetch(self, task: Task, take: Callable[[Task], None]) -> None:
        """Bring a result from its worker, which may take as long as that is silent."""
        process = self.workers.get(task.at)
        if process is None or not task.is_done or self.tasks.get(task.key) is not task:
            return
        wait_s = process.answers_s - self.clock.now_s
        if process.machine.is_reachable and wait_s < 1.0:
            self.clock.after(wait_s + 2 * self.network.latency_s, take, task)
        else:
            self.clock.after(0.5, self.fetch, task, take)

    # -- Dask's scheduler -------------------------------------------------------------------

    def _assign(self, task: Task) -> None:
        able = self.running
        task.is_done, task.at = False, ""
        if not able:
            return
        if task.planned in self.workers and task.planned not in self._paused:
            task.at = task.planned
        else:
            busy = dict.fromkeys(able, 0)
            for other in self.tasks.values():
                if other.at in busy and not other.is_done:
                    busy[other.at] += 1
            task.at = min(able, key=lambda w: busy[w])
        process = self.workers[task.at]
        self.network.send(process.machine, False, self._arrived, process, task)

    def _arrived(self, process: Process, task: Task) -> None:
        if self.tasks.get(task.key) is task and task.at == process.address:
            process.take(task)

    def _done(self, process: Process, task: Task) -> None:
        if not process.is_alive:
            return
        if process.is_stopped:
            self._outbox.setdefault(process, []).append(task)
            return

        def tell(result: Any) -> None:
            if process.is_alive:
                self.network.send(process.machine, True, self._told, process.address, task, result)

        self.worked(process, task, tell)

    def _told(self, worker: str, task: Task, result: Any) -> None:
        if worker not in self.workers or self.tasks.get(task.key) is not task:
            return
        if task.at != worker or task.is_done:
            return
        task.is_done = True
        task.result = result
        self.clock.after(self.network.latency_s, self.finished, task)

    def _registered(self, process: Process) -> None:
        if not process.is_alive or process.machine.process is not process:
            return
        worker = process.address
        self.workers[worker] = self.known[worker] = process
        self._n_unheard[worker] = 0
        self._act(self.membership.joined(worker, self.clock.now_s, has_nanny=True))
        self._listener("worker-joined", worker, "new with the scheduler", (), False)
        # Its plugin comes a moment later.
        self.clock.after(0.1 + 0.3 * self._rng.random(), self._heartbeat, process)
        if self._noise.holds_per_h:
            self._next_hold(process)
        self._assign_waiting()

    def _assign_waiting(self) -> None:
        for task in list(self.tasks.values()):
            if not task.at:
                self._assign(task)

    def _removed(self, worker: str, expected: bool, kind: str, evidence: str) -> None:
        process = self.workers.pop(worker, None)
        if process is None:
            return
        self._paused.discard(worker)
        self._draining.discard(worker)
        had = [task for task in self.tasks.values() if task.at == worker]
        processing = tuple(task.key for task in had if not task.is_done)
        for task in had:
            is_working = not task.is_done
            task.n_deaths += is_working and not expected
            if is_working and not expected and task.n_deaths > (task.key[2] == 0):
                del self.tasks[task.key]
                self.clock.after(self.network.latency_s, self.erred, task.key, worker)
            else:
                self._assign(task)
        self._act(self.membership.left(worker, self.clock.now_s))
        self._listener(kind, worker, evidence, processing, not expected)

    def _check_ttl(self) -> None:
        for worker, process in list(self.workers.items()):
            is_heard = process.is_sound and process.answers_s <= self.clock.now_s
            self._n_unheard[worker] = 0 if is_heard else self._n_unheard[worker] + 1
            if self._n_unheard[worker] > _TTL_CHECKS:
                self._removed(worker, False, "worker-lost", "silent for worker-ttl")
        self.clock.after(WORKER_TTL_S / _TTL_CHECKS, self._check_ttl)

    # -- the watcher ------------------------------------------------------------------------

    def _tick(self) -> None:
        self._act(self.membership.tick(self.clock.now_s))
        self.clock.after(TICK_S, self._tick)

    def _heartbeat(self, process: Process) -> None:
        process.is_beating = process.is_alive and not process.is_stopped
        if not process.is_beating:
            return
        now_s = self.clock.now_s
        wait_s = process.answers_s - now_s
        if wait_s > 0.0:
            self.clock.after(wait_s, self._heartbeat, process)
            return
        if process.address in self.workers and not self.network.is_lost(process.machine):
            telemetry = Telemetry(executing=1.0)
            self.clock.after(self.network.latency_s, self._heard, process.address, telemetry)
        delay_s = abs(self._rng.gauss(0.0, self._noise.heartbeat_sigma_s))
        interval_s = heartbeat_interval_s(self._policy, len(self.workers))
        self.clock.after(interval_s + delay_s, self._heartbeat, process)

    def _heard(self, worker: str, telemetry: Telemetry) -> None:
        self._act(self.membership.heard([(worker, telemetry)], self.clock.now_s))

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            worker = action.worker
            match action:
                case Probe(through=()):
                    self._probe(worker)
                case Probe(through=through):
                    for relay in through:
                        self._probe_through(worker, relay)
                case Look():
                    self._look(worker)
                case Suspect(evidence=evidence):
                    self._paused.add(worker)
                    self._listener("worker-suspected", worker, evidence, (), False)
                case Rehabilitate(evidence=evidence):
                    self._paused.discard(worker)
                    self._listener("worker-recovered", worker, evidence, (), False)
                    self._assign_waiting()
                case Evict(evidence=evidence):
                    self._evict(worker, evidence)
                case Drain(evidence=evidence):
                    self._listener("worker-draining", worker, evidence, (), False)
                    self.retire(worker, f"drained: {evidence}")
                case HeartbeatsBlocked(evidence=evidence):
                    self._listener("heartbeats-blocked", worker, evidence, (), False)

    def _answered_s(self, process: Process | None, limit_s: float) -> float:
        """After how long an answer comes, or infinity."""
        if process is None or not process.machine.is_reachable:
            return math.inf
        wait_s = process.answers_s - self.clock.now_s + 2 * self.network.latency_s
        return wait_s if wait_s < limit_s else math.inf

    def _probe(self, worker: str) -> None:
        limit_s = self._policy.probe_s
        wait_s = self._answered_s(self.workers.get(worker), limit_s)
        self.clock.after(min(wait_s, limit_s), self._probed, worker, None, wait_s < limit_s)

    def _probe_through(self, worker: str, relay: str) -> None:
        limit_s = self._policy.probe_s
        wait_s = self._answered_s(self.workers.get(relay), limit_s)
        there_s = self._answered_s(self.workers.get(worker), 0.8 * limit_s)
        is_answered = wait_s + there_s < limit_s
        answer_s = min(wait_s + min(there_s, 0.8 * limit_s), limit_s)
        self.clock.after(answer_s, self._probed, worker, relay, is_answered)

    def _probed(self, worker: str, through: str | None, is_answered: bool) -> None:
        self._act(self.membership.probed(worker, through, is_answered, self.clock.now_s))

    def _look(self, worker: str) -> None:
        process = self.workers.get(worker)
        if process is None:
            return
        wait_s = max(process.machine.frozen_until_s - self.clock.now_s, 0.0)
        if not process.machine.is_reachable or wait_s >= LOOK_S:
            self.clock.after(LOOK_S, self._seen, worker, ProcessView("unreachable"))
            return
        state = "running" if process.is_alive else "gone"
        view = ProcessView("stopped" if process.is_alive and process.is_stopped else state)  # type: ignore[arg-type]
        self.clock.after(wait_s + 2 * self.network.latency_s, self._seen, worker, view)

    def _seen(self, worker: str, view: ProcessView) -> None:
        self._act(self.membership.seen(worker, view, self.clock.now_s))

    def _evict(self, worker: str, evidence: str) -> None:
        process = self.workers.get(worker)
        if process is None:
            return
        self.n_evicted += 1
        is_frozen = process.machine.frozen_until_s > self.clock.now_s
        self.n_falsely_evicted += process.is_sound and not is_frozen
        self._removed(worker, True, "worker-evicted", evidence)
        if self._policy.restart:
            self._restart(process, _RETRIES)

    def _restart(self, process: Process, n_left: int) -> None:
        """Have the nanny kill what is left of it, and start another."""
        machine = process.machine
        if machine.is_off or machine.process is not process or not n_left:
            return
        if not machine.is_reachable:
            self.clock.after(_RETRY_S, self._restart, process, n_left - 1)
            return
        self._killed(process)
        self._started(machine)

    def retire(self, worker: str, evidence: str) -> None:
        """Copy away what a worker has, and close it."""
        if worker in self.workers and worker not in self._draining:
            self._draining.add(worker)
            self.clock.after(_COPY_S, self._retired, worker, evidence)

    def _retired(self, worker: str, evidence: str) -> None:
        process = self.workers.get(worker)
        if process is None:
            return
        if not process.is_sound or process.answers_s > self.clock.now_s:
            self.clock.after(_COPY_S, self._retired, worker, evidence)
            return
        others = [w for w in self.running if w not in self._draining]
        if not others:
            self._draining.discard(worker)
            self._act(self.membership.joined(worker, self.clock.now_s, has_nanny=True))
            self._listener("worker-recovered", worker, "it could not be drained", (), False)
            return
        for block in process.blocks:
            self.workers[self._rng.choice(others)].blocks.add(block)
        process.machine.process = None
        self._killed(process)
        self._removed(worker, True, "worker-left", evidence)

    # -- machines and processes -------------------------------------------------------------

    def _machine(self) -> Machine:
        machine = Machine(len(self.machines))
        self.machines.append(machine)
        if self._noise.freezes_per_h:
            self._next_freeze(machine)
        return machine

    def _process(self, machine: Machine) -> Process:
        machine.n_processes += 1
        process = Process(
            f"tcp://10.0.{machine.number}.1:{machine.n_processes}",
            machine, self.clock, self._rng, self._noise, self._costs, self._done, self._dies_of,
        )  # fmt: skip
        machine.process = process
        return process

    def _dies_of(self, process: Process, task: Task) -> bool:
        if not self._kills(task):
            return False
        self.kill(process)
        return True

    def kill(self, process: Process) -> None:
        """SIGKILL: its socket closes, and its nanny starts another."""
        if not process.is_alive:
            return
        self._killed(process)
        machine = process.machine
        evidence = "its connection to the scheduler was closed"
        self.network.send(
            machine, True, self._removed, process.address, False, "worker-lost", evidence
        )
        self._started(machine)

    def _killed(self, process: Process) -> None:
        process.is_alive = False
        process.change()
        self._outbox.pop(process, None)

    def _started(self, machine: Machine) -> None:
        if not machine.is_off:
            process = self._process(machine)
            wait_s = self._rng.uniform(*RESTART_S)
            self.clock.after(wait_s, self.network.send, machine, True, self._registered, process)

    def _next_hold(self, process: Process) -> None:
        wait_s = self._rng.expovariate(self._noise.holds_per_h / 3600.0)
        self.clock.after(wait_s, self._hold, process)

    def _hold(self, process: Process) -> None:
        if process.is_alive and process.address in self.workers:
            process.held_until_s = self.clock.now_s + self._noise.draw_hold_s(self._rng)
            self._next_hold(process)

    def _next_freeze(self, machine: Machine) -> None:
        wait_s = self._rng.expovariate(self._noise.freezes_per_h / 3600.0)
        self.clock.after(wait_s, self._freeze, machine)

    def _freeze(self, machine: Machine) -> None:
        machine.frozen_until_s = self.clock.now_s + self._noise.draw_freeze_s(self._rng)
        self._next_freeze(machine)

    # -- faults -----------------------------------------------------------------------------

    def strike(self, fault: Fault) -> str:
        """Begin a fault, and see to its end; gives the address that it hits, if any."""
        if fault.kind == "join":
            self._started(self._machine())
            return ""
        machine = self.machines[fault.target]
        if fault.kind in PARTITIONS:
            self.network.cut(machine, fault.kind)
            self.clock.after(fault.duration_s, self.network.heal, machine, fault.kind)
        if fault.kind == "preempt":
            self.clock.after(_NOTICE_S * self._rng.random(), self._notice, machine, fault)
            self.clock.after(fault.duration_s, self._switch_off, machine)
        process = machine.process
        if process is None or not process.is_alive or process.address not in self.workers:
            return ""
        if fault.kind == "kill":
            self.kill(process)
        elif fault.kind == "memory":
            # The nanny kills it when it has grown beyond the limit.
            self.clock.after(fault.duration_s * self._rng.uniform(0.3, 1.0), self.kill, process)
        elif fault.kind == "retire":
            self.retire(process.address, "retired on request")
        elif fault.kind == "hang":
            self._set(process, is_stopped=True)
            if fault.duration_s < math.inf:
                self.clock.after(fault.duration_s, self._set, process, False)
        elif fault.kind == "slow":
            self._slow(process, 1)
            self.clock.after(fault.duration_s, self._slow, process, -1)
        return process.address

    def _set(self, process: Process, is_stopped: bool) -> None:
        if process.is_stopped == is_stopped or not process.is_alive:
            return
        process.change()
        process.is_stopped = is_stopped
        process.change()
        if not is_stopped:
            if not process.is_beating:
                self._heartbeat(process)
            for task in self._outbox.pop(process, []):
                self._done(process, task)

    def _slow(self, process: Process, more: int) -> None:
        process.change()
        process.n_slowed += more
        process.change()

    def _notice(self, machine: Machine, fault: Fault) -> None:
        process = machine.process
        if process is None or machine.is_off:
            return
        if not process.is_sound or process.answers_s > self.clock.now_s:
            self.clock.after(_NOTICE_S, self._notice, machine, fault)
            return
        self._act(
            self.membership.noticed(
                process.address, fault.duration_s, "a stand-in", self.clock.now_s
            )
        )

    def _switch_off(self, machine: Machine) -> None:
        machine.is_off = True
        machine.waiting.clear()
        if machine.process is not None:
            self._killed(machine.process)


def _compute(process: Process, task: Task, tell: Callable[[Any], None]) -> None:
    """Do a task with the parameters that it brings along, and give back its sums."""
    tell(task.compute(task.blocks))
